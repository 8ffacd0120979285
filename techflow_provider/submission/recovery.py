"""Look for the execution of a task whose answer is lost, until it can be told; a conversation, without I/O."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

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
from techflow_provider.state.records import Intent
from techflow_provider.state.store import StoreError
from techflow_provider.submission.matching import (
    Ambiguous,
    CompetingIntent,
    HistorySnapshot,
    Match,
    MatchInput,
    NoMatch,
    Undecided,
    Window,
    match_execution,
    possible,
)
from techflow_provider.submission.model import Origin, Submission, SubmissionPolicy, Submitter

T = TypeVar("T")

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 15.0
# A history that can't be read is tried for so long.
UNREADABLE_SECONDS = 600.0
# Who is held up longer than this between two steps that belong together begins with the first of them again. It is far
# more than they take, and far less than others wait.
HELD_UP_SECONDS = 5.0
# State that can't be used is tried again after these seconds.
STATE_PAUSES = (0.1, 0.4, 1.5, 4.0)


@dataclass(frozen=True, slots=True)
class LostResponse:
    """Why a task does not know its execution.

    :param facts: what happened, in words
    :param accepted: whether the server has surely started one
    """

    facts: str
    accepted: bool = False


async def ask(context: FlowContext, act: Callable[[], T]) -> T:
    """Carry out an operation on the shared state, again when it fails in passing.

    :raises StoreError: it fails still
    """
    for pause in STATE_PAUSES:
        try:
            return await context.io.use_state(act)
        except StoreError:
            await context.io.sleep(pause)
    return await context.io.use_state(act)


async def find(
    context: FlowContext, task: Submitter, rules: SubmissionPolicy, intent: Intent, loss: LostResponse
) -> Submission | None:
    """Return the execution that the task's request started, claimed for it, or None when it started none.

    :param intent: the task's intent, as `Intent.looking` has it
    :raises TechFlowError: `AmbiguousExecutionError` when it can't be told, `SupersededError` when another try looks for
        it, or what reading the history raises
    """
    try:
        return await _find(context, task, rules, intent, loss)
    except StoreError as error:
        facts = f"{loss.facts}, and the shared state can't be used: {error}"
        raise AmbiguousExecutionError(intent.workflow_id, facts) from error


async def _find(
    context: FlowContext, task: Submitter, rules: SubmissionPolicy, intent: Intent, loss: LostResponse
) -> Submission | None:
    effect_seconds = rules.effect_seconds(context.settings)
    log.warning("%s: looking for the execution of workflow %s in the history", loss.facts, intent.workflow_id)
    pauses, told = 0, ""
    while True:
        own = await _own_intent(context, task, intent)
        early = own.since_sent < effect_seconds
        began = context.clock()
        executions, at = await _read_history(context, intent.workflow_id, loss)
        arrived = context.clock()
        intents = await ask(context, lambda: task.records.intents(intent.workflow_id))
        if context.clock() - arrived > HELD_UP_SECONDS:
            continue
        reading = HistorySnapshot(executions, at, context.now(), context.clock() - began)
        search = await _search(context, task, intent, intents, reading, effect_seconds)
        verdict = match_execution(search, early=early)
        match verdict:
            case Match(execution):
                if await _claimed(context, task, intent, execution):
                    return _started(verdict, search, loss, at)
            case NoMatch():
                _tell_nothing(search, loss, effect_seconds)
                return None
            case Ambiguous(facts):
                raise AmbiguousExecutionError(intent.workflow_id, f"{loss.facts}, and {facts}")
            case Undecided(reason):
                if reason != told:
                    log.info("It can't be told yet: %s", reason)
                told = reason
                await context.io.sleep(min(FIRST_PAUSE_SECONDS * 2.0 ** min(pauses, 10), LONGEST_PAUSE_SECONDS))
                pauses += 1


async def _claimed(context: FlowContext, task: Submitter, intent: Intent, execution: Execution) -> bool:
    holder = await ask(context, lambda: task.records.claim(execution.id, intent.ticket))
    return holder == intent.ticket


async def _own_intent(context: FlowContext, task: Submitter, intent: Intent) -> Intent:
    own = await ask(context, lambda: task.records.intent(task.name))
    if own is None or own.author != task.author:
        raise SupersededError(intent.workflow_id, task.name)
    return own


async def _read_history(
    context: FlowContext, workflow_id: str, loss: LostResponse
) -> tuple[tuple[Execution, ...], datetime]:
    """Return the history, for which it may take a while, and the server's clock when it began to answer.

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
                facts = f"{loss.facts}, and the history can't be read: {error}"
                raise AmbiguousExecutionError(workflow_id, facts) from error
            log.warning("Polling the execution history failed and is retried: %s", error)
            failures += 1
            await context.io.sleep(backoff_seconds(FIRST_PAUSE_SECONDS, failures))
        else:
            return tuple(item for page in read for item in page.items), read[0].server_time


async def _search(
    context: FlowContext,
    task: Submitter,
    intent: Intent,
    intents: list[Intent],
    reading: HistorySnapshot,
    effect_seconds: float,
) -> MatchInput:
    """Return all that is known once the claims are read, too.

    The intents were read after the history, since whoever started what it shows has written one before; the claims come
    last, since an intent is dropped only after its execution was claimed.
    """
    windows = [(each, Window.of(each, reading, effect_seconds)) for each in intents if each.maybe_sent]
    own = next((each for each in windows if each[0].task == task.name), None)
    if own is None:
        raise SupersededError(intent.workflow_id, task.name)
    rivals = tuple(CompetingIntent(*each) for each in windows if each is not own)
    bare = MatchInput(*own, reading.executions, rivals, {})
    names = [each.id for each in reading.executions if possible(each, bare)]
    holders = await ask(context, lambda: {name: task.records.holder(name) for name in names})
    return replace(bare, holders={name: holder for name, holder in holders.items() if holder is not None})


def _started(found: Match, search: MatchInput, loss: LostResponse, at: datetime) -> Submission:
    known = search.claimed() is not None
    decision = Origin.REATTACHED if known else Origin.STARTED if loss.accepted else Origin.ADOPTED
    doubt = "" if known else "; a run that somebody else started then can't be told from it"
    times = {
        "looked_from": search.window.since.isoformat(),
        "looked_until": search.window.until.isoformat(),
        "looked_at": at.isoformat(),
    }
    return Submission(found.execution, decision, f"{loss.facts}; {found.facts}{doubt}", times)


def _tell_nothing(search: MatchInput, loss: LostResponse, effect_seconds: float) -> None:
    window = f"none that nobody claims appeared in the history within {effect_seconds:.0f} s, from {search.window}"
    if loss.accepted:
        raise AmbiguousExecutionError(search.intent.workflow_id, f"{loss.facts}, and {window}")
    log.warning("%s, and %s: it started none", loss.facts, window)


def lease_seconds(context: FlowContext) -> float:
    """Return how long after a request has left its answer may come, by the bounds of the settings."""
    return context.settings.response_seconds + 2 * context.settings.timeout_seconds
