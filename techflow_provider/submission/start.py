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

import httpx

from techflow_provider.client import calls
from techflow_provider.client.errors import (
    AmbiguousExecutionError,
    StateUnavailableError,
    SupersededError,
    TechFlowError,
)
from techflow_provider.client.flow import IO, Call, Flow, FlowContext, exchange
from techflow_provider.client.history import ExecutionSelector, History
from techflow_provider.client.operations import AsyncWorkflows
from techflow_provider.client.paging import collect
from techflow_provider.client.parsing import Json
from techflow_provider.client.retry import Outcome
from techflow_provider.state.records import Intent
from techflow_provider.state.store import StoreError
from techflow_provider.submission.attempts import AttemptRecord
from techflow_provider.submission.model import (
    Origin,
    Submission,
    SubmissionPolicy,
    Submitter,
    from_record,
    is_reusable,
    payload_digest_of,
)
from techflow_provider.submission.recovery import HELD_UP_SECONDS, LostResponse, ask, find, lease_seconds

T = TypeVar("T")

log = logging.getLogger(__name__)

# So many requests are sent for one execution at most, each after the one before surely had no effect.
MAX_SENDS = 3
RESUBMIT_SECONDS = 1.0


async def resolve(
    context: FlowContext,
    task: Submitter,
    rules: SubmissionPolicy,
    workflow_id: str,
    payload: Mapping[str, Json] | None = None,
) -> Submission | None:
    """Return the execution that an earlier try has started, or None when the task needs a new one. Starts nothing.

    :raises TechFlowError: `AmbiguousExecutionError` when it can't be told, `StateUnavailableError` when the note can't
        be read, or what reading the history raises
    """
    try:
        return await _resolve(context, task, rules, workflow_id, payload_digest_of(payload))
    except StoreError as error:
        if rules.on_ambiguous != "resubmit":
            raise StateUnavailableError(workflow_id, str(error)) from error
        log.warning("What earlier tries have started is not known, since the shared state can't be used: %s", error)
        return None


async def _resolve(
    context: FlowContext, task: Submitter, rules: SubmissionPolicy, workflow_id: str, digest: str | None
) -> Submission | None:
    note = await ask(context, task.attempts.read)
    if note is None:
        return None
    found = None
    if _concerns(note, task, rules, workflow_id, digest):
        found = await _earlier(context, task, rules, note)
    if found is None:
        await _forget(context, task, note)
        return None
    return await _keep(context, task, note, found)


def _concerns(
    note: AttemptRecord, task: Submitter, rules: SubmissionPolicy, workflow_id: str, digest: str | None
) -> bool:
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


async def _earlier(
    context: FlowContext, task: Submitter, rules: SubmissionPolicy, note: AttemptRecord
) -> Submission | None:
    """Return the execution of an earlier try when it is what the task needs now."""
    same_round = note.round == task.round
    if note.ended:
        return (
            from_record(note, "an earlier try had done with it, but its success was not noticed")
            if same_round
            else None
        )
    if note.execution_id is None:
        found = await _recover(context, task, rules, note)
    elif same_round and not rules.until_end:
        found = from_record(note, "an earlier try had started it")
    else:
        found = await _look_up(context, rules, note, task)
    if found is None or is_reusable(found.execution, note, task, rules):
        return found
    log.info(
        "Execution %s of an earlier try is over (%s): a new one is needed", found.execution.id, found.execution.status
    )
    return None


async def _look_up(
    context: FlowContext, rules: SubmissionPolicy, note: AttemptRecord, task: Submitter
) -> Submission | None:
    history = History(await collect(calls.list_executions(), context))
    execution = history.find(ExecutionSelector(note.execution_id))
    if execution is not None:
        facts = f"an earlier try had started it, and the history shows it as {execution.status!r}"
        return replace(from_record(note, facts), execution=execution)
    may_lag = context.now() - note.noted_at < timedelta(seconds=rules.effect_seconds(context.settings))
    if note.round == task.round or may_lag:
        return from_record(note, "an earlier try had started it, and the history does not show it yet")
    log.warning("Execution %s of an earlier try is no longer in the history: a new one is needed", note.execution_id)
    return None


