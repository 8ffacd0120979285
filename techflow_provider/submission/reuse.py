"""Reuse the execution of an earlier attempt, and record which execution a submitter has."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from techflow_provider.client import calls
from techflow_provider.client.errors import AmbiguousExecutionError, StateUnavailableError
from techflow_provider.client.flow import FlowContext
from techflow_provider.client.history import ExecutionSelector, History
from techflow_provider.client.paging import collect
from techflow_provider.client.text import get_logger
from techflow_provider.state.store import StoreError
from techflow_provider.submission.attempts import AttemptRecord, use_state
from techflow_provider.submission.model import Attempt, Submission, Submitter, from_record, is_reusable
from techflow_provider.submission.recovery import LostResponse, OtherAttemptError, find, take_over

log: logging.Logger = get_logger(__name__)


async def resolve(attempt: Attempt) -> Submission | None:
    """Return the execution that an earlier attempt has started, or None when a new one is needed. Starts nothing.

    :raises TechFlowError: `AmbiguousExecutionError` when it cannot be determined, `StateUnavailableError` when the
        record can't be read, or what reading the history raises
    """
    try:
        record = await use_state(attempt.context, attempt.submitter.attempts.read)
        if record is None and attempt.submitter.is_retry:
            record = await use_state(attempt.context, attempt.submitter.attempts.migrate)
        return await reuse(attempt, record)
    except StoreError as error:
        raise StateUnavailableError(attempt.workflow_id, str(error)) from error


async def reuse(attempt: Attempt, record: AttemptRecord | None) -> Submission | None:
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
            return await keep(attempt, record, found)
        record = await drop(attempt, record)
    return None


async def drop(attempt: Attempt, record: AttemptRecord) -> AttemptRecord | None:
    return await use_state(attempt.context, partial(attempt.submitter.attempts.drop, record))


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


async def keep(attempt: Attempt, record: AttemptRecord, found: Submission) -> Submission:
    """Record which execution the submitter has, unless another attempt has recorded something else."""
    log.info("%s", found)
    attempts = attempt.submitter.attempts
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
        stored = await use_state(attempt.context, partial(attempts.update, decide))
        if stored is known and attempts.task_state is not None:
            await use_state(attempt.context, partial(attempts.task_state.write, known.to_dict()))
    except StoreError as error:
        log.warning("Execution %s could not be recorded, so a retry may not find it: %s", found.execution.id, error)
    return found


async def mark_done(context: FlowContext, submitter: Submitter, execution_id: str) -> Mapping[str, Any] | None:
    """Record that the submitter has got what it wanted, and return how it got its execution."""
    try:
        record = await use_state(
            context, partial(submitter.attempts.amend, execution_id, lambda found: replace(found, done=True))
        )
    except StoreError as error:
        log.warning("The completion of %s could not be recorded, so a retry polls again: %s", submitter.name, error)
        return None
    return None if record is None else record.report


async def discard(context: FlowContext, submitter: Submitter, execution_id: str) -> None:
    """Let the next attempt start a new execution, because this one failed."""
    try:
        await use_state(context, partial(submitter.attempts.amend, execution_id, lambda _: None))
    except StoreError as error:
        log.warning(
            "The record of %s could not be deleted, so the next attempt reads it again: %s", submitter.name, error
        )
