"""Search the history for the execution of a start whose response is lost, until it can be determined.

A search only reads, so that a triggerer may run it, even twice at once.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from techflow_provider.client.errors import AmbiguousExecutionError, SupersededError, TechFlowError, rebuild_error
from techflow_provider.client.flow import FlowContext
from techflow_provider.client.history import History, HistoryFilter
from techflow_provider.client.models import EXECUTION_NAMES, Execution
from techflow_provider.client.parsing import Json, get_first
from techflow_provider.client.reading import LONGEST_POLL_SECONDS, poll_history
from techflow_provider.client.retry import backoff_seconds
from techflow_provider.client.text import get_logger
from techflow_provider.state.store import StoreError
from techflow_provider.submission.attempts import use_state
from techflow_provider.submission.matching import (
    Ambiguous,
    Intent,
    Match,
    MatchInput,
    NoMatch,
    Row,
    Undecided,
    as_text,
    match,
)
from techflow_provider.submission.model import Attempt
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
ECHO_NAMES = EXECUTION_NAMES["payload"]


@dataclass(eq=False)
class OtherAttemptError(Exception):
    """Another attempt of the submitter has a record where this one expected its own, or none.

    :param record: the other attempt's record
    """

    record: AttemptRecord


@dataclass(frozen=True, slots=True)
class LostStart:
    """A start whose execution is unknown, as it also crosses from a worker to the triggerer and back.

    :param record: its record
    :param reason: what happened
    :param sent: how many requests were sent for it
    :param error: what the last one raised
    """

    record: AttemptRecord
    reason: str
    sent: int = 0
    error: TechFlowError | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the start as JSON."""
        error = self.error and {"class": type(self.error).__name__, "args": list(self.error.args)}
        return {"record": self.record.to_dict(), "reason": self.reason, "sent": self.sent, "error": error}

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> LostStart:
        """Read what a trigger or an event holds.

        :raises TypeError: it isn't a start
        :raises KeyError: a field is missing
        :raises StoreError: its record can't be read
        """
        error = value["error"] and rebuild_error(value["error"]["class"], value["error"]["args"])
        return cls(AttemptRecord.read(value["record"], 0.0), value["reason"], value["sent"], error)

    def ambiguous(self, reason: str) -> AmbiguousExecutionError:
        """Return the error for an execution that cannot be determined."""
        return AmbiguousExecutionError(self.record.workflow_id, f"{self.reason}, and {reason}")


@dataclass(eq=False)
class LostStartError(Exception):
    """The execution of a start has to be searched for, elsewhere.

    :param start: the start, taken over
    """

    start: LostStart


async def take_over(attempt: Attempt, record: AttemptRecord) -> AttemptRecord:
    """Make a record without an execution this attempt's, so that the one that wrote it sends nothing more.

    :raises OtherAttemptError: another attempt has learnt which execution it is
    :raises SupersededError: another submission has taken its place
    """
    attempt_id = attempt.submitter.attempt_id

    def decide(present: AttemptRecord | None) -> AttemptRecord | None:
        if present is None:
            return record.taken_over(attempt_id) if record.is_restored else None
        is_other = present.submission_id != record.submission_id
        return present if is_other else present.taken_over(attempt_id, accepted=record.accepted)

    present = await use_state(attempt.context, attempt.attempts.update, decide)
    return present if present and present.attempt_id == attempt_id else await own_record(attempt, record)


async def own_record(attempt: Attempt, record: AttemptRecord) -> AttemptRecord:
    """Return the submission's record as it is stored now.

    :raises OtherAttemptError: another attempt has learnt which execution it is
    :raises SupersededError: another attempt searches for it, or has given it up
    :raises StoreError: the shared state has lost it, and with it maybe the claims of other tasks
    """
    own = await use_state(attempt.context, attempt.attempts.read_shared)
    if own is None:
        raise StoreError(f"it has lost the record of {record.submission_id}")
    if own.attempt_id == attempt.submitter.attempt_id and own.execution_id is None:
        return own
    if own.submission_id == record.submission_id and own.execution_id is not None:
        raise OtherAttemptError(own)
    raise SupersededError(record.workflow_id, attempt.submitter.name)


async def search(attempt: Attempt, start: LostStart) -> Match | NoMatch:
    """Poll the history until it shows what a submission's request has done. Writes nothing.

    :param start: with the submission's record, as `take_over` returns it
    :raises TechFlowError: `AmbiguousExecutionError` when it cannot be determined, `SupersededError` when another
        attempt searches for it, or what reading the history raises
    :raises OtherAttemptError: another attempt has learnt which execution it is
    """
    return await _Search(attempt, start).run()


Key = tuple[str, str]


