"""Start one execution for a task that needs one, whatever is lost on the way; conversations, without I/O.

Before the request the task writes a note for its later tries and an intent for other tasks; after the answer it claims
the execution, notes its id, and drops the intent. Where no answer comes, or a later try finds a note without an id, the
history tells which execution it is (see `adoption`), or that there is none and the request can be sent again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

from techflow_provider.client import calls
from techflow_provider.client.errors import (
    AmbiguousExecutionError,
    StateUnavailableError,
    SupersededError,
    TechFlowError,
)
from techflow_provider.client.exchange import Conversation, Send, Sleep, Terms, collect, exchange
from techflow_provider.client.history import History, Target
from techflow_provider.client.operations import start_execution
from techflow_provider.client.patience import had_no_effect, was_accepted
from techflow_provider.client.search import HELD_UP_SECONDS, Loss, ask, find, lease_seconds
from techflow_provider.client.shapes import Json
from techflow_provider.client.started import Decision, Rules, Started, Task, digest_of, from_note, serves
from techflow_provider.state.notes import Note
from techflow_provider.state.records import Intent
from techflow_provider.state.store import StoreError

T = TypeVar("T")

log = logging.getLogger(__name__)

# So many requests are sent for one execution at most, each after the one before surely had no effect.
MAX_SENDS = 3
RESUBMIT_SECONDS = 1.0


def resolve(
    terms: Terms, task: Task, rules: Rules, workflow_id: str, payload: Mapping[str, Json] | None = None
) -> Conversation[Started | None]:
    """Return the execution that an earlier try has started, or None when the task needs a new one. Starts nothing.

    :raises TechFlowError: `AmbiguousExecutionError` when it can't be told, `StateUnavailableError` when the note can't
        be read, or what reading the history raises
    """
    try:
        return (yield from _resolve(terms, task, rules, workflow_id, digest_of(payload)))
    except StoreError as error:
        if rules.on_ambiguous != "resubmit":
            raise StateUnavailableError(workflow_id, str(error)) from error
        log.warning("What earlier tries have started is not known, since the shared state can't be used: %s", error)
        return None


def _resolve(
    terms: Terms, task: Task, rules: Rules, workflow_id: str, digest: str | None
) -> Conversation[Started | None]:
    note = yield from ask(task.notebook.read)
    if note is None:
        return None
    found = None
    if _concerns(note, task, rules, workflow_id, digest):
        found = yield from _earlier(terms, task, rules, note)
    if found is None:
        yield from _forget(task, note)
        return None
    return (yield from _keep(task, note, found))


def _concerns(note: Note, task: Task, rules: Rules, workflow_id: str, digest: str | None) -> bool:
    """Whether a note is about what the task wants now."""
    named = f"execution {note.execution_id}" if note.execution_id else "an execution"
    if (note.account, note.workflow_id) != (task.account, workflow_id):
        log.warning("An earlier try wanted %s of workflow %s, which may go on", named, note.workflow_id)
        return False
    if not rules.reattach:
        log.warning("An earlier try wanted %s, which may go on: reattach is off", named)
        return False
    if note.payload_digest != digest:
        log.warning("An earlier try wanted %s with another payload than the present one", named)
    return True


def _earlier(terms: Terms, task: Task, rules: Rules, note: Note) -> Conversation[Started | None]:
    """Return the execution of an earlier try when it is what the task needs now."""
    same_round = note.round == task.round
    if note.ended:
        return (
            from_note(note, "an earlier try had done with it, but its success was not noticed") if same_round else None
        )
    if note.execution_id is None:
        found = yield from _recover(terms, task, rules, note)
    elif same_round and not rules.until_end:
        found = from_note(note, "an earlier try had started it")
    else:
        found = yield from _look_up(terms, rules, note, task)
    if found is None or serves(found.execution, note, task, rules):
        return found
    log.info(
        "Execution %s of an earlier try is over (%s): a new one is needed", found.execution.id, found.execution.status
    )
    return None


def _look_up(terms: Terms, rules: Rules, note: Note, task: Task) -> Conversation[Started | None]:
    history = History((yield from collect(calls.list_executions(), terms)))
    execution = history.find(Target(note.execution_id))
    if execution is not None:
        facts = f"an earlier try had started it, and the history shows it as {execution.status!r}"
        return replace(from_note(note, facts), execution=execution)
    may_lag = terms.now() - note.noted_at < timedelta(seconds=rules.effect_seconds(terms.settings))
    if note.round == task.round or may_lag:
        return from_note(note, "an earlier try had started it, and the history does not show it yet")
    log.warning("Execution %s of an earlier try is no longer in the history: a new one is needed", note.execution_id)
    return None


def _recover(terms: Terms, task: Task, rules: Rules, note: Note) -> Conversation[Started | None]:
    """Return the execution of a try that ended before it knew the outcome of its request."""
    intent = yield from _take_over(terms, task, note)
    loss = Loss("An earlier try ended before it knew the outcome of its request")
    if not intent.maybe_sent:
        log.info("An earlier try ended before it sent its request")
        return None
    # Clearing the task is how a person says that nothing was started.
    if rules.on_ambiguous == "resubmit" or (rules.on_ambiguous == "fail" and note.round != task.round):
        log.warning("%s; it is sent again", loss.facts)
        return None
    if rules.on_ambiguous == "fail":
        raise AmbiguousExecutionError(note.workflow_id, loss.facts)
    return (yield from find(terms, task, rules, intent, loss))


def _take_over(terms: Terms, task: Task, note: Note) -> Conversation[Intent]:
    """Make the intent of a note this try's, so that an earlier one that is still alive sends nothing more."""
    while True:
        standing = yield from ask(lambda: task.records.intent(task.name))
        if standing is not None and standing.ticket == note.ticket:
            following = standing.looking(task.author)
        else:
            # Nothing tells when the request left: the intent is kept on another host, or was lost.
            following = replace(_intent(terms, task, note), sent_at=note.noted_at, lost=True)
        if (yield from _put(task, standing, following)):
            return following


