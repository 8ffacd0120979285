"""Reuse the execution of an earlier attempt, and record which execution a submitter has."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import uuid4

from techflow_provider.client import calls
from techflow_provider.client.errors import AmbiguousExecutionError, StateUnavailableError, TechFlowError
from techflow_provider.client.flow import FlowContext
from techflow_provider.client.history import History
from techflow_provider.client.paging import collect
from techflow_provider.client.text import get_logger
from techflow_provider.state.store import StoreError
from techflow_provider.submission.attempts import use_state
from techflow_provider.submission.model import Attempt, Submission, Submitter, from_record, is_reusable
from techflow_provider.submission.records import AttemptRecord
from techflow_provider.submission.recovery import LostResponse, OtherAttemptError, find, take_over

log: logging.Logger = get_logger(__name__)


class LostStartError(Exception):
    """The execution of a start has to be searched for, elsewhere.

    :param record: the start's record, taken over
    :param loss: why its execution is unknown
    :param error: what the request raised, when it was this attempt's
    """

    def __init__(self, record: AttemptRecord, loss: LostResponse, error: TechFlowError | None = None) -> None:
        super().__init__(loss.reason)
        self.record = record
        self.loss = loss
        self.error = error
        self.sent: int = 0


async def resolve(attempt: Attempt) -> Submission | None:
    """Return the execution that an earlier attempt has started, or None when a new one is needed. Starts nothing.

    :raises TechFlowError: `AmbiguousExecutionError` when it cannot be determined, `StateUnavailableError` when the
        record can't be read, or what reading the history raises
    :raises LostStartError: the history has to be searched elsewhere
    """
    attempts = attempt.submitter.attempts
    if not attempt.submitter.is_retry:
        # `send` reads the record right before its request.
        return None
    try:
        record = await use_state(attempt.context, attempts.read)
        record = record or await use_state(attempt.context, attempts.migrate) or await _lost_record(attempt)
        return await reuse(attempt, record)
    except StoreError as error:
        raise StateUnavailableError(attempt.workflow_id, str(error)) from error


async def _lost_record(attempt: Attempt) -> AttemptRecord | None:
    """Return a record for earlier attempts without one, unless the shared state has certainly kept what they wrote."""
    submitter, context = attempt.submitter, attempt.context
    if submitter.began is None:
        return None
    seconds = await use_state(context, submitter.attempts.oldest_seconds)
    if seconds >= (context.now() - submitter.began).total_seconds():
        return None
    log.warning("The shared state is younger than the first attempt, so that a record of it may have been lost")
    return AttemptRecord(
        attempt.workflow_id,
        f"{submitter.name}#{uuid4().hex[:12]}",
        submitter.generation,
        submitter.attempt_id,
        submitter.began,
        0.0,
        attempt.payload_digest(),
        submitter.attempts.sequence + 1,
        submitter.clears,
        is_restored=True,
        is_clock_kept=False,
    )


async def reuse(attempt: Attempt, record: AttemptRecord | None) -> Submission | None:
    """Return the execution of an earlier attempt's record, or None when it is of no use."""
    attempts = attempt.submitter.attempts
    while record is not None:
        attempts.sequence = max(attempts.sequence, record.sequence)
        found = None
        try:
            if _is_relevant(record, attempt):
                found = await _execution_of(attempt, record)
        except OtherAttemptError as other:
            record = other.record
            continue
        except AmbiguousExecutionError as error:
            if not attempt.is_cleared_since(record):
                raise
            log.warning("The task was cleared, so that it starts a new execution, although %s", error)
        if found is not None:
            return await keep(attempt, record, found)
        await drop(attempt, record)
        return None
    return None


async def drop(attempt: Attempt, record: AttemptRecord) -> None:
    """Record that nothing more is wanted from a request whose execution isn't known."""
    if record.execution_id is None and not record.failed:
        following = replace(record, failed=True)
        await use_state(attempt.context, partial(attempt.submitter.attempts.keep, record, following))


