"""The settings of a sandbox, and its clock.

Where TechFlow's reference leaves something open, a setting selects one of the plausible behaviours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, TypeGuard, TypeVar, get_args

if TYPE_CHECKING:
    from techflow_provider.sandbox.webhooks import Webhooks

Algorithm = Literal["fixed_window", "sliding_log", "sliding_counter", "token_bucket", "gcra"]
Outcome = Literal["completed", "failed"]
ExecuteResponse = Literal["execution", "wrapped", "id", "empty"]
HistoryResponse = Literal["executions", "list", "data"]
NextPage = Literal["link", "body"]
Times = Literal["iso", "iso_seconds", "epoch"]
RetryAfter = bool | Literal["seconds", "date"]

# Longer than any test, and short enough that every resulting date can be represented.
LONGEST_SECONDS = 1_000_000_000.0
MANUAL_START = datetime(2026, 1, 1, tzinfo=UTC)

T = TypeVar("T")


class Clock:
    """The real time."""

    def now(self) -> datetime:
        """Return the current time as an aware datetime in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds on a clock that never jumps."""
        return time.monotonic()

    def elapse(self, seconds: float) -> None:
        """Let simulated time pass; real time passes by itself."""


class ManualClock(Clock):
    """A clock that stands still until it is advanced.

    >>> clock = ManualClock()
    >>> sandbox = Sandbox(clock=clock)
    >>> clock.advance(60)

    :param start: the time at first
    """

    def __init__(self, start: datetime = MANUAL_START) -> None:
        self._start = start
        self._elapsed = 0.0

    def now(self) -> datetime:
        """Return the current time as an aware datetime."""
        return self._start + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        """Return the seconds since the start."""
        return self._elapsed

    def elapse(self, seconds: float) -> None:
        """Let simulated time pass, as a slow response does in-process."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move the clock forward.

        :raises ValueError: the number of seconds is negative
        """
        if seconds < 0:
            raise ValueError(f"seconds: received {seconds!r}, expected 0 or more")
        self._elapsed += seconds


class SettingError(ValueError):
    """A setting has an invalid value.

    :param name: the name of the setting
    :param received: its value
    :param expected: a description of valid values
    """

    def __init__(self, name: str, received: object, expected: str) -> None:
        super().__init__(name, received, expected)
        self.name = name
        self.received = received
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.name}: received {self.received!r}, expected {self.expected}"


@dataclass(kw_only=True, eq=False)
class Settings:
    """The settings of a sandbox.

    :param api_keys: the accepted keys, each with its own rate limit
    :param limit: requests per period and key (Rate Limiting)
    :param period_seconds: the period of the rate limit
    :param algorithm: the algorithm that enforces the limit
    :param burst: requests that a token bucket or GCRA admits at once; None uses the limit
    :param retry_after: whether a 429 has Retry-After, and whether in seconds or as a date; True means seconds
    :param execution_seconds: how long an execution takes; `math.inf` means until `finish` is called
    :param outcome: the final status of an execution
    :param history_lag_seconds: how long a started execution is missing from the history
    :param page_size: executions per page of the history; None puts all on one page
    :param next_page: where a page links to the next one: a Link header, or `next` in the body
    :param history_filters: which of the query parameters `workflow_id`, `status`, `since`, `limit` and `sort`
        (`started_at`, oldest first) the history honours
    :param etags: whether responses to GET have an ETag and If-None-Match is honoured
    :param execute_response: the body of the response to a start
    :param history_response: the shape of the history: an object with `executions` or `data`, or a bare list
    :param times: the format of timestamps
    :param status_words: other words for the statuses `running`, `completed`, `failed`, and `active` of a workflow
    :param workflows_at_start: the initial workflows, as id and name
    :param webhooks: where webhooks are sent while the sandbox is served; can be changed at any time
    :param seed: makes ids and the probabilities of faults reproducible
    :param clock: the clock of the sandbox
    :raises SettingError: a value is invalid
    """

    api_keys: Sequence[str] = field(default=("sandbox-key",), repr=False)
    limit: int = 100
    period_seconds: float = 60.0
    algorithm: Algorithm = "fixed_window"
    burst: int | None = None
    retry_after: RetryAfter = True
    execution_seconds: float = 5.0
    outcome: Outcome = "completed"
    history_lag_seconds: float = 0.0
    page_size: int | None = None
    next_page: NextPage = "link"
    history_filters: Collection[str] = ()
    etags: bool = False
    execute_response: ExecuteResponse = "execution"
    history_response: HistoryResponse = "executions"
    times: Times = "iso"
    status_words: Mapping[str, str] = field(default_factory=dict)
    workflows_at_start: Mapping[str, str] = field(default_factory=dict)
    webhooks: Webhooks | None = None
    seed: int | None = None
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        if isinstance(self.api_keys, str) or not self.api_keys or not all(self.api_keys):
            received = type(self.api_keys).__name__ if self.api_keys else self.api_keys
            raise SettingError("api_keys", received, "a sequence of non-empty strings")
        check_count("limit", self.limit)
        check_seconds("period_seconds", self.period_seconds, above_zero=True)
        check_seconds("execution_seconds", self.execution_seconds)
        check_seconds("history_lag_seconds", self.history_lag_seconds)
        for name in ("burst", "page_size"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        self._check_choices()

    def _check_choices(self) -> None:
        check_choice("retry_after", self.retry_after, (True, False, "seconds", "date"))
        check_choice("algorithm", self.algorithm, get_args(Algorithm))
        check_choice("outcome", self.outcome, get_args(Outcome))
        check_choice("next_page", self.next_page, get_args(NextPage))
        check_choice("execute_response", self.execute_response, get_args(ExecuteResponse))
        check_choice("history_response", self.history_response, get_args(HistoryResponse))
        check_choice("times", self.times, get_args(Times))
        for word in self.status_words:
            check_choice("status_words", word, ("running", "completed", "failed", "active"))


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Check that a value is one of the choices.

    :raises SettingError: it isn't
    """
    if value not in choices:
        raise SettingError(name, value, f"one of {', '.join(map(str, choices))}")


