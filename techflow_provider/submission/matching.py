"""Decide which execution of the history belongs to a submission whose response is lost; pure.

An execution can belong to a submission when it began while one of its requests may have been under way, and nobody
claims it. Executions without a payload are interchangeable among tasks, so that only their number matters; with a
payload they are not, unless the history shows the payloads. An execution that the pending response of another task may
name is left to that task. That a request had no effect needs proof: a complete history without an execution that may
belong to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum, auto

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
DOUBT = "an execution that somebody else started then can't be distinguished from it"


@dataclass(frozen=True, slots=True)
class Intent:
    """A request whose execution isn't known yet. Its times are those of the server's `Date`.

    :param record: its record
    :param window: when an execution began if the request started it
    :param sent_at: the best estimate of when it was sent
    :param is_certain: whether our clocks agree when that was
    """

    record: AttemptRecord
    window: Span
    sent_at: float
    is_certain: bool = True

    @classmethod
    def of(
        cls, record: AttemptRecord, at: datetime, now: datetime, age_seconds: float, effect_seconds: float
    ) -> Intent:
        """Return an intent. Only elapsed times are taken from our clocks, so it doesn't matter what they show.

        :param record: as it was read after the history
        :param at: the server's clock when it began to respond with the history
        :param now: this host's clock some time later, when the records were read
        :param age_seconds: the time in between, or more
        :param effect_seconds: how long after a request was sent the server may act on it
        """
        sent_at, earliest = (at.timestamp() - _bounded(each) for each in record.since_sent_between(now))
        window = Span(earliest, sent_at + age_seconds + effect_seconds).widened(DATE_SECONDS)
        return cls(record, window, sent_at, earliest == sent_at or not record.is_clock_kept)

    def covers(self, row: Row) -> bool:
        """Whether the request may have started an execution, by the time at which that began."""
        return row.began is None or row.began.meets(self.window)


def _bounded(seconds: float) -> float:
    # A clock may be wrong by millennia, which no date can hold.
    return max(-LONGEST_SECONDS, min(seconds, LONGEST_SECONDS))


class Fit(IntEnum):
    """How well an execution fits a submission."""

    NONE = 0
    POSSIBLE = auto()
    LIKELY = auto()
    CERTAIN = auto()


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

    @property
    def at(self) -> float:
        """The best estimate of when it began, after all others where that is unknown."""
        return math.inf if self.began is None else self.began.middle


@dataclass(frozen=True, slots=True)
class MatchInput:
    """All that is known when a submission's execution is searched for.

    :param own: the submission
    :param rows: the history, read before the competing intents and the claims
    :param clock: how the times of the history are read
    :param competing: the other tasks that search for an execution of the workflow or wait for a response
    :param claims: the claims of executions, by execution
    :param is_complete: whether the history certainly lists all that began in the window
    :param shows_payloads: whether the history shows the payloads as they were sent
    """

    own: Intent
    rows: Sequence[Row]
    clock: ServerClock
    competing: Sequence[Intent] = ()
    claims: Mapping[str, Claim] = field(default_factory=dict)
    is_complete: bool = True
    shows_payloads: bool = False

    def fit(self, row: Row) -> Fit:
        """Return how well an execution fits the submission, apart from claims."""
        execution, record, window = row.execution, self.own.record, self.own.window
        finished = execution.finished_at
        was_over = finished is not None and finished.timestamp() - self.clock.widest.low < window.low
        is_another_payload = self.shows_payloads and row.echo != record.payload_digest
        if was_over or is_another_payload or execution.workflow_id not in (None, record.workflow_id):
            return Fit.NONE
        if row.widest is not None and not row.widest.meets(window):
            return Fit.NONE
        if execution.workflow_id is None or row.began is None or not row.began.meets(window):
            return Fit.POSSIBLE
        if self.shows_payloads:
            return Fit.CERTAIN
        return Fit.LIKELY if self.own.is_certain else Fit.POSSIBLE

    def candidates(self) -> dict[Fit, list[Row]]:
        """Return the executions that nobody claims by how well they fit the submission, the nearest to it first."""
        found: dict[Fit, list[Row]] = {fit: [] for fit in Fit}
        for row in sorted(self.rows, key=lambda each: (abs(each.at - self.own.sent_at), each.execution.id)):
            if row.execution.id not in self.claims:
                found[self.fit(row)].append(row)
        return found

    @property
    def was_exchanged(self) -> bool:
        """Whether another task has adopted an execution like the submission's, so that it took what this one started.

        Nobody claims another one that fits, so that the other task's own request had no effect.
        """
        digest = self.own.record.payload_digest
        return any(
            self.fit(row) >= Fit.LIKELY and not claim.by_response and claim.payload_digest == digest
            for row in self.rows
            if (claim := self.claims.get(row.execution.id)) is not None
        )

    def may_be_named(self, row: Row) -> bool:
        """Whether a response that another task waits for may name an execution."""
        return any(each.record.in_flight and each.covers(row) for each in self.competing)

    def may_be_taken(self, row: Row) -> bool:
        """Whether another task, whose record is certain, may get an execution."""
        return any(each.covers(row) for each in self.competing if not each.record.is_restored)

    def may_be_foreign(self, row: Row) -> bool:
        """Whether an execution may have been started with another payload, by a task that doesn't know it yet."""
        digest = self.own.record.payload_digest
        others = (each for each in self.competing if each.record.payload_digest != digest)
        return not self.shows_payloads and any(each.covers(row) for each in others)


@dataclass(frozen=True, slots=True)
class Match:
    """The execution belongs to the submission, or serves it as well as its own.

    :param execution: the execution
    :param reason: the evidence, and the doubt that remains
    :param is_own: whether it was claimed for the submission before
    :param may_change: whether a history that lags may show something that contradicts it
    :param times: the instants that it rests on, by name, in ISO 8601
    """

    execution: Execution
    reason: str
    is_own: bool = False
    may_change: bool = False
    times: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NoMatch:
    """There is none: the request had no effect."""


