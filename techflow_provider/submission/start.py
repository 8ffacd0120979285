"""Start one execution for a submitter that needs one, whatever is lost on the way.

Right before a request is sent, one update of the shared state records it, unless another attempt has a record there.
After the response the execution is claimed, and the record names it. Where no response comes, or a later attempt finds
a record without an execution, the history shows which execution it is (see `recovery`), or that there is none and the
request can be sent again.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import uuid4

import httpx

from techflow_provider.client import calls
from techflow_provider.client.errors import (
    AmbiguousExecutionError,
    SharedExecutionError,
    StateUnavailableError,
    SupersededError,
    TechFlowError,
)
from techflow_provider.client.flow import Call, exchange
from techflow_provider.client.retry import Outcome
from techflow_provider.client.text import get_logger
from techflow_provider.state.store import StoreError
from techflow_provider.submission.attempts import KNOWN, use_state
from techflow_provider.submission.matching import NoMatch
from techflow_provider.submission.model import Attempt, Origin, Submission
from techflow_provider.submission.records import AttemptRecord, Claim
from techflow_provider.submission.recovery import (
    HELD_UP_SECONDS,
    Found,
    LostResponse,
    OtherAttemptError,
    find,
    secure,
    take_over,
)
from techflow_provider.submission.reuse import LostStartError, drop, keep, reuse
from techflow_provider.submission.times import began_at

log: logging.Logger = get_logger(__name__)

# How many requests are sent for one execution at most, each after the one before certainly had no effect.
MAX_SENDS = 3


async def send(attempt: Attempt, *, within_seconds: float = math.inf, sent: int = 0) -> Submission:
    """Start an execution (Trigger Execution) when `resolve` found none, and learn which one it is.

    :param within_seconds: how long to wait for a slot in the rate budget; without one nothing was started
    :param sent: how many requests without effect were sent before
    :raises TechFlowError: `AmbiguousExecutionError` when it cannot be determined what was started,
        `SharedExecutionError` when the server responded with the execution of another task, `StateUnavailableError`
        when nothing was sent, `SupersededError` when another attempt continues, or what the call raises
    :raises LostStartError: the history has to be searched elsewhere
    """
    while True:
        io = _RecordingIO(attempt)
        context = replace(attempt.context, io=io, admission_seconds=within_seconds)
        try:
            start = await exchange(calls.execute_workflow(attempt.workflow_id, attempt.payload), context)
        except OtherAttemptError as other:
            found = await _join(attempt, other.record, is_recorded=io.is_recorded)
        except StoreError as error:
            await _let_go(attempt, io)
            raise StateUnavailableError(attempt.workflow_id, str(error)) from error
        except TechFlowError as error:
            sent += 1
            try:
                found = await _after_error(attempt, io, error)
            except LostStartError as lost:
                lost.sent = sent
                raise
            if found is None and sent >= MAX_SENDS:
                raise
        else:
            found = await _after_response(attempt, io.record, start)
        if found is not None:
            return found


async def finish_search(attempt: Attempt, record: AttemptRecord, loss: LostResponse, found: Found) -> Submission | None:
    """Claim and record what a search elsewhere has found; None when the request had no effect and can be sent again.

    :raises TechFlowError: as `send`
    :raises LostStartError: it has to be searched for again
    """
    try:
        record = await take_over(attempt, record)
        if isinstance(found.match, NoMatch):
            await _forget(attempt, record)
            return None
        submission = await secure(attempt, record, loss, found.match, found.times)
    except OtherAttemptError as other:
        return await _join(attempt, other.record, is_recorded=False)
    except StoreError as error:
        raise AmbiguousExecutionError(
            attempt.workflow_id, f"{loss.reason}, and the shared state can't be used: {error}"
        ) from error
    if submission is None:
        raise LostStartError(record, loss)
    return await keep(attempt, record, submission)


class _RecordingIO:
    """An `IO` that records every request right before it is sent.

    :param attempt: sends the request
    """

    def __init__(self, attempt: Attempt) -> None:
        context, submitter, self._attempt = attempt.context, attempt.submitter, attempt
        self.sleep, self.use_state, self.decode = context.io.sleep, context.io.use_state, context.io.decode
        self.abandon = context.io.abandon
        self.is_recorded = False
        self.record = AttemptRecord(
            attempt.workflow_id,
            f"{submitter.name}#{uuid4().hex[:12]}",
            submitter.generation,
            submitter.attempt_id,
            context.now(),
            # Within the bounds of the settings.
            context.settings.response_seconds + 2 * context.settings.timeout_seconds,
            attempt.payload_digest(),
            submitter.attempts.sequence + 1,
            submitter.clears,
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
        context, attempts = self._attempt.context, self._attempt.submitter.attempts
        sending = replace(self.record, sent_at=context.now())

        def decide(present: AttemptRecord | None) -> AttemptRecord | None:
            if present is None:
                return None if self.is_recorded else sending
            return sending if present.attempt_id == sending.attempt_id else present

        present = await use_state(context, partial(attempts.update, decide))
        if present is None:
            raise SupersededError(sending.workflow_id, self._attempt.submitter.name)
        if present is not sending:
            raise OtherAttemptError(present)
        self.is_recorded, self.record = True, sending
        # An attempt that has completed meanwhile has no pending record any more.
        known = await use_state(context, partial(attempts.read_kind, KNOWN))
        if known is not None and known.sequence >= sending.sequence:
            await use_state(context, partial(attempts.drop, sending.submission_id, sending.attempt_id))
            self.is_recorded = False
            raise OtherAttemptError(known)
        if attempts.task_state is not None:
            await use_state(context, partial(attempts.task_state.write, sending.to_dict()))


async def _join(attempt: Attempt, record: AttemptRecord, *, is_recorded: bool) -> Submission | None:
    """Return the execution of another attempt that was faster, or None when it is of no use.

    :param is_recorded: whether this attempt had a record, which the other one has taken over
    """
    if is_recorded and record.execution_id is None:
        raise SupersededError(attempt.workflow_id, attempt.submitter.name)
    log.warning("Another attempt of %s has requested an execution", attempt.submitter.name)
    try:
        return await reuse(attempt, record)
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
    return await _recover(attempt, io.record, loss, error)


async def _recover(
    attempt: Attempt, record: AttemptRecord, loss: LostResponse, error: TechFlowError | None = None
) -> Submission | None:
    """Return the execution of a request of this attempt, from the history; None when it had no effect."""
    try:
        return await _search(attempt, await take_over(attempt, record, accepted=loss.accepted), loss, error)
    except OtherAttemptError as other:
        return await _join(attempt, other.record, is_recorded=True)
    except StoreError as failure:
        reason = f"{loss.reason}, and the shared state can't be used: {failure}"
        raise AmbiguousExecutionError(record.workflow_id, reason) from failure


async def _search(
    attempt: Attempt, record: AttemptRecord, loss: LostResponse, error: TechFlowError | None
) -> Submission | None:
    if attempt.policy.on_ambiguous == "fail":
        raise AmbiguousExecutionError(attempt.workflow_id, loss.reason) from error
    if attempt.policy.defers_search:
        raise LostStartError(record, loss, error)
    found = await find(attempt, record, loss)
    if found is None:
        await _forget(attempt, record)
        return None
    return await keep(attempt, record, found)


async def _after_response(attempt: Attempt, record: AttemptRecord, start: calls.Start) -> Submission | None:
    """Return the execution that a response names, claimed."""
    execution, attempts = start.execution, attempt.submitter.attempts
    if execution is None:
        return await _recover(
            attempt, record, LostResponse("The response to the start named no execution", accepted=True)
        )
    claim = _claim(record, start)
    try:
        holder = await use_state(attempt.context, partial(attempts.claim, record.workflow_id, execution.id, claim))
    except StoreError as error:
        log.warning("Execution %s could not be claimed, so another task may adopt it: %s", execution.id, error)
        holder = claim
    named = replace(execution, workflow_id=execution.workflow_id or record.workflow_id)
    times = {"sent_at": start.sent_at.isoformat()}
    if holder.submission_id == record.submission_id:
        return await keep(attempt, record, Submission(named, Origin.STARTED, "the response named it", times))
    if not holder.by_response:
        # That task took it for its own, whose response was lost; this one takes what that one has started.
        reason = f"Execution {execution.id}, which the response names, was adopted by {holder.submission_id}"
        return await _recover(attempt, record, LostResponse(reason, accepted=True))
    if attempt.policy.on_shared == "fail":
        await _forget(attempt, record)
        raise SharedExecutionError(record.workflow_id, execution.id, holder.submission_id)
    return await keep(attempt, record, Submission(named, Origin.JOINED, f"{holder.submission_id} has it, too", times))


def _claim(record: AttemptRecord, start: calls.Start) -> Claim:
    began = None if start.execution is None else began_at(start.execution)
    requested = (start.sent_at.timestamp(), start.responded_at.timestamp() + 1.0)
    seconds = None if began is None else began.timestamp()
    return Claim(record.submission_id, True, requested, seconds, record.payload_digest)


async def _let_go(attempt: Attempt, io: _RecordingIO) -> None:
    """Delete the record of a request without effect."""
    if io.is_recorded:
        await _forget(attempt, io.record)


async def _forget(attempt: Attempt, record: AttemptRecord) -> None:
    """Record that a request had no effect."""
    try:
        await drop(attempt, record)
    except StoreError as error:
        name = attempt.submitter.name
        log.warning("The record of %s could not be deleted, so the next attempt searches in vain: %s", name, error)