async def _recover(
    context: FlowContext, task: Submitter, rules: SubmissionPolicy, note: AttemptRecord
) -> Submission | None:
    """Return the execution of a try that ended before it knew the outcome of its request."""
    intent = await _take_over(context, task, note)
    loss = LostResponse("An earlier try ended before it knew the outcome of its request")
    if not intent.maybe_sent:
        log.info("An earlier try ended before it sent its request")
        return None
    # Clearing the task is how a person says that nothing was started.
    if rules.on_ambiguous == "resubmit" or (rules.on_ambiguous == "fail" and note.round != task.round):
        log.warning("%s; it is sent again", loss.facts)
        return None
    if rules.on_ambiguous == "fail":
        raise AmbiguousExecutionError(note.workflow_id, loss.facts)
    return await find(context, task, rules, intent, loss)


async def _take_over(context: FlowContext, task: Submitter, note: AttemptRecord) -> Intent:
    """Make the intent of a note this try's, so that an earlier one that is still alive sends nothing more."""
    while True:
        standing = await ask(context, lambda: task.records.intent(task.name))
        if standing is not None and standing.ticket == note.ticket:
            following = standing.looking(task.author)
        else:
            # Nothing tells when the request left: the intent is kept on another host, or was lost.
            following = replace(_intent(context, task, note), sent_at=note.noted_at, lost=True)
        if await _put(context, task, standing, following):
            return following


async def _put(context: FlowContext, task: Submitter, standing: Intent | None, following: Intent) -> bool:
    if standing is not None:
        return await ask(context, lambda: task.records.replace(standing, following))
    begun = await ask(context, lambda: task.records.begin(following))
    return begun.author == task.author


def _intent(context: FlowContext, task: Submitter, note: AttemptRecord) -> Intent:
    return Intent(task.name, note.ticket, note.workflow_id, task.author, lease_seconds(context), note.payload_digest)


async def send(
    context: FlowContext,
    task: Submitter,
    rules: SubmissionPolicy,
    workflow_id: str,
    payload: Mapping[str, Json] | None = None,
    *,
    within_seconds: float = math.inf,
) -> Submission:
    """Start an execution (Trigger Execution) when `resolve` found none, and learn which one it is.

    :param within_seconds: how long to wait for a slot in the rate budget; without one nothing was started
    :raises TechFlowError: `AmbiguousExecutionError` when it can't be told what was started, `StateUnavailableError`
        when nothing was sent, `SupersededError` when another try goes on, or what the call raises
    """
    call = calls.execute_workflow(workflow_id, payload)
    bounded = replace(context, admission_seconds=within_seconds)
    for sent in range(1, MAX_SENDS + 1):
        note = AttemptRecord(
            task.account, workflow_id, task.new_ticket(), task.round, context.now(), payload_digest_of(payload)
        )
        try:
            found = await _begin(context, task, rules, note)
        except StoreError as error:
            if rules.on_ambiguous != "resubmit":
                raise StateUnavailableError(workflow_id, str(error)) from error
            return await _send_without_state(context, workflow_id, payload, within_seconds, error)
        if found is None:
            try:
                guarded = _GuardedIO(
                    context.io, lambda: _before_sending(context, task, rules, workflow_id), context.clock
                )
                start = await exchange(call, replace(bounded, io=guarded))
            except TechFlowError as error:
                found = await _after_error(context, task, rules, note, error)
                if found is None and sent == MAX_SENDS:
                    raise
            else:
                found = await _after_answer(context, task, rules, note, start)
        if found is not None:
            return await _keep(context, task, note, found)
    raise AmbiguousExecutionError(workflow_id, f"{MAX_SENDS} were started, and other tasks adopted them")


