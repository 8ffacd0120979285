"""Start one execution for a submitter that needs one, whatever is lost on the way.

Right before a request is sent, one update of the shared state records it, unless another attempt has a record there.
After the response the execution is claimed, and the record names it. Where no response comes, or a later attempt finds
a record without an execution, the history shows which execution it is (see `recovery`), or that there is none and the
request can be sent again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx

from techflow_provider.client import calls
from techflow_provider.client.errors import (
    AmbiguousExecutionError,
    StateUnavailableError,
    SupersededError,
    TechFlowError,
)
from techflow_provider.client.flow import Call, FlowContext, exchange
from techflow_provider.client.history import ExecutionSelector, History
from techflow_provider.client.paging import collect
from techflow_provider.client.retry import Outcome
from techflow_provider.state.store import StoreError
from techflow_provider.submission.attempts import AttemptRecord, use_state
from techflow_provider.submission.model import Attempt, Origin, Submission, Submitter, from_record, is_reusable
from techflow_provider.submission.recovery import HELD_UP_SECONDS, LostResponse, OtherAttemptError, find, take_over

log: logging.Logger = logging.getLogger(__name__)

# How many requests are sent for one execution at most, each after the one before certainly had no effect.
MAX_SENDS = 3


async def resolve(attempt: Attempt) -> Submission | None:
    """Return the execution that an earlier attempt has started, or None when a new one is needed. Starts nothing.

    :raises TechFlowError: `AmbiguousExecutionError` when it cannot be determined, `StateUnavailableError` when the
        record can't be read, or what reading the history raises
    """
    try:
        record = await attempt.use_records(lambda attempts: attempts.read())
        if record is None and attempt.submitter.is_retry:
            record = await attempt.use_records(lambda attempts: attempts.migrate())
        return await _reuse(attempt, record)
    except StoreError as error:
        raise StateUnavailableError(attempt.workflow_id, str(error)) from error


async def _reuse(attempt: Attempt, record: AttemptRecord | None) -> Submission | None:
    """Return the execution of an earlier attempt's record, or delete the record and return None."""
    while record is not None:
        found = None
        try:
            if _is_relevant(record, attempt):
                record = await take_over(attempt, record) if record.execution_id is None else record
                found = await _execution_of(attempt, record)
        except OtherAttemptError as other:
            record = other.record
            continue
        if found is not None:
            return await _keep(attempt, record, found)
        record = await _drop(attempt, record)
    return None


async def _drop(attempt: Attempt, record: AttemptRecord) -> AttemptRecord | None:
    return await attempt.use_records(lambda attempts: attempts.drop(record))


def _is_relevant(record: AttemptRecord, attempt: Attempt) -> bool:
    """Whether a record is about what the submitter wants now."""
    named = f"execution {record.execution_id}" if record.execution_id else "an execution"
    if (record.account, record.workflow_id) != (attempt.submitter.account, attempt.workflow_id):
        log.warning("An earlier attempt requested %s of workflow %s, which may keep running", named, record.workflow_id)
        return False
    if not attempt.policy.reattach:
        log.warning("An earlier attempt requested %s, which may keep running: reattach is off", named)
        return False
    if record.payload_digest != attempt.payload_digest():
        log.warning("An earlier attempt requested %s with another payload than the present one", named)
    return True


async def _execution_of(attempt: Attempt, record: AttemptRecord) -> Submission | None:
    """Return the execution of an earlier attempt when it is what the submitter needs now."""
    same_generation = record.generation == attempt.submitter.generation
    if record.done:
        reason = "an earlier attempt had completed, but its success was not noticed"
        return from_record(record, reason) if same_generation else None
    if record.execution_id is None:
        found = await _recover(attempt, record)
    elif same_generation and not attempt.policy.wait_for_completion:
        found = from_record(record, "an earlier attempt had started it")
    else:
        found = await _read_execution(attempt, record)
    if found is None or is_reusable(found.execution, record, attempt):
        return found
    execution = found.execution
    log.info("Execution %s of an earlier attempt is over (%s): a new one is needed", execution.id, execution.status)
    return None


async def _recover(attempt: Attempt, record: AttemptRecord) -> Submission | None:
    """Return the execution of an attempt that was lost before it knew the outcome of its request."""
    loss = LostResponse("An earlier attempt was lost before it knew the outcome of its request")
    if attempt.policy.on_ambiguous == "adopt":
        return await find(attempt, record, loss)
    # Clearing the task is how a person says that nothing was started.
    if record.generation == attempt.submitter.generation:
        raise AmbiguousExecutionError(record.workflow_id, loss.reason)
    log.warning("%s, and the task was cleared since: the request is sent again", loss.reason)
    return None