def _put(task: Task, standing: Intent | None, following: Intent) -> Conversation[bool]:
    if standing is not None:
        return (yield from ask(lambda: task.records.replace(standing, following)))
    begun = yield from ask(lambda: task.records.begin(following))
    return begun.author == task.author


def _intent(terms: Terms, task: Task, note: Note) -> Intent:
    return Intent(task.name, note.ticket, note.workflow_id, task.author, lease_seconds(terms), note.payload_digest)


def send(
    terms: Terms,
    task: Task,
    rules: Rules,
    workflow_id: str,
    payload: Mapping[str, Json] | None = None,
    *,
    within_seconds: float = math.inf,
) -> Conversation[Started]:
    """Start an execution (Trigger Execution) when `resolve` found none, and learn which one it is.

    :param within_seconds: how long to wait for a slot in the rate budget; without one nothing was started
    :raises TechFlowError: `AmbiguousExecutionError` when it can't be told what was started, `StateUnavailableError`
        when nothing was sent, `SupersededError` when another try goes on, or what the call raises
    """
    call = calls.execute_workflow(workflow_id, payload)
    bounded = replace(terms, admission_seconds=within_seconds)
    for sent in range(1, MAX_SENDS + 1):
        note = Note(task.account, workflow_id, task.new_ticket(), task.round, terms.now(), digest_of(payload))
        try:
            found = yield from _begin(terms, task, rules, note)
        except StoreError as error:
            if rules.on_ambiguous != "resubmit":
                raise StateUnavailableError(workflow_id, str(error)) from error
            return (yield from _send_without_state(terms, workflow_id, payload, within_seconds, error))
        if found is None:
            try:
                start = yield from _guarded(
                    exchange(call, bounded), lambda: _before_sending(terms, task, rules, workflow_id), terms.clock
                )
            except TechFlowError as error:
                found = yield from _after_error(terms, task, rules, note, error)
                if found is None and sent == MAX_SENDS:
                    raise
            else:
                found = yield from _after_answer(terms, task, rules, note, start)
        if found is not None:
            return (yield from _keep(task, note, found))
    raise AmbiguousExecutionError(workflow_id, f"{MAX_SENDS} were started, and other tasks adopted them")


