"""Get one execution for a submitter that needs one, whatever is lost on the way: reuse an earlier one, or start it.

Right before a request is sent, one update of the shared state records it, unless another attempt has a record there.
After the response the execution is claimed, and the record names it. Where no response comes, or a later attempt finds
a record without an execution, the history shows which execution it is (see `recovery`), or that there is none and the
request can be sent again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx

from techflow_provider.client import calls
from techflow_provider.client.errors import (
    AmbiguousExecutionError,
    SharedExecutionError,
    StateUnavailableError,
    SupersededError,
    TechFlowError,
)
from techflow_provider.client.flow import Call, FlowContext, exchange
from techflow_provider.client.history import History, HistoryFilter, has_status
from techflow_provider.client.models import Execution
from techflow_provider.client.reading import LONGEST_POLL_SECONDS, ReadTerms, read_history
from techflow_provider.client.retry import Outcome
from techflow_provider.client.text import get_logger
from techflow_provider.state.store import StoreError
from techflow_provider.submission.attempts import KNOWN, AttemptStore, use_state
from techflow_provider.submission.matching import Match, NoMatch
from techflow_provider.submission.model import Attempt, Origin, Submission
from techflow_provider.submission.records import AttemptRecord, Claim, payload_digest
from techflow_provider.submission.recovery import (
    HELD_UP_SECONDS,
    LostStart,
    LostStartError,
    OtherAttemptError,
    own_record,
    search,
    take_over,
)

log: logging.Logger = get_logger(__name__)

# How many requests are sent for one execution at most, each after the one before certainly had no effect.
MAX_SENDS = 3


async def resolve(attempt: Attempt) -> Submission | None:
    """Return the execution that an earlier attempt has started, or None when a new one is needed. Starts nothing.

    :raises TechFlowError: `AmbiguousExecutionError` when it cannot be determined, `StateUnavailableError` when the
        record can't be read, or what reading the history raises
    :raises LostStartError: the history has to be searched elsewhere
    """
    with _nothing_started(attempt):
        record = await use_state(attempt.context, attempt.attempts.read) or await _lost_record(attempt)
        return None if record is None else await _reuse(attempt, record)


async def send(attempt: Attempt, *, within_seconds: float = math.inf, sent: int = 0) -> Submission:
    """Start an execution (Trigger Execution) when `resolve` found none, and learn which one it is.

    :param within_seconds: how long to wait for a slot in the rate budget; without one nothing was started
    :param sent: how many requests without effect were sent before
    :raises TechFlowError: `AmbiguousExecutionError` when it cannot be determined what was started,
        `SharedExecutionError` when the server responded with the execution of another task, `StateUnavailableError`
        when nothing was sent, `SupersededError` when another attempt continues, or what the call raises
    :raises LostStartError: the history has to be searched elsewhere
    """
    found = await _join_running(attempt) if attempt.policy.reuse_running else None
    while found is None:
        io = _RecordingIO(attempt)
        context = replace(attempt.context, io=io, admission_seconds=within_seconds)
        try:
            start = await exchange(calls.execute_workflow(attempt.workflow_id, attempt.payload), context)
        except StoreError as error:
            await _let_go(attempt, io)
            raise StateUnavailableError(attempt.workflow_id, str(error)) from error
        except OtherAttemptError as other:
            found = await _join(attempt, other.record, is_recorded=io.is_recorded)
        except SupersededError:
            raise
        except TechFlowError as error:
            if error.had_no_effect:
                await _let_go(attempt, io)
                raise
            sent += 1
            record = replace(io.record, accepted=error.was_accepted)
            lost = LostStart(record, f"The response to the start is lost ({error})", sent, error)
            found = await finish_search(attempt, lost)
        else:
            found = await _after_response(attempt, io, start)
    return found


async def finish_search(attempt: Attempt, lost: LostStart, found: Match | NoMatch | None = None) -> Submission | None:
    """Return the execution of a lost start, claimed; None when it had no effect and can be sent again.

    :param found: what a search elsewhere has found
    :raises TechFlowError: as `send`
    :raises LostStartError: the history has to be searched elsewhere
    """
    submission = await _settle(attempt, lost.record, await _recover(attempt, lost, found))
    if submission is None and lost.sent >= MAX_SENDS and lost.error is not None:
        raise lost.error
    return submission


async def mark_done(context: FlowContext, attempts: AttemptStore, execution_id: str) -> Mapping[str, Any] | None:
    """Record that the submitter has got what it wanted, and return how it got its execution."""
    return await _amend(context, attempts, execution_id, done=True)


async def discard(context: FlowContext, attempts: AttemptStore, execution_id: str) -> None:
    """Let the next attempt start a new execution, because this one failed."""
    await _amend(context, attempts, execution_id, failed=True)


async def _amend(
    context: FlowContext, attempts: AttemptStore, execution_id: str, **changes: bool
) -> Mapping[str, Any] | None:
    try:
        record = await use_state(context, attempts.amend, execution_id, **changes)
    except StoreError as error:
        log.warning("The end of execution %s could not be recorded, so a retry reads it again: %s", execution_id, error)
        return None
    return None if record is None else record.report


@contextmanager
def _nothing_started(attempt: Attempt) -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise StateUnavailableError(attempt.workflow_id, str(error)) from error


# What an earlier attempt has left.


async def _lost_record(attempt: Attempt) -> AttemptRecord | None:
    """Return a record for earlier attempts without one, unless the shared state has certainly kept what they wrote."""
    began = attempt.submitter.began
    if began is None:
        return None
    kept_seconds = await use_state(attempt.context, attempt.attempts.oldest_seconds)
    if kept_seconds >= (attempt.context.now() - began).total_seconds():
        return None
    log.warning("The shared state is younger than the first attempt, so that a record of it may have been lost")
    return attempt.new_record(began, 0.0, is_restored=True, is_clock_kept=False)


async def _reuse(attempt: Attempt, record: AttemptRecord) -> Submission | None:
    """Return the execution of an earlier attempt's record, or None when it is of no use."""
    attempt.attempts.sequence = max(attempt.attempts.sequence, record.sequence)
    found = await _earlier(attempt, record) if _is_relevant(attempt, record) else None
    if found is not None and not _is_reusable(attempt, record, found.execution):
        execution = found.execution
        log.info("Execution %s of an earlier attempt is over (%s): a new one is needed", execution.id, execution.status)
        found = None
    return await _settle(attempt, record, found)


