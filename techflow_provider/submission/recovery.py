"""Search the history for the execution of a submission whose response is lost, until it can be determined."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from techflow_provider.client import calls
from techflow_provider.client.errors import (
    AmbiguousExecutionError,
    SupersededError,
    TechFlowError,
)
from techflow_provider.client.flow import FlowContext
from techflow_provider.client.models import Execution
from techflow_provider.client.paging import read_pages
from techflow_provider.client.retry import backoff_seconds
from techflow_provider.client.text import get_logger
from techflow_provider.state.store import StoreError
from techflow_provider.submission.attempts import AttemptRecord, use_state
from techflow_provider.submission.matching import (
    Ambiguous,
    CompetingIntent,
    HistorySnapshot,
    Match,
    MatchInput,
    NoMatch,
    Undecided,
    Window,
    match,
)
from techflow_provider.submission.model import Attempt, Origin, Submission

log: logging.Logger = get_logger(__name__)

FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 15.0
# How long an unreadable history is read again.
UNREADABLE_SECONDS = 600.0
# A process that is held up longer than this between two steps that belong together repeats the first of them. It is
# far more than they take, and far less than others wait.
HELD_UP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class LostResponse:
    """Why a submission's execution is unknown.

    :param reason: what happened
    :param accepted: whether the server has certainly started one
    """

    reason: str
    accepted: bool = False


class OtherAttemptError(Exception):
    """Another attempt of the submitter has a record where this one expected its own, or none.

    :param record: the other attempt's record
    """

    def __init__(self, record: AttemptRecord) -> None:
        super().__init__(record)
        self.record = record


async def take_over(attempt: Attempt, record: AttemptRecord) -> AttemptRecord:
    """Make a record without an execution this attempt's, so that the one that wrote it sends nothing more.

    :raises OtherAttemptError: it names an execution by now, or another submission has taken its place
    """
    attempt_id = attempt.submitter.attempt_id

    def decide(present: AttemptRecord | None) -> AttemptRecord:
        is_other = present is not None and present.submission_id != record.submission_id
        if present is None or (is_other and record.is_restored):
            return record.taken_over(attempt_id)
        return present if is_other or present.execution_id is not None else present.taken_over(attempt_id)

    present = await use_state(attempt.context, partial(attempt.submitter.attempts.update, decide))
    if present is not None and present.attempt_id == attempt_id:
        return present
    raise OtherAttemptError(present or record)


async def find(attempt: Attempt, record: AttemptRecord, loss: LostResponse) -> Submission | None:
    """Return the execution that a submission's request started, claimed for it, or None when it started none.

    :param record: the submission's record, as `take_over` returns it
    :raises TechFlowError: `AmbiguousExecutionError` when it cannot be determined, `SupersededError` when another
        attempt searches for it, or what reading the history raises
    :raises OtherAttemptError: another attempt has learnt which execution it is
    """
    try:
        return await _find(attempt, record, loss)
    except StoreError as error:
        reason = f"{loss.reason}, and the shared state can't be used: {error}"
        raise AmbiguousExecutionError(record.workflow_id, reason) from error


async def _find(attempt: Attempt, record: AttemptRecord, loss: LostResponse) -> Submission | None:
    context, effect_seconds = attempt.context, attempt.effect_seconds
    log.warning("%s: searching the history for the execution of workflow %s", loss.reason, record.workflow_id)
    polls, logged = 0, ""
    while True:
        own = await _own_record(attempt, record)
        early = own.since_sent < effect_seconds
        began = context.clock()
        executions, at = await _read_history(context, record.workflow_id, loss)
        arrived = context.clock()
        pending = await use_state(attempt.context, partial(attempt.submitter.attempts.pending, record.workflow_id))
        if context.clock() - arrived > HELD_UP_SECONDS:
            continue
        snapshot = HistorySnapshot(executions, at, context.now(), context.clock() - began)
        search = await _match_input(attempt, record, pending, snapshot)
        if search is None:
            continue
        result = match(search, early=early)
        match result:
            case Match(execution):
                if await _claim(attempt, record, execution):
                    return _submission(result, search, loss, at)
            case NoMatch():
                _conclude_none(search, loss, effect_seconds)
                return None
            case Ambiguous(reason):
                raise AmbiguousExecutionError(record.workflow_id, f"{loss.reason}, and {reason}")
            case Undecided(reason):
                if reason != logged:
                    log.info("The execution cannot be determined yet: %s", reason)
                logged = reason
                await context.io.sleep(min(FIRST_DELAY_SECONDS * 2.0 ** min(polls, 10), LONGEST_DELAY_SECONDS))
                polls += 1


async def _claim(attempt: Attempt, record: AttemptRecord, execution: Execution) -> bool:
    holder = await use_state(
        attempt.context, partial(attempt.submitter.attempts.claim, execution.id, record.submission_id)
    )
    return holder == record.submission_id


async def _own_record(attempt: Attempt, record: AttemptRecord) -> AttemptRecord:
    """Return the submission's record as it is stored now.

    :raises OtherAttemptError: another attempt has learnt which execution it is
    :raises SupersededError: another attempt searches for it, or has given it up
    """
    own = await use_state(attempt.context, attempt.submitter.attempts.read_shared)
    if own is not None and own.attempt_id == attempt.submitter.attempt_id:
        return own
    if own is not None and own.submission_id == record.submission_id and own.execution_id is not None:
        raise OtherAttemptError(own)
    raise SupersededError(record.workflow_id, attempt.submitter.name)


async def _read_history(
    context: FlowContext, workflow_id: str, loss: LostResponse
) -> tuple[tuple[Execution, ...], datetime]:
    """Return the history, however long that takes, and the server's clock when it began to respond.

    :raises TechFlowError: `AmbiguousExecutionError` when it can't be read, or why it never will be
    """
    deadline, failures = context.clock() + UNREADABLE_SECONDS, 0
    while True:
        try:
            read = await read_pages(calls.list_executions(), context)
        except TechFlowError as error:
            if not error.is_transient:
                raise
            if context.clock() > deadline:
                reason = f"{loss.reason}, and the history can't be read: {error}"
                raise AmbiguousExecutionError(workflow_id, reason) from error
            log.warning("Polling the execution history failed and is retried: %s", error)
            failures += 1
            await context.io.sleep(backoff_seconds(FIRST_DELAY_SECONDS, failures))
        else:
            return tuple(item for page in read for item in page.items), read[0].server_time


async def _match_input(
    attempt: Attempt, record: AttemptRecord, pending: list[AttemptRecord], snapshot: HistorySnapshot
) -> MatchInput | None:
    """Return all that is known once the claims are read as well; None when the submission's record has changed.

    The records were read after the history, since whoever started what it shows has written one before; the claims come
    last, since a record names its execution only after that was claimed.
    """
    intents = [CompetingIntent(each, Window.of(each, snapshot, attempt.effect_seconds)) for each in pending]
    own = next((each for each in intents if each.record.submission_id == record.submission_id), None)
    if own is None:
        return None
    competing = tuple(each for each in intents if each.record.submission_id != record.submission_id)
    search = MatchInput(own.record, own.window, snapshot.executions, competing, {})
    possible = [each.id for each in snapshot.executions if search.is_possible(each)]
    return replace(
        search, holders=await use_state(attempt.context, partial(attempt.submitter.attempts.holders, possible))
    )


def _submission(found: Match, search: MatchInput, loss: LostResponse, at: datetime) -> Submission:
    known = search.claimed() is not None
    origin = Origin.REATTACHED if known else Origin.STARTED if loss.accepted else Origin.ADOPTED
    doubt = "" if known else "; an execution that somebody else started then can't be distinguished from it"
    times = {
        "looked_from": search.window.since.isoformat(),
        "looked_until": search.window.until.isoformat(),
        "looked_at": at.isoformat(),
    }
    return Submission(found.execution, origin, f"{loss.reason}; {found.reason}{doubt}", times)


def _conclude_none(search: MatchInput, loss: LostResponse, effect_seconds: float) -> None:
    """Log that the request had no effect.

    :raises AmbiguousExecutionError: it certainly had one
    """
    none = f"no unclaimed one appeared in the history within {effect_seconds:.0f} s, from {search.window}"
    if loss.accepted:
        raise AmbiguousExecutionError(search.record.workflow_id, f"{loss.reason}, and {none}")
    log.warning("%s, and %s: it started none", loss.reason, none)