def _begin(terms: Terms, task: Task, rules: Rules, note: Note) -> Conversation[Started | None]:
    """Write note and intent; return the execution that another try of the task is found to have started meanwhile."""
    yield from ask(lambda: task.notebook.write(note))
    standing = yield from ask(lambda: task.records.begin(_intent(terms, task, note)))
    if standing.author == task.author:
        return None
    log.warning("Another try of %s was about to start an execution of workflow %s", task.name, standing.workflow_id)
    other = replace(
        note, ticket=standing.ticket, workflow_id=standing.workflow_id, payload_digest=standing.payload_digest
    )
    yield from ask(lambda: task.notebook.write(other))
    found = None
    if standing.workflow_id == note.workflow_id:
        found = yield from _recover(terms, task, rules, other)
    if found is not None:
        return found
    yield from _forget(task, other)
    return (yield from _begin(terms, task, rules, note))


def _send_without_state(
    terms: Terms, workflow_id: str, payload: Mapping[str, Json] | None, within_seconds: float, error: StoreError
) -> Conversation[Started]:
    log.warning("An execution is started without a record of it, since the shared state can't be used: %s", error)
    execution = yield from start_execution(terms, workflow_id, payload, within_seconds)
    return Started(execution, Decision.STARTED, "the answer named it, and nothing could be written down")


def _guarded(
    conversation: Conversation[T], before: Callable[[], Conversation[bool]], clock: Callable[[], float]
) -> Conversation[T]:
    """Go through a conversation, with another one before each request.

    A process that was held up in between goes through it again: what it has written may have been acted upon. It has
    nothing to lose when it could write nothing.
    """
    answer: Any = None
    while True:
        try:
            step = conversation.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        while isinstance(step, Send):
            began = clock()
            written = yield from before()
            if not written or clock() - began < HELD_UP_SECONDS:
                break
        answer = yield step


def _before_sending(terms: Terms, task: Task, rules: Rules, workflow_id: str) -> Conversation[bool]:
    """Write down that a request leaves now, unless another try has taken over; return whether it could be written."""
    try:
        standing = yield from ask(lambda: task.records.intent(task.name))
        mine = standing is not None and standing.author == task.author
        if standing is None or not mine or not (yield from _put(task, standing, standing.sending(terms.now()))):
            raise SupersededError(workflow_id, task.name)
    except StoreError as error:
        if rules.on_ambiguous != "resubmit":
            raise StateUnavailableError(workflow_id, str(error)) from error
        log.warning("A request leaves without a record of it, since the shared state can't be used: %s", error)
        return False
    return True


def _after_error(
    terms: Terms, task: Task, rules: Rules, note: Note, error: TechFlowError
) -> Conversation[Started | None]:
    """Return the execution that was started all the same, or None when the request is to be sent again."""
    if isinstance(error, SupersededError | StateUnavailableError):
        raise error
    if had_no_effect(error):
        yield from _let_go(task, note)
        raise error
    loss = Loss(f"The answer to the start is lost ({error})", was_accepted(error))
    intent = yield from _looking(terms, task, note, loss)
    if rules.on_ambiguous == "fail":
        raise AmbiguousExecutionError(note.workflow_id, loss.facts) from error
    if rules.on_ambiguous == "resubmit" and not loss.accepted:
        log.warning("%s; it is sent again", loss.facts)
        found = None
        yield Sleep(RESUBMIT_SECONDS)
    else:
        found = yield from find(terms, task, rules, intent, loss)
    if found is None:
        yield from _let_go(task, note)
    return found