def _is_relevant(attempt: Attempt, record: AttemptRecord) -> bool:
    """Whether a record is about what the submitter wants now."""
    is_cleared = attempt.is_cleared_since(record)
    if record.failed or (record.done and is_cleared):
        return False
    named = f"execution {record.execution_id}" if record.execution_id else "an execution"
    if record.workflow_id != attempt.workflow_id:
        log.warning("An earlier attempt requested %s of workflow %s, which may keep running", named, record.workflow_id)
        return False
    if not attempt.policy.reattach:
        log.warning("An earlier attempt requested %s, which may keep running: reattach is off", named)
        return False
    if record.payload_digest != payload_digest(attempt.payload):
        is_cleared |= record.clears < attempt.submitter.clears
        then = "the task was cleared, so that it starts another" if is_cleared else "a retry joins it"
        log.warning("An earlier attempt requested %s with another payload, which may keep running: %s", named, then)
        return not is_cleared
    return True


def _is_reusable(attempt: Attempt, record: AttemptRecord, execution: Execution) -> bool:
    """Whether the execution of an earlier attempt is what the submitter needs now, and not a new one."""
    failed = attempt.policy.wait_for_completion and not has_status(execution, attempt.policy.accepted_statuses)
    return not (execution.ended and (failed or attempt.is_cleared_since(record)))


async def _earlier(attempt: Attempt, record: AttemptRecord) -> Submission | None:
    """Return the execution of an earlier attempt, as far as it is known; None when there is none."""
    if record.done:
        return _from_record(record, "an earlier attempt had completed, but its success was not noticed")
    if record.execution_id is None:
        try:
            reason = "An earlier attempt was lost before it knew the outcome of its request"
            return await _recover(attempt, LostStart(record, reason))
        except AmbiguousExecutionError as error:
            if not attempt.is_cleared_since(record):
                raise
            log.warning("The task was cleared, so that it starts a new execution, although %s", error)
            return None
    return await _read_execution(attempt, record, record.execution_id)


async def _read_execution(attempt: Attempt, record: AttemptRecord, execution_id: str) -> Submission | None:
    wanted = HistoryFilter(known_statuses={execution_id: None})
    history = await read_history(attempt.context, wanted, ReadTerms(LONGEST_POLL_SECONDS))
    # An id may be unique within its workflow only.
    listed = History(each for each in history.rows if each.workflow_id in (None, record.workflow_id))
    execution = listed.get(execution_id)
    if execution is not None:
        reason = f"an earlier attempt had started it, and the history shows it as {execution.status!r}"
        return _from_record(record, reason, execution)
    may_lag = attempt.context.now() - record.sent_at < timedelta(seconds=attempt.effect_seconds)
    if not attempt.is_cleared_since(record) or may_lag or execution_id not in history.unlisted:
        return _from_record(record, "an earlier attempt had started it, and the history doesn't show it yet")
    log.warning("Execution %s of an earlier attempt is not in the history: a new one is needed", execution_id)
    return None