def check_count(name: str, value: object) -> None:
    """Check that a value is an integer above 0.

    :raises SettingError: it isn't
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingError(name, value, "an integer above 0")


def check_seconds(name: str, value: object, *, above_zero: bool = False) -> None:
    """Check that a value is a duration in seconds; infinity is valid, unless the duration must be above 0.

    :raises SettingError: it isn't
    """
    expected = f"a number of seconds {'above 0' if above_zero else 'from 0'} up to {LONGEST_SECONDS:.0f}"
    allowed = _is_number(value) and (0 <= value <= LONGEST_SECONDS or value == math.inf)
    if not allowed or (above_zero and value in (0, math.inf)):
        raise SettingError(name, value, expected)


def check_probability(name: str, value: object) -> None:
    """Check that a value is a number from 0 to 1.

    :raises SettingError: it isn't
    """
    if not _is_number(value) or not 0 <= value <= 1:
        raise SettingError(name, value, "a number from 0 to 1")


def check_text(name: str, value: object) -> None:
    """Check that a value is a string or None.

    :raises SettingError: it isn't
    """
    if value is not None and not isinstance(value, str):
        raise SettingError(name, value, "a string")


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def from_json(kind: type[T], name: str, value: Mapping[str, object]) -> T:
    """Build a dataclass, which checks its own fields, from a JSON object.

    :param name: what the object describes
    :raises SettingError: it has an unknown field, or a value is invalid
    """
    known = [each.name for each in fields(kind)]  # type: ignore[arg-type]  # the kinds are dataclasses
    for each in value:
        check_choice(name, each, known)
    return kind(**value)
