"""Decide which execution of the history belongs to a submission whose response is lost; pure.

An execution can belong to a submission when it began while one of its requests may have been under way, and nobody
claims it. Executions without a payload are interchangeable among tasks, so that only their number matters; with a
payload they are not, unless the history shows the payloads. An execution that the pending response of another task may
name is left to that task. That a request had no effect needs proof: a complete history without an execution that may
belong to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum

from techflow_provider.client.models import Execution
from techflow_provider.submission.records import AttemptRecord, Claim
from techflow_provider.submission.times import ServerClock, Span

# A `Date` has no fractions, and the response takes its time.
DATE_SECONDS = 1.5
# How long a search that isn't early any more waits for another task to get its execution, or for a history that may be
# cut off to become longer.
OTHERS_SECONDS = 900.0
HISTORY_SECONDS = 120.0
LONGEST_SECONDS = 10 * 365 * 86400.0


@dataclass(frozen=True, slots=True)
class HistorySnapshot:
    """The execution history, and when it was read.

    :param executions: what it lists, and what earlier polls of the search have shown
    :param at: the server's clock when it began to respond
    :param now: this host's clock some time later, when the records were read
    :param age_seconds: the time in between, or more
    """

    executions: tuple[Execution, ...]
    at: datetime
    now: datetime
    age_seconds: float


def sent_at(record: AttemptRecord, snapshot: HistorySnapshot) -> float:
    """Return the best estimate of when a record's request was sent, by the server's `Date`."""
    return snapshot.at.timestamp() - _bounded(record.since_sent)


def window_of(record: AttemptRecord, snapshot: HistorySnapshot, effect_seconds: float) -> Span:
    """Return the time in which an execution began if a request of a record started it, by the server's `Date`.

    Only elapsed times are taken from our clocks, so it doesn't matter what they show.

    :param record: as it was read after the history
    :param effect_seconds: how long after a request was sent the server may act on it
    """
    sent = sent_at(record, snapshot)
    since = snapshot.at.timestamp() - _bounded(record.longest_since_sent(snapshot.now))
    return Span(min(sent, since), sent + snapshot.age_seconds + effect_seconds).widened(DATE_SECONDS)


def _bounded(seconds: float) -> float:
    # A clock may be wrong by millennia, which no date can hold.
    return max(-LONGEST_SECONDS, min(seconds, LONGEST_SECONDS))


@dataclass(frozen=True, slots=True)
class CompetingIntent:
    """Another task that has requested an execution of the workflow and doesn't know it yet.

    :param record: its record
    :param window: its window
    :param sent_at: the best estimate of when its request was sent
    """

    record: AttemptRecord
    window: Span
    sent_at: float = 0.0


class Fit(IntEnum):
    """How well an execution fits a submission."""

    NONE = 0
    POSSIBLE = 1
    LIKELY = 2
    CERTAIN = 3


@dataclass(frozen=True, slots=True)
class Row:
    """An execution of the history.

    :param execution: the execution
    :param began: when it began by the server's `Date`, None when that is unknown
    :param widest: when it may have begun, None when that is unknown
    :param echo: the digest of the payload that the history shows, None when it shows none
    """

    execution: Execution
    began: Span | None
    widest: Span | None
    echo: str | None = None


@dataclass(frozen=True, slots=True)
class MatchInput:
    """All that is known when a submission's execution is searched for.

    :param record: the submission's record
    :param window: its window
    :param sent_at: the best estimate of when its request was sent
    :param rows: the history, read before the competing intents and the claims
    :param competing: the other tasks that search for an execution of the workflow or wait for a response
    :param claims: the claims of executions, by execution
    :param clock: how the times of the history are read
    :param is_complete: whether the history certainly lists all that began in the window
    :param shows_payloads: whether the history shows the payloads as they were sent
    """

    record: AttemptRecord
    window: Span
    sent_at: float
    rows: tuple[Row, ...]
    competing: tuple[CompetingIntent, ...] = ()
    claims: Mapping[str, Claim] = field(default_factory=dict)
    clock: ServerClock = field(default_factory=ServerClock)
    is_complete: bool = True
    shows_payloads: bool = False

    def fit(self, row: Row) -> Fit:
        """Return how well an execution fits the submission, apart from claims."""
        execution = row.execution
        if execution.workflow_id not in (None, self.record.workflow_id) or self.is_another_payload(row):
            return Fit.NONE
        if (row.widest is not None and not row.widest.meets(self.window)) or self._was_over(execution):
            return Fit.NONE
        if execution.workflow_id is None or row.began is None or not row.began.meets(self.window):
            return Fit.POSSIBLE
        return Fit.CERTAIN if self.shows_payloads else Fit.LIKELY

    def _was_over(self, execution: Execution) -> bool:
        """Whether an execution had finished before the request was sent."""
        finished = execution.finished_at
        return finished is not None and finished.timestamp() - self.clock.widest.low < self.window.low

    def is_another_payload(self, row: Row) -> bool:
        """Whether an execution certainly has another payload than the submission."""
        return self.shows_payloads and row.echo != self.record.payload_digest

    def candidates(self) -> list[tuple[Fit, Row]]:
        """Return the executions that can belong to the submission and that nobody claims, the nearest to it first."""
        free = [each for each in self.rows if each.execution.id not in self.claims]
        fits = [(fit, each) for each in free if (fit := self.fit(each)) is not Fit.NONE]
        return sorted(fits, key=lambda each: (self._distance(each[1]), each[1].execution.id))

    def _distance(self, row: Row) -> float:
        return LONGEST_SECONDS if row.began is None else abs(row.began.middle - self.sent_at)

    def claimed(self) -> Execution | None:
        """Return the execution that was claimed for the submission before, which is certainly its own."""
        own = self.record.submission_id
        held = (each.execution for each in self.rows if _holder(self.claims, each) == own)
        return next(held, None)


def _holder(claims: Mapping[str, Claim], row: Row) -> str | None:
    claim = claims.get(row.execution.id)
    return None if claim is None else claim.submission_id


@dataclass(frozen=True, slots=True)
class Match:
    """The execution belongs to the submission, or serves it as well as its own.

    :param execution: the execution
    :param reason: the evidence, and the doubt that remains
    :param is_certain: whether it is certainly the submission's own
    """

    execution: Execution
    reason: str
    is_certain: bool = False


@dataclass(frozen=True, slots=True)
class NoMatch:
    """There is none: the request had no effect."""


@dataclass(frozen=True, slots=True)
class Undecided:
    """It cannot be determined yet.

    :param reason: what is missing
    :param timeout_seconds: how long to wait for that, where it isn't certain to come
    :param otherwise: what to take then; without it, the execution cannot be determined
    """

    reason: str
    timeout_seconds: float = math.inf
    otherwise: Match | None = None


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """It cannot be determined, now or later.

    :param reason: what is known
    """

    reason: str


MatchResult = Match | NoMatch | Undecided | Ambiguous


def match(search: MatchInput, *, early: bool) -> MatchResult:
    """Decide which execution belongs to a submission.

    :param early: whether the history may still lack what the request has started
    """
    own = search.claimed()
    if own is not None:
        return Match(own, "the task had claimed this execution before", is_certain=True)
    return _match_unclaimed(search.candidates(), search, early=early)


def _match_unclaimed(candidates: list[tuple[Fit, Row]], search: MatchInput, *, early: bool) -> MatchResult:
    certain, likely, possible = (_rows(candidates, fit) for fit in (Fit.CERTAIN, Fit.LIKELY, Fit.POSSIBLE))
    has_payload, is_restored = search.record.payload_digest is not None, search.record.is_restored
    if certain and (has_payload or not is_restored):
        return _match_any(certain, search, early=early)
    if has_payload and search.shows_payloads and len(possible) == 1:
        # Only the time, which isn't known well enough, speaks against it.
        return Undecided("the history may lag") if early else Match(possible[0].execution, "it has the payload", True)
    if is_restored and candidates:
        found = [row for _, row in candidates]
        return _undecided_or_ambiguous(early, f"the shared state may have lost a claim of {_ids(found)}")
    if likely:
        if not has_payload:
            return _match_any(likely, search, early=early)
        return _match_only([*likely, *possible], search, early=early)
    return _match_none(possible, search, early=early)


def _rows(candidates: Sequence[tuple[Fit, Row]], fit: Fit) -> list[Row]:
    return [row for each, row in candidates if each is fit]


def _match_none(possible: list[Row], search: MatchInput, *, early: bool) -> MatchResult:
    """Decide where no execution began at the time of the request, by the times that the history shows."""
    if early:
        return Undecided("the history may lag")
    explained = [row for row in possible if any(_covers(each, row) for each in search.competing)]
    if len(explained) < len(possible):
        unexplained = [row for row in possible if row not in explained]
        return Ambiguous(f"{_ids(unexplained)} may have begun then, by a clock that isn't known well enough")
    if explained and not search.clock.is_measured:
        return Undecided(f"another task may get {_ids(explained)}", OTHERS_SECONDS)
    if not search.is_complete:
        return Undecided("the history may not show all executions since then", HISTORY_SECONDS)
    return NoMatch()


def _match_any(candidates: list[Row], search: MatchInput, *, early: bool) -> MatchResult:
    """Decide for a submission that takes whichever execution leaves the most for others like it."""
    settled = [each for each in candidates if not _may_be_named(each, search.competing)]
    free = [each for each in settled if not _may_be_foreign(each, search)]
    if not free:
        if len(settled) < len(candidates):
            return Undecided(f"the response to another task may name {_ids(candidates)}")
        return _undecided_or_ambiguous(early, f"{_ids(candidates)} may belong to another task with another payload")
    chosen = _in_order(free, search)
    reason = f"nobody claims this execution, and it began in the time {describe(search.window)}"
    found = Match((chosen or free[0]).execution, reason, is_certain=search.shows_payloads)
    if chosen is not None:
        return found
    return Undecided(f"another task may get {_ids(free)}", OTHERS_SECONDS, found)


def _in_order(rows: list[Row], search: MatchInput) -> Row | None:
    """Return the execution that a submission gets when all are distributed among the requests in the order of time.

    As many requests as possible get one that began in their window, at the smallest distance in all.
    """
    began = sorted(((row.began.middle if row.began else 0.0, row) for row in rows), key=lambda each: each[0])
    own = search.record.payload_digest
    others = [each for each in search.competing if not search.shows_payloads or each.record.payload_digest == own]
    sent = [(search.sent_at, search.window, True), *((each.sent_at, each.window, False) for each in others)]
    # By how many of the executions have been considered: requests served, distance, the submission's own.
    best: list[tuple[int, float, Row | None]] = [(0, 0.0, None)] * (len(began) + 1)
    for at, window, is_own in sorted(sent, key=lambda each: each[0]):
        following = [best[0]]
        for index, (start, row) in enumerate(began):
            found = min(best[index + 1], following[index], key=lambda each: each[:2])
            if row.began is not None and row.began.meets(window):
                served, distance, mine = best[index]
                taken = (served - 1, distance + abs(start - at), row if is_own else mine)
                found = min(found, taken, key=lambda each: each[:2])
            following.append(found)
        best = following
    return best[-1][2]


def _match_only(candidates: list[Row], search: MatchInput, *, early: bool) -> MatchResult:
    """Decide for a submission with a payload, which takes an execution only when no other execution or task fits."""
    if any(_may_be_named(each, search.competing) for each in candidates):
        return Undecided(f"the response to another task may name {_ids(candidates)}")
    if len(candidates) > 1 or _may_be_foreign(candidates[0], search):
        return _undecided_or_ambiguous(early, f"any of {_ids(candidates)} may have this task's payload, or another one")
    if early:
        return Undecided(f"{_ids(candidates)} may not remain the only one")
    if not search.is_complete:
        return Undecided(f"the history may not show all that began beside {_ids(candidates)}", HISTORY_SECONDS)
    reason = f"nobody claims this execution, and no other began in the time {describe(search.window)}"
    return Match(candidates[0].execution, reason)


def _undecided_or_ambiguous(early: bool, reason: str) -> MatchResult:
    return Undecided(reason) if early else Ambiguous(reason)


def _may_be_named(row: Row, competing: Iterable[CompetingIntent]) -> bool:
    """Whether a response that another task waits for may name an execution."""
    return any(each.record.in_flight and _covers(each, row) for each in competing)


def _may_be_foreign(row: Row, search: MatchInput) -> bool:
    """Whether an execution may have been started with another payload, by a task that doesn't know it yet."""
    if search.shows_payloads:
        return False
    digest = search.record.payload_digest
    return any(each.record.payload_digest != digest and _covers(each, row) for each in search.competing)


def _covers(intent: CompetingIntent, row: Row) -> bool:
    return row.began is None or row.began.meets(intent.window)


def describe(window: Span) -> str:
    """Return a window as text, to the second."""
    since, until = (_time(seconds).isoformat(timespec="seconds") for seconds in (window.low, window.high))
    return f"from {since} to {until}"


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)


def _ids(rows: list[Row]) -> str:
    shown = ", ".join(each.execution.id for each in rows[:5])
    return shown if len(rows) <= len(rows[:5]) else f"{shown} and {len(rows) - 5} more"