@dataclass(frozen=True, slots=True)
class Undecided:
    """It cannot be determined yet.

    :param reason: what is missing
    :param timeout_seconds: how long to wait for that, where it isn't certain to come; then it cannot be determined
    """

    reason: str
    timeout_seconds: float = math.inf


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
    for row in search.rows:
        claim = search.claims.get(row.execution.id)
        if claim is not None and claim.submission_id == search.own.record.submission_id:
            return Match(row.execution, "the task had claimed this execution before", is_own=True)
    result = _match_unclaimed(search.candidates(), search)
    may_change = result.may_change if isinstance(result, Match) else not isinstance(result, Undecided)
    return Undecided("the history may lag") if early and may_change else result


def _match_unclaimed(found: Mapping[Fit, list[Row]], search: MatchInput) -> MatchResult:
    certain, likely, possible = found[Fit.CERTAIN], found[Fit.LIKELY], found[Fit.POSSIBLE]
    has_payload, is_restored = search.own.record.payload_digest is not None, search.own.record.is_restored
    if certain and (has_payload or not is_restored):
        return _match_any(certain, search)
    if has_payload and search.shows_payloads and len(possible) == 1:
        # Only the time, which isn't known well enough, speaks against it.
        return Match(possible[0].execution, "it has the payload", may_change=True)
    fitting = [*certain, *likely, *possible]
    if is_restored and fitting:
        reason = f"the shared state may have lost a claim of {_ids(fitting)}"
        return Undecided(reason, OTHERS_SECONDS) if all(map(search.may_be_taken, fitting)) else Ambiguous(reason)
    if likely:
        return _match_only(fitting, search) if has_payload else _match_any(likely, search)
    return _match_none(possible, search)


def _match_none(possible: list[Row], search: MatchInput) -> MatchResult:
    """Decide where no execution began at the time of the request, by the times that the history shows."""
    unexplained = [row for row in possible if not any(each.covers(row) for each in search.competing)]
    if unexplained:
        return Ambiguous(f"{_ids(unexplained)} may have begun then, by a clock that isn't known well enough")
    if possible and not (search.clock.is_measured and search.own.is_certain):
        return Undecided(f"another task may get {_ids(possible)}", OTHERS_SECONDS)
    if not search.is_complete:
        return Undecided("the history may not show all executions since then", HISTORY_SECONDS)
    return NoMatch()


def _match_any(candidates: list[Row], search: MatchInput) -> MatchResult:
    """Decide for a submission that takes whichever execution leaves the most for others like it."""
    settled = [each for each in candidates if not search.may_be_named(each)]
    free = [each for each in settled if not search.may_be_foreign(each)]
    if not free and len(settled) < len(candidates):
        return Undecided(f"the response to another task may name {_ids(candidates)}")
    if not free:
        return Ambiguous(f"{_ids(candidates)} may belong to another task with another payload")
    chosen = _in_order(free, search)
    reason = f"nobody claims this execution, and it began in the time {describe(search.own.window)}"
    return Match(chosen.execution, reason if search.shows_payloads else f"{reason}; {DOUBT}")


def _in_order(rows: list[Row], search: MatchInput) -> Row:
    """Return the execution that a submission gets when all are distributed among the requests in the order of time.

    As many requests as possible get one that began in their window, the submission among them, since any of them will
    do for it. No request is left to one that is nearer: tasks estimate times in ways that differ, and could wait for
    each other.
    """
    rows = sorted(rows, key=lambda each: each.at)
    digest = search.own.record.payload_digest
    others = [each for each in search.competing if not search.shows_payloads or each.record.payload_digest == digest]
    # By how many of the executions have been considered: requests that get none, less all, then how far the submission
    # is from its execution, and which one that is.
    best = [(0, math.inf, 0)] * (len(rows) + 1)
    for intent in sorted((search.own, *others), key=lambda each: each.sent_at):
        following = [best[0]]
        for index, row in enumerate(rows):
            found = min(best[index + 1], following[index])
            if intent.covers(row):
                unserved, distance, mine = best[index]
                own = (abs(row.at - intent.sent_at), index) if intent is search.own else (distance, mine)
                found = min(found, (unserved - 1, *own))
            following.append(found)
        best = following
    return rows[best[-1][-1]]


def _match_only(candidates: list[Row], search: MatchInput) -> MatchResult:
    """Decide for a submission with a payload, which takes an execution only when no other execution or task fits."""
    if any(map(search.may_be_named, candidates)):
        return Undecided(f"the response to another task may name {_ids(candidates)}")
    if len(candidates) > 1 or search.may_be_foreign(candidates[0]):
        return Ambiguous(f"any of {_ids(candidates)} may have this task's payload, or another one")
    if not search.is_complete:
        return Undecided(f"the history may not show all that began beside {_ids(candidates)}", HISTORY_SECONDS)
    reason = f"nobody claims this execution, and no other began in the time {describe(search.own.window)}"
    return Match(candidates[0].execution, f"{reason}; {DOUBT}", may_change=True)


def describe(window: Span) -> str:
    """Return a window as text, to the second."""
    return f"from {as_text(window.low)} to {as_text(window.high)}"


def as_text(seconds: float) -> str:
    """Return a time as text, to the second."""
    return datetime.fromtimestamp(seconds, tz=UTC).isoformat(timespec="seconds")


def _ids(rows: list[Row]) -> str:
    shown = ", ".join(each.execution.id for each in rows[:5])
    return shown if len(rows) <= len(rows[:5]) else f"{shown} and {len(rows) - 5} more"
