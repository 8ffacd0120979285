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
    StateUnavailableError,
    SupersededError,
    TechFlowError,
)
from techflow_provider.client.flow import Call, FlowContext, exchange
from techflow_provider.client.retry import Outcome
from techflow_provider.client.text import get_logger
from techflow_provider.state.store import StoreError
from techflow_provider.submission.attempts import AttemptRecord, use_state
from techflow_provider.submission.model import Attempt, Origin, Submission
from techflow_provider.submission.recovery import HELD_UP_SECONDS, LostResponse, OtherAttemptError, find, take_over
from techflow_provider.submission.reuse import drop, keep, reuse

log: logging.Logger = get_logger(__name__)

# How many requests are sent for one execution at most, each after the one before certainly had no effect.
MAX_SENDS = 3


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
    return None if found is None else await keep(attempt, io.record, found)


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
        if attempts.task_state is not None:
            await use_state(context, partial(attempts.task_state.write, sending.to_dict()))


async def _join(attempt: Attempt, record: AttemptRecord, *, is_recorded: bool) -> Submission | None:
    """Return the execution of another attempt that was faster, or None when it is of no use.

    :param is_recorded: whether this attempt had a record, which the other one has taken over
    """
    if is_recorded and record.execution_id is None:
        raise SupersededError(attempt.workflow_id, attempt.submitter.name)
    log.warning("Another attempt of %s requested an execution meanwhile", attempt.submitter.name)
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
    execution, record, attempts = start.execution, io.record, attempt.submitter.attempts
    if execution is None:
        loss = LostResponse("The response to the start named no execution", accepted=True)
        return await find(attempt, await _take_over_lost(attempt, record, loss), loss)
    try:
        holder = await use_state(attempt.context, partial(attempts.claim, execution.id, record.submission_id))
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
        await drop(attempt, io.record)
    except StoreError as error:
        name = attempt.submitter.name
        log.warning("The record of %s could not be deleted, so the next attempt searches in vain: %s", name, error)
