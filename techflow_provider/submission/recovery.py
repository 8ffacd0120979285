"""Search the history for the execution of a submission whose response is lost, until it can be determined.

`search` only reads, so that a triggerer may run it, even twice at once. `find` searches and claims what was found.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from techflow_provider.client.errors import AmbiguousExecutionError, SupersededError, TechFlowError
from techflow_provider.client.flow import FlowContext
from techflow_provider.client.history import History, HistoryFilter
from techflow_provider.client.models import Execution
from techflow_provider.client.parsing import Json, get_first
from techflow_provider.client.reading import LONGEST_POLL_SECONDS, poll_history
from techflow_provider.client.retry import backoff_seconds
from techflow_provider.client.text import get_logger
from techflow_provider.state.store import StoreError
from techflow_provider.submission.attempts import use_state
from techflow_provider.submission.matching import (
    Ambiguous,
    CompetingIntent,
    HistorySnapshot,
    Match,
    MatchInput,
    NoMatch,
    Row,
    Undecided,
    describe,
    match,
    sent_at,
    window_of,
)
from techflow_provider.submission.model import Attempt, Origin, Submission
from techflow_provider.submission.records import AttemptRecord, Claim, payload_digest
from techflow_provider.submission.times import ServerClock, Span, began_at

log: logging.Logger = get_logger(__name__)

FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 15.0
# How long an unreadable history is read again.
UNREADABLE_SECONDS = 600.0
# A process that is held up longer than this between two steps that belong together repeats the first of them. It is
# far more than they take, and far less than others wait.
HELD_UP_SECONDS = 5.0
# The executions of the history whose claims show how its times are to be read.
CALIBRATIONS = 10
# A history with so many executions may be one that shows no more.
SMALLEST_LIMIT = 20
ECHO_NAMES = ("payload", "input", "inputs", "params", "data")


@dataclass(frozen=True, slots=True)
class LostResponse:
    """Why a submission's execution is unknown.

    :param reason: what happened
    :param accepted: whether the server has certainly started one
    """

    reason: str
    accepted: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search.

    :param match: the execution, or that there is none
    :param times: the instants that it rests on, by name, in ISO 8601
    """

    match: Match | NoMatch
    times: dict[str, str]


class OtherAttemptError(Exception):
    """Another attempt of the submitter has a record where this one expected its own, or none.

    :param record: the other attempt's record
    """

    def __init__(self, record: AttemptRecord) -> None:
        super().__init__(record)
        self.record = record


async def take_over(attempt: Attempt, record: AttemptRecord, *, accepted: bool = False) -> AttemptRecord:
    """Make a record without an execution this attempt's, so that the one that wrote it sends nothing more.

    :raises OtherAttemptError: it names an execution by now, or another submission has taken its place
    """
    attempts, attempt_id = attempt.submitter.attempts, attempt.submitter.attempt_id

    def decide(present: AttemptRecord | None) -> AttemptRecord | None:
        if present is None:
            return record.taken_over(attempt_id, accepted=accepted) if record.is_restored else None
        is_other = present.submission_id != record.submission_id
        return present if is_other else present.taken_over(attempt_id, accepted=accepted)

    present = await use_state(attempt.context, partial(attempts.update, decide))
    if present is not None and present.attempt_id == attempt_id:
        return present
    known = present or await use_state(attempt.context, attempts.read_shared)
    if known is None:
        return await _restore(attempt, record.taken_over(attempt_id, accepted=accepted))
    raise OtherAttemptError(known)


async def _restore(attempt: Attempt, record: AttemptRecord) -> AttemptRecord:
    """Write a record that the shared state has lost, and with it maybe the claims of other tasks."""
    lost = replace(record, is_restored=True, lost=True, is_clock_kept=False)
    log.error(
        "The shared state has lost the record of %s: nothing is started while an execution fits", record.submission_id
    )
    present = await use_state(
        attempt.context, partial(attempt.submitter.attempts.update, lambda present: present or lost)
    )
    if present is None or present.attempt_id != record.attempt_id:
        raise SupersededError(record.workflow_id, attempt.submitter.name)
    return present