def _looking(terms: Terms, task: Task, note: Note, loss: Loss) -> Conversation[Intent]:
    try:
        return (yield from _take_over(terms, task, note))
    except StoreError as error:
        facts = f"{loss.facts}, and the shared state can't be used: {error}"
        raise AmbiguousExecutionError(note.workflow_id, facts) from error


def _after_answer(
    terms: Terms, task: Task, rules: Rules, note: Note, start: calls.Start
) -> Conversation[Started | None]:
    """Return the execution that an answer names, claimed; None when another task has taken it and another is needed."""
    execution = start.execution
    if execution is None:
        loss = Loss("The answer to the start named no execution", accepted=True)
        return (yield from find(terms, task, rules, (yield from _looking(terms, task, note, loss)), loss))
    try:
        holder = yield from ask(lambda: task.records.claim(execution.id, note.ticket))
    except StoreError as error:
        log.warning("Execution %s could not be claimed, so another task may adopt it: %s", execution.id, error)
        holder = note.ticket
    if holder == note.ticket:
        named = replace(execution, workflow_id=execution.workflow_id or note.workflow_id)
        return Started(named, Decision.STARTED, "the answer named it", {"sent_at": start.sent_at.isoformat()})
    loss = Loss(f"Execution {execution.id}, which the answer names, was adopted by {holder}")
    if note.payload_digest is not None:
        raise AmbiguousExecutionError(note.workflow_id, loss.facts)
    found = yield from find(terms, task, rules, (yield from _looking(terms, task, note, loss)), loss)
    if found is None:
        yield from _let_go(task, note)
    return found


def _keep(task: Task, note: Note, started: Started) -> Conversation[Started]:
    """Write down which execution the task has, and drop the intent."""
    log.info("%s", started)
    execution_id, told = started.execution.id, started.to_dict()
    known = replace(note, round=task.round, execution_id=execution_id, told=told)
    try:
        yield from ask(lambda: task.notebook.write(known))
        standing = yield from ask(lambda: task.records.intent(task.name))
        # That of another try is left to it: it looks for the execution that is claimed now.
        if standing is not None and standing.author == task.author:
            yield from ask(lambda: task.records.finish(standing))
    except StoreError as error:
        log.warning("Execution %s could not be written down, so a retry may not find it: %s", execution_id, error)
    return started


def _forget(task: Task, note: Note) -> Conversation[None]:
    """Drop a note and its intent, unless another try has written others since.

    The note goes last, since an intent without one would be taken for another try's.
    """
    standing = yield from ask(lambda: task.records.intent(task.name))
    if standing is not None and standing.ticket == note.ticket:
        yield from ask(lambda: task.records.finish(standing))
    kept = yield from ask(task.notebook.read)
    if kept is not None and kept.ticket == note.ticket:
        yield from ask(task.notebook.drop)


def _let_go(task: Task, note: Note) -> Conversation[None]:
    try:
        yield from _forget(task, note)
    except StoreError as error:
        log.warning("The note of %s could not be dropped, so the next try looks at it again: %s", task.name, error)


def give_up(task: Task, execution_id: str) -> Conversation[None]:
    """Let the next try need a new execution, because this one failed."""
    try:
        note = yield from ask(task.notebook.read)
        if note is not None and note.execution_id == execution_id:
            yield from _forget(task, note)
    except StoreError as error:
        log.warning("The note of %s could not be dropped, so the next try looks at it again: %s", task.name, error)


def conclude(task: Task, execution_id: str) -> Conversation[Mapping[str, Any] | None]:
    """Note that the task has got what it wanted, and return what was told of how it came to its execution."""
    try:
        note = yield from ask(task.notebook.read)
        if note is None or note.execution_id != execution_id:
            return None
        yield from ask(lambda: task.notebook.write(replace(note, ended=True)))
    except StoreError as error:
        log.warning("The end of %s could not be written down, so clearing it may not start anew: %s", task.name, error)
        return None
    return note.told