@dataclass(slots=True)
class _HistorySnapshot:
    """What a poll and the records that were read after it show to all searches that share them.

    :param when: what `Intent.of` needs beside a record
    :param intents: those of all workflows, by submission
    :param rows: the history of all workflows, with what earlier polls have shown
    :param clock: how its times are to be read
    :param claims: those that have been read
    :param shows_payloads: whether it shows a payload as it was sent; what a server adds to them is unknown
    :param shows_none: whether it shows of some executions that they have none, and payloads of others
    :param oldest: when the oldest that this poll has listed began at the latest
    :param is_ascending: whether the history begins with the oldest
    """

    when: tuple[datetime, datetime, float, float]
    intents: dict[str, Intent]
    rows: list[Row]
    clock: ServerClock
    claims: dict[Key, Claim]
    shows_payloads: bool
    shows_none: bool
    oldest: float
    is_ascending: bool


@dataclass(slots=True)
class _Search:
    """One search, and what its polls have shown so far."""

    attempt: Attempt
    start: LostStart
    seen: dict[Key, Execution] = field(default_factory=dict)
    claims: dict[Key, Claim] = field(default_factory=dict)
    is_cut_off: bool = False
    was_complete: bool = False

    async def run(self) -> Match | NoMatch:
        context, effect_seconds = self.attempt.context, self.attempt.effect_seconds + HELD_UP_SECONDS
        record, logged, delay = self.start.record, "", FIRST_DELAY_SECONDS
        log.warning("%s: searching the history for the execution of workflow %s", self.start.reason, record.workflow_id)
        while True:
            own = await own_record(self.attempt, record)
            given = await self._poll(own)
            if given is None:
                continue
            least_since_sent, _ = own.since_sent_between(context.now())
            result = match(given, early=least_since_sent < effect_seconds)
            if isinstance(result, Undecided) and own.since_sent - effect_seconds > result.timeout_seconds:
                result = Ambiguous(result.reason)
            if isinstance(result, Ambiguous):
                raise self.start.ambiguous(result.reason)
            if not isinstance(result, Undecided):
                return self._found(result, given)
            if result.reason != logged:
                log.info("The execution cannot be determined yet: %s", result.reason)
            logged = result.reason
            await context.io.sleep(delay)
            delay = min(2.0 * delay, LONGEST_DELAY_SECONDS)

    def _found(self, result: Match | NoMatch, given: MatchInput) -> Match | NoMatch:
        since, until = map(as_text, (given.own.window.low, given.own.window.high))
        if isinstance(result, Match):
            looked_at = self.attempt.context.now().isoformat()
            return replace(result, times={"looked_from": since, "looked_until": until, "looked_at": looked_at})
        seconds = self.attempt.effect_seconds
        none = f"no unclaimed one appeared in the history within {seconds:.0f} s, from {since} to {until}"
        if given.own.record.accepted and not given.was_exchanged:
            raise self.start.ambiguous(none)
        log.warning("%s, and %s: it started none", self.start.reason, none)
        return result

    async def _poll(self, own: AttemptRecord) -> MatchInput | None:
        """Return all that is known after one poll; None when the submission's record has changed.

        The records are read after the history, since whoever started what it shows has written one before; the claims
        come last, since a record names its execution only after that was claimed.
        """
        attempt, history = self.attempt, await self._read_history()
        read = partial(self._read, history, self._remember(history.rows))
        if attempt.polls is None or self.is_cut_off:
            snapshot = await read(None)
        else:
            snapshot = await attempt.polls.once(history, (attempt.attempts.site, attempt.effect_seconds), read)
        listed = None if snapshot is None else snapshot.intents.get(own.submission_id)
        if snapshot is None or listed is None:
            return None
        self.claims = snapshot.claims
        intent = Intent.of(replace(listed.record, is_clock_kept=own.is_clock_kept), *snapshot.when)
        rows = [each for each in snapshot.rows if each.execution.workflow_id in (None, own.workflow_id)]
        shows_payloads = snapshot.shows_payloads or (own.payload_digest is None and snapshot.shows_none)
        given = MatchInput(intent, rows, snapshot.clock, shows_payloads=shows_payloads)
        await self._read_claims(row.execution for row in rows if given.fit(row))
        held = {name: claim for (workflow_id, name), claim in self.claims.items() if workflow_id == own.workflow_id}
        settled = {own.submission_id, *(claim.submission_id for claim in held.values())}
        others = (each for each in snapshot.intents.values() if each.record.workflow_id == own.workflow_id)
        competing = [each for each in others if each.record.submission_id not in settled]
        is_complete = not history.failure and not history.unreadable and self._is_complete(history, snapshot, intent)
        return replace(given, competing=competing, claims=held, is_complete=is_complete)

    async def _read(
        self, history: History, executions: Collection[Execution], earlier: _HistorySnapshot | None
    ) -> _HistorySnapshot | None:
        """Return what a history and the records show; None when they were read too long after it.

        :param earlier: what another poll has shown
        """
        attempt, context = self.attempt, self.attempt.context
        arrived = context.clock()
        pending = await use_state(attempt.context, attempt.attempts.pending)
        if context.clock() - arrived > HELD_UP_SECONDS:
            return None
        when = (history.at, context.now(), context.clock() - history.began, attempt.effect_seconds)
        known = self.claims if earlier is None else self.claims | earlier.claims
        self.claims = {key: known[key] for each in executions if (key := self._key(each)) in known}
        clock = await self._clock(executions, history.at)
        rows = [
            Row(each, clock.began(each, clock.offset), clock.began(each, clock.widest), _echo(each))
            for each in executions
        ]
        listed = set(map(self._key, history.rows))
        spans = [each.began for each in rows if each.began is not None and self._key(each.execution) in listed]
        shown = {each.echo for each in rows}
        sent = {each.payload_digest for each in pending} | {each.payload_digest for each in self.claims.values()}
        # It may also show that there is none.
        names_none = any(name in each.raw and not each.raw[name] for each in executions for name in ECHO_NAMES)
        return _HistorySnapshot(
            when,
            {each.submission_id: Intent.of(each, *when) for each in pending},
            rows,
            clock,
            self.claims,
            shows_payloads=bool((shown & sent) - {None}),
            shows_none=names_none and shown > {None},
            oldest=min((each.high for each in spans), default=math.inf),
            is_ascending=bool(spans) and spans[0].low < spans[-1].low,
        )

    async def _clock(self, executions: Collection[Execution], at: datetime) -> ServerClock:
        """Return how the history's times are to be read, from executions whose starts were responded to."""
        newest = sorted(executions, key=lambda each: began_at(each) or at, reverse=True)
        await self._read_claims(newest[:CALIBRATIONS])
        claims = ((each, self.claims.get(self._key(each))) for each in newest)
        started = ((each, Span(*claim.requested)) for each, claim in claims if claim and claim.requested)
        return ServerClock.of(executions, started)

    async def _read_claims(self, executions: Iterable[Execution]) -> None:
        """Read the claims of executions; what was claimed stays claimed."""
        unknown = [key for each in executions if (key := self._key(each)) not in self.claims]
        if unknown:
            self.claims |= await use_state(self.attempt.context, self.attempt.attempts.claims, unknown)

    def _key(self, execution: Execution) -> Key:
        return execution.workflow_id or self.start.record.workflow_id, execution.id

    def _remember(self, executions: tuple[Execution, ...]) -> tuple[Execution, ...]:
        """Return what the history shows and has shown, and notice that it doesn't keep all."""
        listed = {self._key(each): each for each in executions}
        self.is_cut_off |= not self.seen.keys() <= listed.keys()
        self.seen |= listed
        return tuple(self.seen.values())

    def _is_complete(self, history: History, snapshot: _HistorySnapshot, own: Intent) -> bool:
        """Whether the history certainly shows all that began in the window."""
        shows_older = snapshot.oldest < own.window.low
        if not _may_be_limit(len(history.rows)):
            # Until something is left out, a later history that is longer shows all, too.
            self.was_complete = not self.is_cut_off
            return shows_older or not self.is_cut_off
        return (shows_older and not snapshot.is_ascending) or (self.was_complete and not self.is_cut_off)

    async def _read_history(self) -> History:
        """Return the history, however long that takes.

        :raises TechFlowError: `AmbiguousExecutionError` when it can't be read, or why it never will be
        """
        context = self.attempt.context
        deadline, failures = context.clock() + UNREADABLE_SECONDS, 0
        while True:
            try:
                if self.attempt.polls is None:
                    return await read_whole(context)
                return await self.attempt.polls.poll(context, context.clock())
            except TechFlowError as error:
                if not error.is_transient:
                    raise
                if context.clock() > deadline:
                    raise self.start.ambiguous(f"the history can't be read: {error}") from error
                log.warning("Polling the execution history failed and is retried: %s", error)
                failures += 1
                await context.io.sleep(backoff_seconds(FIRST_DELAY_SECONDS, failures))


async def read_whole(context: FlowContext) -> History:
    """Return the newest pages of the history, with the priority of polls."""
    return await poll_history(context, HistoryFilter(everything=True), LONGEST_POLL_SECONDS)


def _may_be_limit(count: int) -> bool:
    """Whether a history of so many executions may be one that shows no more."""
    return count >= SMALLEST_LIMIT and (count % 10 == 0 or count % 25 == 0 or count.bit_count() == 1)


def _echo(execution: Execution) -> str | None:
    """Return the digest of the payload that the history shows for an execution."""
    value: Json = get_first(execution.raw, *ECHO_NAMES)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return payload_digest(value) if isinstance(value, dict) and value else None