async def _begin(
    context: FlowContext, task: Submitter, rules: SubmissionPolicy, note: AttemptRecord
) -> Submission | None:
    """Write note and intent; return the execution that another try of the task is found to have started meanwhile."""
    await ask(context, lambda: task.attempts.write(note))
    standing = await ask(context, lambda: task.records.begin(_intent(context, task, note)))
    if standing.author == task.author:
        return None
    log.warning("Another try of %s was about to start an execution of workflow %s", task.name, standing.workflow_id)
    other = replace(
        note, ticket=standing.ticket, workflow_id=standing.workflow_id, payload_digest=standing.payload_digest
    )
    await ask(context, lambda: task.attempts.write(other))
    found = None
    if standing.workflow_id == note.workflow_id:
        found = await _recover(context, task, rules, other)
    if found is not None:
        return found
    await _forget(context, task, other)
    return await _begin(context, task, rules, note)


async def _send_without_state(
    context: FlowContext, workflow_id: str, payload: Mapping[str, Json] | None, within_seconds: float, error: StoreError
) -> Submission:
    log.warning("An execution is started without a record of it, since the shared state can't be used: %s", error)
    execution = await AsyncWorkflows(context).execute(workflow_id, payload, within_seconds)
    return Submission(execution, Origin.STARTED, "the answer named it, and nothing could be written down")


class _GuardedIO:
    """An `IO` that writes something down before each request.

    A process that was held up in between does it again: what it has written may have been acted upon. It has nothing to
    lose when it could write nothing.
    """

    def __init__(self, io: IO, before: Callable[[], Flow[bool]], clock: Callable[[], float]) -> None:
        self._before = before
        self._clock = clock
        self._io = io
        self.sleep, self.use_state, self.decode = io.sleep, io.use_state, io.decode

    async def send(self, call: Call[Any], request: httpx.Request) -> Outcome:
        written, began = True, -math.inf
        while written and self._clock() - began >= HELD_UP_SECONDS:
            began = self._clock()
            written = await self._before()
        return await self._io.send(call, request)


async def _before_sending(context: FlowContext, task: Submitter, rules: SubmissionPolicy, workflow_id: str) -> bool:
    """Write down that a request leaves now, unless another try has taken over; return whether it could be written."""
    try:
        standing = await ask(context, lambda: task.records.intent(task.name))
        mine = standing is not None and standing.author == task.author
        if standing is None or not mine or not (await _put(context, task, standing, standing.sending(context.now()))):
            raise SupersededError(workflow_id, task.name)
    except StoreError as error:
        if rules.on_ambiguous != "resubmit":
            raise StateUnavailableError(workflow_id, str(error)) from error
        log.warning("A request leaves without a record of it, since the shared state can't be used: %s", error)
        return False
    return True


async def _after_error(
    context: FlowContext, task: Submitter, rules: SubmissionPolicy, note: AttemptRecord, error: TechFlowError
) -> Submission | None:
    """Return the execution that was started all the same, or None when the request is to be sent again."""
    if isinstance(error, SupersededError | StateUnavailableError):
        raise error
    if error.had_no_effect:
        await _let_go(context, task, note)
        raise error
    loss = LostResponse(f"The answer to the start is lost ({error})", error.was_accepted)
    intent = await _looking(context, task, note, loss)
    if rules.on_ambiguous == "fail":
        raise AmbiguousExecutionError(note.workflow_id, loss.facts) from error
    if rules.on_ambiguous == "resubmit" and not loss.accepted:
        log.warning("%s; it is sent again", loss.facts)
        found = None
        await context.io.sleep(RESUBMIT_SECONDS)
    else:
        found = await find(context, task, rules, intent, loss)
    if found is None:
        await _let_go(context, task, note)
    return found