def _is_relevant(record: AttemptRecord, attempt: Attempt) -> bool:
    """Whether a record is about what the submitter wants now."""
    if record.failed:
        return False
    named = f"execution {record.execution_id}" if record.execution_id else "an execution"
    if record.workflow_id != attempt.workflow_id:
        log.warning("An earlier attempt requested %s of workflow %s, which may keep running", named, record.workflow_id)
        return False
    if not attempt.policy.reattach:
        log.warning("An earlier attempt requested %s, which may keep running: reattach is off", named)
        return False
    if record.payload_digest != attempt.payload_digest():
        is_cleared = attempt.is_cleared_since(record) or record.clears < attempt.submitter.clears
        then = "the task was cleared, so that it starts another" if is_cleared else "a retry joins it"
        log.warning("An earlier attempt requested %s with another payload, which may keep running: %s", named, then)
        return not is_cleared
    return True


async def _execution_of(attempt: Attempt, record: AttemptRecord) -> Submission | None:
    """Return the execution of an earlier attempt when it is what the submitter needs now."""
    same_generation = not attempt.is_cleared_since(record)
    if record.done:
        reason = "an earlier attempt had completed, but its success was not noticed"
        return from_record(record, reason) if same_generation else None
    if record.execution_id is None:
        found = await _recover(attempt, await take_over(attempt, record))
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
    loss = LostResponse("An earlier attempt was lost before it knew the outcome of its request", record.accepted)
    if attempt.policy.on_ambiguous == "fail":
        raise AmbiguousExecutionError(record.workflow_id, loss.reason)
    # A task that was cleared decides here what to do when it can't be determined; most of the time has passed by then.
    if attempt.policy.defers_search and not attempt.is_cleared_since(record):
        raise LostStartError(record, loss)
    return await find(attempt, record, loss)


async def _read_execution(attempt: Attempt, record: AttemptRecord) -> Submission | None:
    listed = await collect(calls.list_executions(), attempt.context)
    # An id may be unique within its workflow only.
    history = History(each for each in listed if each.workflow_id in (None, record.workflow_id))
    execution = history.get(record.execution_id or "")
    if execution is not None:
        reason = f"an earlier attempt had started it, and the history shows it as {execution.status!r}"
        return from_record(record, reason, execution)
    may_lag = attempt.context.now() - record.sent_at < timedelta(seconds=attempt.effect_seconds)
    if not attempt.is_cleared_since(record) or may_lag:
        return from_record(record, "an earlier attempt had started it, and the history doesn't show it yet")
    log.warning("Execution %s of an earlier attempt is not in the history: a new one is needed", record.execution_id)
    return None


async def keep(attempt: Attempt, record: AttemptRecord, found: Submission) -> Submission:
    """Record which execution the submitter has, unless another attempt has recorded something else."""
    log.info("%s", found)
    known = replace(
        record,
        attempt_id=attempt.submitter.attempt_id,
        generation=attempt.submitter.generation,
        clears=attempt.submitter.clears,
        execution_id=found.execution.id,
        report=found.to_dict(),
        done=not attempt.policy.wait_for_completion,
    )
    try:
        await use_state(attempt.context, partial(attempt.submitter.attempts.keep, record, known))
    except StoreError as error:
        log.warning("Execution %s could not be recorded, so a retry may not find it: %s", found.execution.id, error)
    return found


async def mark_done(context: FlowContext, submitter: Submitter, execution_id: str) -> Mapping[str, Any] | None:
    """Record that the submitter has got what it wanted, and return how it got its execution."""
    try:
        record = await use_state(context, partial(submitter.attempts.amend, execution_id, done=True))
    except StoreError as error:
        log.warning("The completion of %s could not be recorded, so a retry polls again: %s", submitter.name, error)
        return None
    return None if record is None else record.report


async def discard(context: FlowContext, submitter: Submitter, execution_id: str) -> None:
    """Let the next attempt start a new execution, because this one failed."""
    try:
        await use_state(context, partial(submitter.attempts.amend, execution_id, failed=True))
    except StoreError as error:
        log.warning(
            "The failure of %s could not be recorded, so the next attempt reads it again: %s", submitter.name, error
        )