async def _read_execution(attempt: Attempt, record: AttemptRecord) -> Submission | None:
    history = History(await collect(calls.list_executions(), attempt.context))
    execution = history.find(ExecutionSelector(record.execution_id))
    if execution is not None:
        reason = f"an earlier attempt had started it, and the history shows it as {execution.status!r}"
        return from_record(record, reason, execution)
    may_lag = attempt.context.now() - record.sent_at < timedelta(seconds=attempt.effect_seconds)
    if record.generation == attempt.submitter.generation or may_lag:
        return from_record(record, "an earlier attempt had started it, and the history doesn't show it yet")
    log.warning("Execution %s of an earlier attempt is not in the history: a new one is needed", record.execution_id)
    return None


async def send(attempt: Attempt, *, within_seconds: float = math.inf) -> Submission:
    """Start an execution (Trigger Execution) when `resolve` found none, and learn which one it is.

    :param within_seconds: how long to wait for a slot in the rate budget; without one nothing was started
    :raises TechFlowError: `AmbiguousExecutionError` when it cannot be determined what was started,
        `StateUnavailableError` when nothing was sent, `SupersededError` when another attempt continues, or what the
        call raises
    """
    sent = 0
    while True:
        io = _RecordingIO(attempt)
        context = replace(attempt.context, io=io, admission_seconds=within_seconds)
        try:
            found = await _send_once(attempt, context, io, is_last=sent + 1 == MAX_SENDS)
            sent += 1
        except OtherAttemptError as other:
            found = await _join(attempt, other.record, is_recorded=io.is_recorded)
        if found is not None:
            return found


async def _send_once(attempt: Attempt, context: FlowContext, io: _RecordingIO, *, is_last: bool) -> Submission | None:
    """Return the execution that one request has started, or None when another request is to be sent."""
    try:
        start = await exchange(calls.execute_workflow(attempt.workflow_id, attempt.payload), context)
    except StoreError as error:
        await _let_go(attempt, io)
        raise StateUnavailableError(attempt.workflow_id, str(error)) from error
    except TechFlowError as error:
        found = await _after_error(attempt, io, error)
        if found is None and is_last:
            raise
    else:
        found = await _after_response(attempt, io, start)
        if found is None and is_last:
            reason = f"{MAX_SENDS} were started, and other tasks adopted them"
            raise AmbiguousExecutionError(attempt.workflow_id, reason)
    return None if found is None else await _keep(attempt, io.record, found)


class _RecordingIO:
    """An `IO` that records every request right before it is sent.

    :param attempt: sends the request
    """

    def __init__(self, attempt: Attempt) -> None:
        context, submitter, self._attempt = attempt.context, attempt.submitter, attempt
        self.sleep, self.use_state, self.decode = context.io.sleep, context.io.use_state, context.io.decode
        self.is_recorded = False
        self.record = AttemptRecord(
            submitter.account,
            attempt.workflow_id,
            f"{submitter.name}#{uuid4().hex[:12]}",
            submitter.generation,
            submitter.attempt_id,
            context.now(),
            # Within the bounds of the settings.
            context.settings.response_seconds + 2 * context.settings.timeout_seconds,
            attempt.payload_digest(),
        )

    async def send(self, call: Call[Any], request: httpx.Request) -> Outcome:
        """Record the request and send it."""
        context, recorded_at = self._attempt.context, -math.inf
        # While a request is held up, others may act upon its record.
        while context.clock() - recorded_at >= HELD_UP_SECONDS:
            recorded_at = context.clock()
            await self._write()
        return await context.io.send(call, request)

    async def _write(self) -> None:
        sending = replace(self.record, sent_at=self._attempt.context.now())

        def decide(present: AttemptRecord | None) -> AttemptRecord | None:
            if present is None:
                return None if self.is_recorded else sending
            return sending if present.attempt_id == sending.attempt_id else present

        present = await self._attempt.use_records(lambda attempts: attempts.update(decide))
        if present is None:
            raise SupersededError(sending.workflow_id, self._attempt.submitter.name)
        if present is not sending:
            raise OtherAttemptError(present)
        self.is_recorded, self.record = True, sending
        await self._attempt.use_records(lambda attempts: attempts.write_task_state(sending))


async def _join(attempt: Attempt, record: AttemptRecord, *, is_recorded: bool) -> Submission | None:
    """Return the execution of another attempt that was faster, or None when it is of no use.

    :param is_recorded: whether this attempt had a record, which the other one has taken over
    """
    if is_recorded and record.execution_id is None:
        raise SupersededError(attempt.workflow_id, attempt.submitter.name)
    log.warning("Another attempt of %s requested an execution meanwhile", attempt.submitter.name)
    try:
        return await _reuse(attempt, record)
    except StoreError as error:
        raise StateUnavailableError(attempt.workflow_id, str(error)) from error