async def find(attempt: Attempt, record: AttemptRecord, loss: LostResponse) -> Submission | None:
    """Return the execution that a submission's request started, claimed for it, or None when it started none.

    :param record: the submission's record, as `take_over` returns it
    :raises TechFlowError: `AmbiguousExecutionError` when it cannot be determined, `SupersededError` when another
        attempt searches for it, or what reading the history raises
    :raises OtherAttemptError: another attempt has learnt which execution it is
    """
    while True:
        found = await search(attempt, record, loss)
        if isinstance(found.match, NoMatch):
            return None
        try:
            submission = await secure(attempt, record, loss, found.match, found.times)
        except StoreError as error:
            raise _ambiguous(record, loss, f"the shared state can't be used: {error}") from error
        if submission is not None:
            return submission


async def secure(
    attempt: Attempt, record: AttemptRecord, loss: LostResponse, found: Match, times: Mapping[str, str]
) -> Submission | None:
    """Claim the execution that a search has found; None when another task was faster.

    The record names the execution first: an attempt that was superseded meanwhile claims nothing.
    """
    execution, attempts = found.execution, attempt.submitter.attempts
    attempt_id = attempt.submitter.attempt_id

    def propose(present: AttemptRecord | None) -> AttemptRecord | None:
        is_own = present is not None and present.attempt_id == attempt_id
        return replace(present, candidate=execution.id) if present is not None and is_own else present

    present = await use_state(attempt.context, partial(attempts.update, propose))
    if present is None or present.attempt_id != attempt_id:
        await own_record(attempt, record)
    claim = Claim(record.submission_id, payload_digest=record.payload_digest)
    holder = await use_state(attempt.context, partial(attempts.claim, record.workflow_id, execution.id, claim))
    if holder.submission_id != record.submission_id:
        return None
    origin = Origin.STARTED if loss.accepted else Origin.ADOPTED
    doubt = "" if found.is_certain else "; an execution that somebody else started then can't be distinguished from it"
    reason = f"{loss.reason}; {found.reason}{doubt}"
    return Submission(execution, Origin.REATTACHED if execution.id == record.candidate else origin, reason, times)


async def search(attempt: Attempt, record: AttemptRecord, loss: LostResponse) -> Found:
    """Poll the history until it shows what a submission's request has done. Writes nothing.

    :raises TechFlowError: as `find`
    :raises OtherAttemptError: as `find`
    """
    try:
        return await _Search(attempt, record, loss).run()
    except StoreError as error:
        raise _ambiguous(record, loss, f"the shared state can't be used: {error}") from error


def _ambiguous(record: AttemptRecord, loss: LostResponse, reason: str) -> AmbiguousExecutionError:
    return AmbiguousExecutionError(record.workflow_id, f"{loss.reason}, and {reason}")


Key = tuple[str, str]


