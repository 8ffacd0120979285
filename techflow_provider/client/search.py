"""Look for the execution of a task whose answer is lost, until it can be told; a conversation, without I/O."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

from techflow_provider.client import calls
from techflow_provider.client.adoption import (
    Found,
    Later,
    Missing,
    Reading,
    Rival,
    Search,
    Unclear,
    Window,
    judge,
    possible,
)
from techflow_provider.client.errors import AmbiguousExecutionError, SupersededError, TechFlowError
from techflow_provider.client.exchange import Ask, Conversation, Sleep, Terms, pages
from techflow_provider.client.models import Execution
from techflow_provider.client.patience import backoff_seconds, passes
from techflow_provider.client.started import Decision, Rules, Started, Task
from techflow_provider.state.records import Intent
from techflow_provider.state.store import StoreError

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
class Loss:
    """Why a task does not know its execution.

    :param facts: what happened, in words
    :param accepted: whether the server has surely started one
    """

    facts: str
    accepted: bool = False


def ask(act: Callable[[], T]) -> Conversation[T]:
    """Carry out an operation on the shared state, again when it fails in passing.

    :raises StoreError: it fails still
    """
    for pause in STATE_PAUSES:
        answer = yield Ask(act)
        if not isinstance(answer, StoreError):
            result: T = answer
            return result
        yield Sleep(pause)
    answer = yield Ask(act)
    if isinstance(answer, StoreError):
        raise answer
    last: T = answer
    return last


def find(terms: Terms, task: Task, rules: Rules, intent: Intent, loss: Loss) -> Conversation[Started | None]:
    """Return the execution that the task's request started, claimed for it, or None when it started none.

    :param intent: the task's intent, as `Intent.looking` has it
    :raises TechFlowError: `AmbiguousExecutionError` when it can't be told, `SupersededError` when another try looks for
        it, or what reading the history raises
    """
    try:
        return (yield from _find(terms, task, rules, intent, loss))
    except StoreError as error:
        facts = f"{loss.facts}, and the shared state can't be used: {error}"
        raise AmbiguousExecutionError(intent.workflow_id, facts) from error


def _find(terms: Terms, task: Task, rules: Rules, intent: Intent, loss: Loss) -> Conversation[Started | None]:
    effect_seconds = rules.effect_seconds(terms.settings)
    log.warning("%s: looking for the execution of workflow %s in the history", loss.facts, intent.workflow_id)
    pauses, told = 0, ""
    while True:
        own = yield from _own_intent(task, intent)
        early = own.since_sent < effect_seconds
        began = terms.clock()
        executions, at = yield from _read_history(terms, intent.workflow_id, loss)
        arrived = terms.clock()
        intents = yield from ask(lambda: task.records.intents(intent.workflow_id))
        if terms.clock() - arrived > HELD_UP_SECONDS:
            continue
        reading = Reading(executions, at, terms.now(), terms.clock() - began)
        search = yield from _search(task, intent, intents, reading, effect_seconds)
        verdict = judge(search, early=early)
        match verdict:
            case Found(execution):
                if (yield from _claimed(task, intent, execution)):
                    return _started(verdict, search, loss, at)
            case Missing():
                _tell_nothing(search, loss, effect_seconds)
                return None
            case Unclear(facts):
                raise AmbiguousExecutionError(intent.workflow_id, f"{loss.facts}, and {facts}")
            case Later(reason):
                if reason != told:
                    log.info("It can't be told yet: %s", reason)
                told = reason
                yield Sleep(min(FIRST_PAUSE_SECONDS * 2.0 ** min(pauses, 10), LONGEST_PAUSE_SECONDS))
                pauses += 1


def _claimed(task: Task, intent: Intent, execution: Execution) -> Conversation[bool]:
    holder = yield from ask(lambda: task.records.claim(execution.id, intent.ticket))
    return holder == intent.ticket


def _own_intent(task: Task, intent: Intent) -> Conversation[Intent]:
    own = yield from ask(lambda: task.records.intent(task.name))
    if own is None or own.author != task.author:
        raise SupersededError(intent.workflow_id, task.name)
    return own


def _read_history(terms: Terms, workflow_id: str, loss: Loss) -> Conversation[tuple[tuple[Execution, ...], datetime]]:
    """Return the history, for which it may take a while, and the server's clock when it began to answer.

    :raises TechFlowError: `AmbiguousExecutionError` when it can't be read, or why it never will be
    """
    deadline, failures = terms.clock() + UNREADABLE_SECONDS, 0
    while True:
        try:
            read = yield from pages(calls.list_executions(), terms)
        except TechFlowError as error:
            if not passes(error):
                raise
            if terms.clock() > deadline:
                facts = f"{loss.facts}, and the history can't be read: {error}"
                raise AmbiguousExecutionError(workflow_id, facts) from error
            log.warning("A look at the execution history failed and is repeated: %s", error)
            failures += 1
            yield Sleep(backoff_seconds(FIRST_PAUSE_SECONDS, failures))
        else:
            return tuple(item for page in read for item in page.items), read[0].answered_at


def _search(
    task: Task, intent: Intent, intents: list[Intent], reading: Reading, effect_seconds: float
) -> Conversation[Search]:
    """Return all that is known once the claims are read, too.

    The intents were read after the history, since whoever started what it shows has written one before; the claims come
    last, since an intent is dropped only after its execution was claimed.
    """
    windows = [(each, Window.of(each, reading, effect_seconds)) for each in intents if each.maybe_sent]
    own = next((each for each in windows if each[0].task == task.name), None)
    if own is None:
        raise SupersededError(intent.workflow_id, task.name)
    rivals = tuple(Rival(*each) for each in windows if each is not own)
    bare = Search(*own, reading.executions, rivals, {})
    names = [each.id for each in reading.executions if possible(each, bare)]
    holders = yield from ask(lambda: {name: task.records.holder(name) for name in names})
    return replace(bare, holders={name: holder for name, holder in holders.items() if holder is not None})


def _started(found: Found, search: Search, loss: Loss, at: datetime) -> Started:
    known = search.claimed() is not None
    decision = Decision.REATTACHED if known else Decision.STARTED if loss.accepted else Decision.ADOPTED
    doubt = "" if known else "; a run that somebody else started then can't be told from it"
    times = {
        "looked_from": search.window.since.isoformat(),
        "looked_until": search.window.until.isoformat(),
        "looked_at": at.isoformat(),
    }
    return Started(found.execution, decision, f"{loss.facts}; {found.facts}{doubt}", times)


def _tell_nothing(search: Search, loss: Loss, effect_seconds: float) -> None:
    window = f"none that nobody claims appeared in the history within {effect_seconds:.0f} s, from {search.window}"
    if loss.accepted:
        raise AmbiguousExecutionError(search.intent.workflow_id, f"{loss.facts}, and {window}")
    log.warning("%s, and %s: it started none", loss.facts, window)


def lease_seconds(terms: Terms) -> float:
    """Return how long after a request has left its answer may come, by the bounds of the settings."""
    return terms.settings.response_seconds + 2 * terms.settings.timeout_seconds