async def _after_error(attempt: Attempt, io: _RecordingIO, error: TechFlowError) -> Submission | None:
    """Return the execution that was started nevertheless, or None when another request is to be sent."""
    if isinstance(error, SupersededError):
        raise error
    if error.had_no_effect:
        await _let_go(attempt, io)
        raise error
    loss = LostResponse(f"The response to the start is lost ({error})", error.was_accepted)
    record = await _take_over_lost(attempt, io.record, loss)
    if attempt.policy.on_ambiguous == "fail":
        raise AmbiguousExecutionError(attempt.workflow_id, loss.reason) from error
    found = await find(attempt, record, loss)
    if found is None:
        await _let_go(attempt, io)
    return found


async def _take_over_lost(attempt: Attempt, record: AttemptRecord, loss: LostResponse) -> AttemptRecord:
    try:
        return await take_over(attempt, record)
    except StoreError as error:
        reason = f"{loss.reason}, and the shared state can't be used: {error}"
        raise AmbiguousExecutionError(record.workflow_id, reason) from error


async def _after_response(attempt: Attempt, io: _RecordingIO, start: calls.Start) -> Submission | None:
    """Return the execution that a response names, claimed; None when another task has it and another is needed."""
    execution, record = start.execution, io.record
    if execution is None:
        loss = LostResponse("The response to the start named no execution", accepted=True)
        return await find(attempt, await _take_over_lost(attempt, record, loss), loss)
    try:
        holder = await attempt.use_records(lambda attempts: attempts.claim(execution.id, record.submission_id))
    except StoreError as error:
        log.warning("Execution %s could not be claimed, so another task may adopt it: %s", execution.id, error)
        holder = record.submission_id
    if holder == record.submission_id:
        named = replace(execution, workflow_id=execution.workflow_id or record.workflow_id)
        return Submission(named, Origin.STARTED, "the response named it", {"sent_at": start.sent_at.isoformat()})
    loss = LostResponse(f"Execution {execution.id}, which the response names, was adopted by {holder}")
    if record.payload_digest is not None:
        raise AmbiguousExecutionError(record.workflow_id, loss.reason)
    found = await find(attempt, await _take_over_lost(attempt, record, loss), loss)
    if found is None:
        await _let_go(attempt, io)
    return found


async def _let_go(attempt: Attempt, io: _RecordingIO) -> None:
    """Delete the record of a request without effect."""
    if not io.is_recorded:
        return
    try:
        await _drop(attempt, io.record)
    except StoreError as error:
        name = attempt.submitter.name
        log.warning("The record of %s could not be deleted, so the next attempt searches in vain: %s", name, error)


async def _keep(attempt: Attempt, record: AttemptRecord, found: Submission) -> Submission:
    """Record which execution the submitter has, unless another attempt has recorded something else."""
    log.info("%s", found)
    known = replace(
        record,
        attempt_id=attempt.submitter.attempt_id,
        generation=attempt.submitter.generation,
        execution_id=found.execution.id,
        report=found.to_dict(),
        done=not attempt.policy.wait_for_completion,
    )

    def decide(present: AttemptRecord | None) -> AttemptRecord:
        if present is None or record.is_restored or present.is_same(record):
            return known
        is_unknown = present.submission_id == record.submission_id and present.execution_id is None
        return known if is_unknown else present

    try:
        if await attempt.use_records(lambda attempts: attempts.update(decide)) is known:
            await attempt.use_records(lambda attempts: attempts.write_task_state(known))
    except StoreError as error:
        log.warning("Execution %s could not be recorded, so a retry may not find it: %s", found.execution.id, error)
    return found


async def mark_done(context: FlowContext, submitter: Submitter, execution_id: str) -> Mapping[str, Any] | None:
    """Record that the submitter has got what it wanted, and return how it got its execution."""
    try:
        record = await use_state(
            context, lambda: submitter.attempts.amend(execution_id, lambda found: replace(found, done=True))
        )
    except StoreError as error:
        log.warning(
            "The completion of %s could not be recorded, so clearing it may not start anew: %s", submitter.name, error
        )
        return None
    return None if record is None else record.report


async def discard(context: FlowContext, submitter: Submitter, execution_id: str) -> None:
    """Let the next attempt start a new execution, because this one failed."""
    try:
        await use_state(context, lambda: submitter.attempts.amend(execution_id, lambda _: None))
    except StoreError as error:
        log.warning(
            "The record of %s could not be deleted, so the next attempt reads it again: %s", submitter.name, error
        )