@dataclass(slots=True)
class _Search:
    """One search, and what its polls have shown so far."""

    attempt: Attempt
    record: AttemptRecord
    loss: LostResponse
    polls: int = 0
    seen: dict[Key, Execution] = field(default_factory=dict)
    claims: dict[Key, Claim] = field(default_factory=dict)
    is_cut_off: bool = False
    was_complete: bool = False
    logged: str = ""

    async def run(self) -> Found:
        context, effect_seconds = self.attempt.context, self.attempt.effect_seconds + HELD_UP_SECONDS
        log.warning("%s: searching the history for the execution of workflow %s", *self._subject())
        while True:
            own = await own_record(self.attempt, self.record)
            early = own.since_sent < effect_seconds
            given = await self._poll(own)
            if given is None:
                continue
            result = match(given, early=early)
            if isinstance(result, Match | NoMatch):
                return self._found(result, given)
            if isinstance(result, Ambiguous) or own.since_sent - effect_seconds > result.timeout_seconds:
                if isinstance(result, Undecided) and result.otherwise is not None:
                    return self._found(result.otherwise, given)
                raise _ambiguous(self.record, self.loss, result.reason)
            if result.reason != self.logged:
                log.info("The execution cannot be determined yet: %s", result.reason)
            self.logged = result.reason
            await context.io.sleep(min(FIRST_DELAY_SECONDS * 2.0 ** min(self.polls, 10), LONGEST_DELAY_SECONDS))
            self.polls += 1

    def _subject(self) -> tuple[str, str]:
        return self.loss.reason, self.record.workflow_id

    def _found(self, result: Match | NoMatch, given: MatchInput) -> Found:
        if isinstance(result, NoMatch):
            seconds, window = self.attempt.effect_seconds, describe(given.window)
            none = f"no unclaimed one appeared in the history within {seconds:.0f} s, {window}"
            if self.loss.accepted or given.record.accepted:
                raise _ambiguous(self.record, self.loss, none)
            log.warning("%s, and %s: it started none", self.loss.reason, none)
        since, until = describe(given.window).removeprefix("from ").split(" to ")
        return Found(
            result, {"looked_from": since, "looked_until": until, "looked_at": self.attempt.context.now().isoformat()}
        )

    async def _poll(self, own: AttemptRecord) -> MatchInput | None:
        """Return all that is known after one poll; None when the submission's record has changed.

        The records are read after the history, since whoever started what it shows has written one before; the claims
        come last, since a record names its execution only after that was claimed.
        """
        context, attempts = self.attempt.context, self.attempt.submitter.attempts
        history = await self._read_history()
        arrived = context.clock()
        pending = await use_state(context, partial(attempts.pending, self.record.workflow_id))
        if context.clock() - arrived > HELD_UP_SECONDS:
            return None
        listed = next((each for each in pending if each.submission_id == self.record.submission_id), None)
        if listed is None:
            return None
        age = context.clock() - history.began
        snapshot = HistorySnapshot(self._remember(history.rows), history.at, context.now(), age)
        seconds = self.attempt.effect_seconds
        window = window_of(replace(listed, is_clock_kept=own.is_clock_kept), snapshot, seconds)
        competing = tuple(
            CompetingIntent(each, window_of(each, snapshot, seconds), sent_at(each, snapshot))
            for each in pending
            if each is not listed
        )
        given = MatchInput(listed, window, sent_at(listed, snapshot), (), competing)
        given = self._with_rows(given, await self._clock(snapshot), snapshot)
        given = replace(given, shows_payloads=self._shows_payloads(pending, snapshot))
        await self._read_claims(row.execution for row in given.rows if given.fit(row))
        held = {name: claim for (workflow_id, name), claim in self.claims.items() if workflow_id == listed.workflow_id}
        settled = {claim.submission_id for claim in held.values()}
        competing = tuple(each for each in competing if each.record.submission_id not in settled)
        complete = not history.failure and not history.unreadable and self._is_complete(history.rows, given)
        return replace(given, competing=competing, claims=held, is_complete=complete)

    def _shows_payloads(self, pending: list[AttemptRecord], snapshot: HistorySnapshot) -> bool:
        """Whether the history shows payloads as they were sent; what a server adds to them is unknown."""
        shown = {_echo(each) for each in snapshot.executions}
        sent = {each.payload_digest for each in pending} | {each.payload_digest for each in self.claims.values()}
        has_none = self.record.payload_digest is None and shown > {None} and any(map(_shows_none, snapshot.executions))
        return has_none or bool((shown & sent) - {None})

    def _with_rows(self, given: MatchInput, clock: ServerClock, snapshot: HistorySnapshot) -> MatchInput:
        rows = (
            Row(each, clock.began(each, clock.offset), clock.began(each, clock.widest), _echo(each))
            for each in snapshot.executions
            if each.workflow_id in (None, given.record.workflow_id)
        )
        return replace(given, rows=tuple(rows), clock=clock)

    async def _clock(self, snapshot: HistorySnapshot) -> ServerClock:
        """Return how the history's times are to be read, from executions whose starts were responded to."""
        newest = sorted(snapshot.executions, key=lambda each: began_at(each) or snapshot.at, reverse=True)
        await self._read_claims(newest[:CALIBRATIONS])
        started = (
            (each, Span(*claim.requested))
            for each in newest
            if (claim := self.claims.get(_key(each))) is not None and claim.by_response and claim.requested is not None
        )
        return ServerClock.of(snapshot.executions, started)

    async def _read_claims(self, executions: Iterable[Execution]) -> None:
        """Read the claims of executions; what was claimed stays claimed."""
        unknown = [key for each in executions if (key := _key(each)) not in self.claims]
        self.claims |= await use_state(self.attempt.context, partial(self.attempt.submitter.attempts.claims, unknown))

    def _remember(self, executions: tuple[Execution, ...]) -> tuple[Execution, ...]:
        """Return what the history shows and has shown, and notice that it doesn't keep all."""
        listed = {_key(each): each for each in executions}
        self.is_cut_off |= not self.seen.keys() <= listed.keys()
        self.seen |= listed
        return tuple(self.seen.values())

    def _is_complete(self, executions: tuple[Execution, ...], given: MatchInput) -> bool:
        """Whether the history certainly shows all that began in the window."""
        spans = [
            each for each in (given.clock.began(row, given.clock.offset) for row in executions) if each is not None
        ]
        shows_older = any(each.high < given.window.low for each in spans)
        is_ascending = len(spans) > 1 and spans[0].low < spans[-1].low
        if not _may_be_limit(len(executions)):
            # Until something is left out, a later history that is longer shows all, too.
            self.was_complete = not self.is_cut_off
            return shows_older or not self.is_cut_off
        return (shows_older and not is_ascending) or (self.was_complete and not self.is_cut_off)

    async def _read_history(self) -> History:
        """Return the history, however long that takes.

        :raises TechFlowError: `AmbiguousExecutionError` when it can't be read, or why it never will be
        """
        context = self.attempt.context
        poll = self.attempt.poll or (lambda _: read_whole(context))
        deadline, failures = context.clock() + UNREADABLE_SECONDS, 0
        while True:
            try:
                return await poll(context.clock())
            except TechFlowError as error:
                if not error.is_transient:
                    raise
                if context.clock() > deadline:
                    raise _ambiguous(self.record, self.loss, f"the history can't be read: {error}") from error
                log.warning("Polling the execution history failed and is retried: %s", error)
                failures += 1
                await context.io.sleep(backoff_seconds(FIRST_DELAY_SECONDS, failures))


