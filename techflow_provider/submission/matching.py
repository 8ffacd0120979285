"""Decide which execution of the history belongs to a submission whose response is lost; pure.

An execution can belong to a submission when it began while one of its requests may have been under way, and nobody
claims it. Executions without a payload are interchangeable among tasks, so that only their number matters; with a
payload they are not. An execution that the pending response of another task may name is left to that task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from techflow_provider.client.models import Execution
from techflow_provider.submission.attempts import LONG_AGO, AttemptRecord

# An HTTP date has no fractions, a history may cut them off its times as well, and a request takes its time.
TOLERANCE = timedelta(seconds=5)
LONGEST_SECONDS = 10 * 365 * 86400.0


@dataclass(frozen=True, slots=True)
class HistorySnapshot:
    """The execution history, and when it was read.

    :param executions: what it lists
    :param at: the server's clock when it began to respond
    :param now: this host's clock some time later, when the records were read
    :param age_seconds: the time in between, or more
    """

    executions: tuple[Execution, ...]
    at: datetime
    now: datetime
    age_seconds: float


@dataclass(frozen=True, slots=True)
class Window:
    """The time in which an execution began if a request started it, by the server's clock.

    :param since: its beginning
    :param until: its end
    """

    since: datetime
    until: datetime

    @classmethod
    def of(cls, record: AttemptRecord, snapshot: HistorySnapshot, effect_seconds: float) -> Window:
        """Return the window of a record's requests, where the record was read after the history.

        Only elapsed times are taken from our clocks, so it doesn't matter what they show.

        :param effect_seconds: how long after a request was sent the server may act on it
        """
        until = snapshot.at + _elapsed(snapshot.age_seconds - record.since_sent + effect_seconds)
        return cls(snapshot.at - _elapsed(record.longest_since_sent(snapshot.now)) - TOLERANCE, until + TOLERANCE)

    def covers(self, execution: Execution) -> bool:
        """Whether an execution began in the window; one without a time may have."""
        return execution.started_at is None or self.since <= execution.started_at <= self.until

    def __str__(self) -> str:
        return f"{self.since.isoformat(timespec='seconds')} to {self.until.isoformat(timespec='seconds')}"


def _elapsed(seconds: float) -> timedelta:
    # A clock may be wrong by millennia, which no date can hold.
    return timedelta(seconds=max(-LONGEST_SECONDS, min(seconds, LONGEST_SECONDS)))


@dataclass(frozen=True, slots=True)
class CompetingIntent:
    """Another task that has requested an execution of the workflow and doesn't know it yet.

    :param record: its record
    :param window: its window
    """

    record: AttemptRecord
    window: Window


@dataclass(frozen=True, slots=True)
class MatchInput:
    """All that is known when a submission's execution is searched for.

    :param record: the submission's record
    :param window: its window
    :param executions: the history, read before the competing intents and the claims
    :param competing: the other tasks that search for an execution of the workflow or wait for a response
    :param holders: the submissions that claimed executions, by execution
    """

    record: AttemptRecord
    window: Window
    executions: tuple[Execution, ...]
    competing: tuple[CompetingIntent, ...]
    holders: Mapping[str, str]

    def candidates(self) -> list[Execution]:
        """Return the executions that can belong to the submission and that nobody claims, the earliest first."""
        free = [each for each in self.executions if each.id not in self.holders and self.is_possible(each)]
        return sorted(free, key=lambda execution: (execution.started_at or LONG_AGO, execution.id))

    def is_possible(self, execution: Execution) -> bool:
        """Whether an execution can belong to the submission; what the history leaves out may fit."""
        return execution.workflow_id in (None, self.record.workflow_id) and self.window.covers(execution)

    def claimed(self) -> Execution | None:
        """Return the execution that was claimed for the submission before, which is certainly its own."""
        held = (each for each in self.executions if self.holders.get(each.id) == self.record.submission_id)
        return next(held, None)


@dataclass(frozen=True, slots=True)
class Match:
    """The execution belongs to the submission, or serves it as well as its own.

    :param execution: the execution
    :param reason: the evidence, and the doubt that remains
    """

    execution: Execution
    reason: str


@dataclass(frozen=True, slots=True)
class NoMatch:
    """There is none: the request had no effect."""


@dataclass(frozen=True, slots=True)
class Undecided:
    """It cannot be determined yet.

    :param reason: what is missing
    """

    reason: str


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
        return Match(own, "the task had claimed this execution before")
    candidates = search.candidates()
    if not candidates:
        return Undecided("the history may lag") if early else NoMatch()
    dated = [each for each in candidates if each.started_at is not None and each.workflow_id is not None]
    if len(dated) < len(candidates):
        return Ambiguous(f"the history doesn't show when {_ids(candidates)} began, or of which workflow")
    if search.record.payload_digest is None:
        return _match_any(dated, search, early=early)
    return _match_only(dated, search, early=early)


def _match_any(candidates: list[Execution], search: MatchInput, *, early: bool) -> MatchResult:
    """Decide for a submission without a payload, which may take any that can't belong to one with a payload.

    Of several it takes one that leaves as many of the others as possible with one that began in their own window.
    """
    settled = [each for each in candidates if not _may_be_named(each, search.competing)]
    free = [each for each in settled if not _may_be_foreign(each, search)]
    if free:
        # None of these is in the window of a competing intent that has a payload or gets a response.
        windows = [search.window, *(each.window for each in search.competing)]
        best = _count_served(windows, free)
        chosen = next(
            each
            for each in free
            if _count_served(windows[1:], [other for other in free if other is not each]) + 1 == best
        )
        return Match(chosen, f"nobody claims this execution, and it began in the time from {search.window}")
    if len(settled) < len(candidates):
        return Undecided(f"the response to another task may name {_ids(candidates)}")
    return _undecided_or_ambiguous(early, f"{_ids(candidates)} may belong to another task with another payload")


def _count_served(windows: list[Window], executions: list[Execution]) -> int:
    """Return how many windows can have an execution of their own.

    Each execution, in the order of their starts, goes to the window that ends first of those that it lies in.
    """
    left, served = sorted(windows, key=lambda window: window.until), 0
    for execution in executions:
        taker = next((window for window in left if window.covers(execution)), None)
        if taker is not None:
            left.remove(taker)
            served += 1
    return served


def _match_only(candidates: list[Execution], search: MatchInput, *, early: bool) -> MatchResult:
    """Decide for a submission with a payload, which takes an execution only when no other execution or task fits."""
    if any(_may_be_named(each, search.competing) for each in candidates):
        return Undecided(f"the response to another task may name {_ids(candidates)}")
    if len(candidates) > 1:
        return _undecided_or_ambiguous(early, f"any of {_ids(candidates)} may be the one with this task's payload")
    if _may_be_foreign(candidates[0], search):
        return _undecided_or_ambiguous(early, f"{_ids(candidates)} may belong to another task with another payload")
    if early:
        return Undecided(f"{_ids(candidates)} may not remain the only one")
    return Match(candidates[0], f"nobody claims this execution, and no other began in the time from {search.window}")


def _undecided_or_ambiguous(early: bool, reason: str) -> MatchResult:
    return Undecided(reason) if early else Ambiguous(reason)


def _may_be_named(execution: Execution, competing: Iterable[CompetingIntent]) -> bool:
    """Whether a response that another task waits for may name an execution."""
    return any(each.record.in_flight and each.window.covers(execution) for each in competing)


def _may_be_foreign(execution: Execution, search: MatchInput) -> bool:
    """Whether an execution may have been started with another payload, by a task that doesn't know it yet."""
    digest = search.record.payload_digest
    return any(each.record.payload_digest != digest and each.window.covers(execution) for each in search.competing)


def _ids(executions: list[Execution]) -> str:
    shown = ", ".join(each.id for each in executions[:5])
    return shown if len(executions) <= len(executions[:5]) else f"{shown} and {len(executions) - 5} more"