async def _looking(context: FlowContext, task: Submitter, note: AttemptRecord, loss: LostResponse) -> Intent:
    try:
        return await _take_over(context, task, note)
    except StoreError as error:
        facts = f"{loss.facts}, and the shared state can't be used: {error}"
        raise AmbiguousExecutionError(note.workflow_id, facts) from error


async def _after_answer(
    context: FlowContext, task: Submitter, rules: SubmissionPolicy, note: AttemptRecord, start: calls.Start
) -> Submission | None:
    """Return the execution that an answer names, claimed; None when another task has taken it and another is needed."""
    execution = start.execution
    if execution is None:
        loss = LostResponse("The answer to the start named no execution", accepted=True)
        return await find(context, task, rules, (await _looking(context, task, note, loss)), loss)
    try:
        holder = await ask(context, lambda: task.records.claim(execution.id, note.ticket))
    except StoreError as error:
        log.warning("Execution %s could not be claimed, so another task may adopt it: %s", execution.id, error)
        holder = note.ticket
    if holder == note.ticket:
        named = replace(execution, workflow_id=execution.workflow_id or note.workflow_id)
        return Submission(named, Origin.STARTED, "the answer named it", {"sent_at": start.sent_at.isoformat()})
    loss = LostResponse(f"Execution {execution.id}, which the answer names, was adopted by {holder}")
    if note.payload_digest is not None:
        raise AmbiguousExecutionError(note.workflow_id, loss.facts)
    found = await find(context, task, rules, (await _looking(context, task, note, loss)), loss)
    if found is None:
        await _let_go(context, task, note)
    return found


async def _keep(context: FlowContext, task: Submitter, note: AttemptRecord, started: Submission) -> Submission:
    """Write down which execution the task has, and drop the intent."""
    log.info("%s", started)
    execution_id, told = started.execution.id, started.to_dict()
    known = replace(note, round=task.round, execution_id=execution_id, told=told)
    try:
        await ask(context, lambda: task.attempts.write(known))
        standing = await ask(context, lambda: task.records.intent(task.name))
        # That of another try is left to it: it looks for the execution that is claimed now.
        if standing is not None and standing.author == task.author:
            await ask(context, lambda: task.records.finish(standing))
    except StoreError as error:
        log.warning("Execution %s could not be written down, so a retry may not find it: %s", execution_id, error)
    return started


async def _forget(context: FlowContext, task: Submitter, note: AttemptRecord) -> None:
    """Drop a note and its intent, unless another try has written others since.

    The note goes last, since an intent without one would be taken for another try's.
    """
    standing = await ask(context, lambda: task.records.intent(task.name))
    if standing is not None and standing.ticket == note.ticket:
        await ask(context, lambda: task.records.finish(standing))
    kept = await ask(context, task.attempts.read)
    if kept is not None and kept.ticket == note.ticket:
        await ask(context, task.attempts.drop)


async def _let_go(context: FlowContext, task: Submitter, note: AttemptRecord) -> None:
    try:
        await _forget(context, task, note)
    except StoreError as error:
        log.warning("The note of %s could not be dropped, so the next try looks at it again: %s", task.name, error)


async def discard(context: FlowContext, task: Submitter, execution_id: str) -> None:
    """Let the next try need a new execution, because this one failed."""
    try:
        note = await ask(context, task.attempts.read)
        if note is not None and note.execution_id == execution_id:
            await _forget(context, task, note)
    except StoreError as error:
        log.warning("The note of %s could not be dropped, so the next try looks at it again: %s", task.name, error)


async def mark_done(context: FlowContext, task: Submitter, execution_id: str) -> Mapping[str, Any] | None:
    """Note that the task has got what it wanted, and return what was told of how it came to its execution."""
    try:
        note = await ask(context, task.attempts.read)
        if note is None or note.execution_id != execution_id:
            return None
        await ask(context, lambda: task.attempts.write(replace(note, ended=True)))
    except StoreError as error:
        log.warning("The end of %s could not be written down, so clearing it may not start anew: %s", task.name, error)
        return None
    return note.told