def _from_record(record: AttemptRecord, reason: str, execution: Execution | None = None) -> Submission:
    named = execution or Execution(record.execution_id or "", record.workflow_id, None, None, None, None, {})
    return Submission(named, Origin.REATTACHED, reason, {"sent_at": record.sent_at.isoformat()})


# What came of a request.


class _RecordingIO:
    """An `IO` that records every request right before it is sent.

    :param attempt: sends the request
    """

    def __init__(self, attempt: Attempt) -> None:
        context, self._attempt = attempt.context, attempt
        self.sleep, self.use_state, self.decode = context.io.sleep, context.io.use_state, context.io.decode
        self.abandon = context.io.abandon
        self.is_recorded = False
        # Within the bounds of the settings.
        seconds = context.settings.response_seconds + 2 * context.settings.timeout_seconds
        self.record: AttemptRecord = attempt.new_record(context.now(), seconds)

    async def send(self, call: Call[Any], request: httpx.Request) -> Outcome:
        """Record the request and send it."""
        context, recorded_at = self._attempt.context, -math.inf
        # While a request is held up, others may act upon its record.
        while context.clock() - recorded_at >= HELD_UP_SECONDS:
            recorded_at = context.clock()
            await self._write()
        return await context.io.send(call, request)

    async def _write(self) -> None:
        attempt, attempts = self._attempt, self._attempt.attempts
        sending = replace(self.record, sent_at=attempt.context.now())

        def decide(present: AttemptRecord | None) -> AttemptRecord | None:
            if present is None:
                return None if self.is_recorded else sending
            return sending if present.attempt_id == sending.attempt_id else present

        present = await use_state(attempt.context, attempts.update, decide)
        if present is None:
            raise SupersededError(sending.workflow_id, attempt.submitter.name)
        if present is not sending:
            raise OtherAttemptError(present)
        self.is_recorded, self.record = True, sending
        # An attempt that has completed meanwhile has no pending record any more.
        known = await use_state(attempt.context, attempts.read_kind, KNOWN)
        if known is not None and known.sequence >= sending.sequence:
            await use_state(attempt.context, attempts.drop, sending.submission_id, sending.attempt_id)
            self.is_recorded = False
            raise OtherAttemptError(known)
        if attempts.task_state is not None:
            await use_state(attempt.context, attempts.keep_own, sending)


async def _join(attempt: Attempt, record: AttemptRecord, *, is_recorded: bool) -> Submission | None:
    """Return the execution of another attempt that was faster, or None when it is of no use.

    :param is_recorded: whether this attempt had a record, which the other one has taken over
    """
    if is_recorded and record.execution_id is None:
        raise SupersededError(attempt.workflow_id, attempt.submitter.name)
    log.warning("Another attempt of %s has requested an execution", attempt.submitter.name)
    with _nothing_started(attempt):
        return await _reuse(attempt, record)


async def _join_running(attempt: Attempt) -> Submission | None:
    """Return the workflow's latest execution that is running, recorded as the submitter's; None when none is."""
    context, workflow_id = attempt.context, attempt.workflow_id
    wanted = HistoryFilter(workflow_ids={workflow_id: None})
    history = await read_history(context, wanted, ReadTerms(LONGEST_POLL_SECONDS))
    execution = history.latest_running(workflow_id)
    if execution is None:
        if history.failure is not None:
            raise history.failure
        return None
    reason = f"it was running already, as the history shows it: {execution.status!r}"
    record = attempt.new_record(context.now(), 0.0)
    return await _keep(attempt, record, Submission(execution, Origin.JOINED, reason, {}))


