"""Decide which execution of the history is the one that a task started and knows nothing of; pure.

An execution can be a task's when it began while a request of the task may have been under way, and nobody claims it.
Executions without a payload are interchangeable among tasks, so that only their number matters; with one they are not.
An execution that began while another task's answer was on the way may be that task's, and is left to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from techflow_provider.client.models import Execution
from techflow_provider.state.records import Intent

# An HTTP date has no fractions, a history may cut them off its times, too, and a request takes its time.
TOLERANCE = timedelta(seconds=5)
LONG_AGO = datetime.min.replace(tzinfo=UTC)


LONGEST_SECONDS = 10 * 365 * 86400.0


@dataclass(frozen=True, slots=True)
class HistorySnapshot:
    """The execution history, and when it was read.

    :param executions: what it lists
    :param at: the server's clock when it began to answer
    :param now: this host's clock some time later, when the intents were read
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
    def of(cls, intent: Intent, reading: HistorySnapshot, effect_seconds: float) -> Window:
        """Return the window of an intent's requests, the intent having been read after the history.

        Only times that have passed are taken from our clocks, so it does not matter what these show.

        :param effect_seconds: how long after a request has left the server may act on it
        """
        until = reading.at + _passed(reading.age_seconds - intent.since_sent + effect_seconds)
        return cls(reading.at - _passed(intent.longest_since_sent(reading.now)) - TOLERANCE, until + TOLERANCE)

    def covers(self, execution: Execution) -> bool:
        """Whether an execution began in the window; one without a time may have."""
        return execution.started_at is None or self.since <= execution.started_at <= self.until

    def __str__(self) -> str:
        return f"{self.since.isoformat(timespec='seconds')} to {self.until.isoformat(timespec='seconds')}"


def _passed(seconds: float) -> timedelta:
    # A clock may be wrong by millennia, which no date can hold.
    return timedelta(seconds=max(-LONGEST_SECONDS, min(seconds, LONGEST_SECONDS)))


@dataclass(frozen=True, slots=True)
class CompetingIntent:
    """Another task that does not know its execution of the workflow yet.

    :param intent: its intent
    :param window: its window
    """

    intent: Intent
    window: Window


@dataclass(frozen=True, slots=True)
class MatchInput:
    """All that is known when a task looks for its execution.

    :param intent: the task's intent
    :param window: its window
    :param executions: the history, read before the rivals and the holders
    :param rivals: the other tasks that look for an execution of the workflow or wait for an answer
    :param holders: the tickets that claimed executions, by execution
    """

    intent: Intent
    window: Window
    executions: tuple[Execution, ...]
    rivals: tuple[CompetingIntent, ...]
    holders: Mapping[str, str]

    def candidates(self) -> list[Execution]:
        """Return the executions that can be the task's and that nobody claims, the earliest first."""
        free = [each for each in self.executions if each.id not in self.holders and possible(each, self)]
        return sorted(free, key=_start)

    def claimed(self) -> Execution | None:
        """Return the execution that the task has claimed before, which is its own without a doubt."""
        return next((each for each in self.executions if self.holders.get(each.id) == self.intent.ticket), None)


def possible(execution: Execution, search: MatchInput) -> bool:
    """Whether an execution can be the task's; what the history does not tell may fit."""
    of_workflow = execution.workflow_id in (None, search.intent.workflow_id)
    return of_workflow and search.window.covers(execution)


def _start(execution: Execution) -> tuple[datetime, str]:
    return execution.started_at or LONG_AGO, execution.id


@dataclass(frozen=True, slots=True)
class Match:
    """The execution is the task's, or is as good as its own.

    :param execution: the execution
    :param facts: what says so, and what doubt is left, in words
    """

    execution: Execution
    facts: str


@dataclass(frozen=True, slots=True)
class NoMatch:
    """There is none: the request had no effect."""


@dataclass(frozen=True, slots=True)
class Undecided:
    """It can't be told yet.

    :param reason: what is waited for, in words
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """It can't be told, now or later.

    :param facts: what is known, in words
    """

    facts: str


MatchResult = Match | NoMatch | Undecided | Ambiguous


def match_execution(search: MatchInput, *, early: bool) -> MatchResult:
    """Decide.

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
        return Ambiguous(f"the history does not tell when {_ids(candidates)} began, or of which workflow")
    if search.intent.payload_digest is None:
        return _any_of(dated, search, early=early)
    return _only_one_of(dated, search, early=early)


def _any_of(candidates: list[Execution], search: MatchInput, *, early: bool) -> MatchResult:
    """Decide for a task without a payload, which may take any that can't be another task's with a payload.

    Of several it takes one that leaves as many of the others as possible with one that began in their own time.
    """
    settled = [each for each in candidates if not _answers_to_come(each, search.rivals)]
    free = [each for each in settled if not _strangers(each, search)]
    if free:
        # None of these is in the window of a rival that has a payload or gets an answer.
        others = [each.window for each in search.rivals]
        best = _served([search.window, *others], free)
        chosen = next(
            each for each in free if _served(others, [other for other in free if other is not each]) + 1 == best
        )
        return Match(chosen, f"nobody claims this execution, and it began in the time from {search.window}")
    if len(settled) < len(candidates):
        return Undecided(f"an answer to another task may name {_ids(candidates)}")
    return _later_or(early, f"{_ids(candidates)} may be another task's, which has another payload")


def _served(windows: list[Window], executions: list[Execution]) -> int:
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


def _only_one_of(candidates: list[Execution], search: MatchInput, *, early: bool) -> MatchResult:
    """Decide for a task with a payload, which takes an execution only when there is no other and no other taker."""
    if any(_answers_to_come(each, search.rivals) for each in candidates):
        return Undecided(f"an answer to another task may name {_ids(candidates)}")
    if len(candidates) > 1:
        return _later_or(early, f"any of {_ids(candidates)} may be the one with this task's payload")
    if _strangers(candidates[0], search):
        return _later_or(early, f"{_ids(candidates)} may be another task's, which has another payload")
    if early:
        return Undecided(f"{_ids(candidates)} may not stay the only one")
    return Match(candidates[0], f"nobody claims this execution, and no other began in the time from {search.window}")


def _later_or(early: bool, facts: str) -> MatchResult:
    return Undecided(facts) if early else Ambiguous(facts)


def _answers_to_come(execution: Execution, rivals: Iterable[CompetingIntent]) -> bool:
    return any(rival.intent.in_flight and rival.window.covers(execution) for rival in rivals)


def _strangers(execution: Execution, search: MatchInput) -> bool:
    """Whether an execution may have been started with another payload, by a task that does not know it yet."""
    return any(
        rival.intent.payload_digest != search.intent.payload_digest and rival.window.covers(execution)
        for rival in search.rivals
    )


def _ids(executions: list[Execution]) -> str:
    shown = ", ".join(each.id for each in executions[:5])
    return shown if len(executions) <= len(executions[:5]) else f"{shown} and {len(executions) - 5} more"