async def read_whole(context: FlowContext) -> History:
    """Return the newest pages of the history, with the priority of polls."""
    return await poll_history(context, HistoryFilter(everything=True), LONGEST_POLL_SECONDS)


def _key(execution: Execution) -> Key:
    return execution.workflow_id or "", execution.id


def _may_be_limit(count: int) -> bool:
    """Whether a history of so many executions may be one that shows no more."""
    return count >= SMALLEST_LIMIT and (count % 10 == 0 or count % 25 == 0 or count & (count - 1) == 0)


def _shows_none(execution: Execution) -> bool:
    """Whether the history shows that an execution has no payload."""
    return any(name in execution.raw and not execution.raw[name] for name in ECHO_NAMES)


def _echo(execution: Execution) -> str | None:
    """Return the digest of the payload that the history shows for an execution."""
    value: Json = get_first(execution.raw, *ECHO_NAMES)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return payload_digest(value) if isinstance(value, dict) and value else None


async def own_record(attempt: Attempt, record: AttemptRecord) -> AttemptRecord:
    """Return the submission's record as it is stored now.

    :raises OtherAttemptError: another attempt has learnt which execution it is
    :raises SupersededError: another attempt searches for it, or has given it up
    """
    own = await use_state(attempt.context, attempt.submitter.attempts.read_shared)
    if own is None:
        return await _restore(attempt, record)
    if own.attempt_id == attempt.submitter.attempt_id and own.execution_id is None:
        return own
    if own.submission_id == record.submission_id and own.execution_id is not None:
        raise OtherAttemptError(own)
    raise SupersededError(record.workflow_id, attempt.submitter.name)