async def _after_response(attempt: Attempt, io: _RecordingIO, start: calls.Start) -> Submission | None:
    """Return the execution that a response names, claimed."""
    record, execution = io.record, start.execution
    accepted = replace(record, accepted=True)
    if execution is None:
        return await finish_search(attempt, LostStart(accepted, "The response to the start named no execution"))
    attempt.on_known(execution)
    requested = (start.sent_at.timestamp(), start.responded_at.timestamp() + 1.0)
    claim = Claim(record.submission_id, True, requested, record.payload_digest)
    try:
        holder = await use_state(attempt.context, attempt.attempts.claim, record.workflow_id, execution.id, claim)
    except StoreError as error:
        log.warning("Execution %s could not be claimed, so another task may adopt it: %s", execution.id, error)
        holder = claim
    named = replace(execution, workflow_id=execution.workflow_id or record.workflow_id)
    times = {"sent_at": start.sent_at.isoformat()}
    if holder.submission_id == record.submission_id:
        return await _keep(attempt, record, Submission(named, Origin.STARTED, "the response named it", times))
    if not holder.by_response:
        # That task took it for its own, whose response was lost; this one takes what that one has started.
        reason = f"Execution {execution.id}, which the response names, was adopted by {holder.submission_id}"
        return await finish_search(attempt, LostStart(accepted, reason))
    if attempt.policy.on_shared == "fail":
        await _let_go(attempt, io)
        raise SharedExecutionError(record.workflow_id, execution.id, holder.submission_id)
    return await _keep(attempt, record, Submission(named, Origin.JOINED, f"{holder.submission_id} has it, too", times))


async def _recover(attempt: Attempt, lost: LostStart, found: Match | NoMatch | None = None) -> Submission | None:
    """Return the execution of a start whose outcome is unknown, claimed; None when it had no effect."""
    try:
        lost = replace(lost, record=await take_over(attempt, lost.record))
        found = found or await _search(attempt, lost)
        while isinstance(found, Match):
            submission = await _claim(attempt, lost, found)
            if submission is not None:
                return submission
            # Another task was faster.
            found = await _search(attempt, lost)
    except OtherAttemptError as other:
        return _from_record(other.record, "another attempt had learnt which execution it is")
    except StoreError as error:
        raise lost.ambiguous(f"the shared state can't be used: {error}") from error
    return None


async def _search(attempt: Attempt, lost: LostStart) -> Match | NoMatch:
    if attempt.policy.on_ambiguous == "fail":
        raise AmbiguousExecutionError(attempt.workflow_id, lost.reason) from lost.error
    # A task that was cleared decides here what to do when it can't be determined; most of the time has passed by then.
    if attempt.policy.defers_search and not attempt.is_cleared_since(lost.record):
        raise LostStartError(lost)
    return await search(attempt, lost)


async def _claim(attempt: Attempt, lost: LostStart, found: Match) -> Submission | None:
    """Claim the execution that a search has found; None when another task was faster."""
    record = await own_record(attempt, lost.record)
    claim = Claim(record.submission_id, payload_digest=record.payload_digest)
    holder = await use_state(attempt.context, attempt.attempts.claim, record.workflow_id, found.execution.id, claim)
    if holder.submission_id != record.submission_id:
        return None
    started = Origin.STARTED if record.accepted else Origin.ADOPTED
    origin = Origin.REATTACHED if found.is_own else started
    return Submission(found.execution, origin, f"{lost.reason}; {found.reason}", found.times)


async def _settle(attempt: Attempt, record: AttemptRecord, found: Submission | None) -> Submission | None:
    """Record what came of a request: its execution, or that nothing more is wanted from it."""
    if found is not None:
        return await _keep(attempt, record, found)
    if record.execution_id is None and not record.failed:
        with _nothing_started(attempt):
            await use_state(attempt.context, attempt.attempts.keep, record, replace(record, failed=True))
    return None


async def _keep(attempt: Attempt, record: AttemptRecord, found: Submission) -> Submission:
    """Record which execution the submitter has, unless another attempt has recorded something else."""
    attempt.on_known(found.execution)
    log.info("%s", found)
    submitter = attempt.submitter
    known = replace(
        record,
        attempt_id=submitter.attempt_id,
        generation=submitter.generation,
        clears=submitter.clears,
        execution_id=found.execution.id,
        report=found.to_dict(),
        done=not attempt.policy.wait_for_completion,
    )
    try:
        await use_state(attempt.context, attempt.attempts.keep, record, known)
    except StoreError as error:
        log.warning("Execution %s could not be recorded, so a retry may not find it: %s", found.execution.id, error)
    return found


async def _let_go(attempt: Attempt, io: _RecordingIO) -> None:
    """Delete the record of a request without effect."""
    try:
        if io.is_recorded:
            await use_state(attempt.context, attempt.attempts.keep, io.record, replace(io.record, failed=True))
    except StoreError as error:
        name = attempt.submitter.name
        log.warning("The record of %s could not be deleted, so the next attempt searches in vain: %s", name, error)
