"""The settings of a sandbox, its clock, and how values are checked: a field's type says what it may be.

Where TechFlow's reference leaves something open, a setting selects one of the plausible behaviours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

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


@dataclass(eq=False)
class SettingError(ValueError):
    """A setting has an invalid value.

    :param name: the name of the setting
    :param received: its value
    :param expected: a description of valid values
    """

    name: str
    received: object
    expected: str

    def __str__(self) -> str:
        return f"{self.name}: received {self.received!r}, expected {self.expected}"


@dataclass(frozen=True, slots=True)
class Rule:
    """Restricts the values of a type, as its annotation.

    :param expected: a description of valid values
    :param allows: whether a value is valid
    """

    expected: str
    allows: Callable[[Any], bool]


def between(lowest: float, highest: float, *kinds: type) -> Callable[[Any], bool]:
    """Return a check of a number of one of some types, by default any."""
    return lambda value: type(value) in (kinds or (int, float)) and lowest <= value <= highest


def _is_duration(value: Any) -> bool:
    return between(0, LONGEST_SECONDS)(value) or value == math.inf


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


Count: TypeAlias = Annotated[int, Rule("an integer above 0", between(1, math.inf, int))]
Seconds: TypeAlias = Annotated[float, Rule(f"a number of seconds from 0 up to {LONGEST_SECONDS:.0f}", _is_duration)]
Period: TypeAlias = Annotated[
    float, Rule(f"a number of seconds above 0 up to {LONGEST_SECONDS:.0f}", between(math.ulp(0), LONGEST_SECONDS))
]
Probability: TypeAlias = Annotated[float, Rule("a number from 0 to 1", between(0, 1))]
Text: TypeAlias = Annotated[str, Rule("a non-empty string", _is_text)]

Algorithm = Literal["fixed_window", "sliding_log", "sliding_counter", "token_bucket", "gcra"]
Outcome = Literal["completed", "failed"]
ExecuteResponse = Literal["execution", "wrapped", "id", "empty"]
NextPage = Literal["link", "body"]
Times = Literal["iso", "iso_seconds", "epoch"]
RetryAfter = bool | Literal["seconds", "date"]
StatusWord = Literal["running", "completed", "failed", "active"]


def check(name: str, value: object, hint: Any) -> None:
    """Check a value by a type.

    :raises SettingError: it isn't of the type
    """
    hints = get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)
    if value is None and NoneType in hints:
        return
    rules = [_rule(each) for each in hints if each is not NoneType]
    if not any(rule.allows(value) for rule in rules):
        raise SettingError(name, value, " or ".join(rule.expected for rule in rules))


def _rule(hint: Any) -> Rule:
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin is Annotated:
        rule: Rule = arguments[1]
        return rule
    if origin is Literal:
        return Rule(f"one of {', '.join(arguments)}", lambda value: value in arguments)
    return Rule(f"a value of the type {origin.__name__}", lambda value: isinstance(value, origin))


def check_fields(settings: Any) -> None:
    """Check the fields of a dataclass by their types.

    :raises SettingError: a value is invalid
    """
    hints = get_type_hints(type(settings), include_extras=True)
    for each in fields(settings):
        check(each.name, getattr(settings, each.name), hints[each.name])


def from_json(kind: type[T], value: object) -> T:
    """Build a dataclass, which checks its own fields, from JSON.

    :raises SettingError: the value isn't an object, has an unknown field, or a value is invalid
    """
    name, known = kind.__name__.lower(), [each.name for each in fields(kind)]  # type: ignore[arg-type]  # a dataclass
    if not isinstance(value, dict):
        raise SettingError(name, value, f"an object with {', '.join(known)}")
    for each in value:
        if each not in known:
            raise SettingError(name, each, f"one of {', '.join(known)}")
    return kind(**value)


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
    :param execute_response: the body of the response to a start
    :param times: the format of timestamps
    :param status_words: other words for the statuses `running`, `completed`, `failed`, and `active` of a workflow
    :param workflows_at_start: the initial workflows, as id and name
    :param seed: makes ids and the probabilities of faults reproducible
    :param clock: the clock of the sandbox
    :raises SettingError: a value is invalid
    """

    api_keys: Sequence[str] = field(default=("sandbox-key",), repr=False)
    limit: Count = 100
    period_seconds: Period = 60.0
    algorithm: Algorithm = "fixed_window"
    burst: Count | None = None
    retry_after: RetryAfter = True
    execution_seconds: Seconds = 5.0
    outcome: Outcome = "completed"
    history_lag_seconds: Seconds = 0.0
    page_size: Count | None = None
    next_page: NextPage = "link"
    history_filters: Collection[str] = ()
    execute_response: ExecuteResponse = "execution"
    times: Times = "iso"
    status_words: Mapping[str, str] = field(default_factory=dict)
    workflows_at_start: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        check_fields(self)
        for word in self.status_words:
            check("status_words", word, StatusWord)
        if isinstance(self.api_keys, str) or not self.api_keys or not all(self.api_keys):
            # Keys don't appear in errors.
            raise SettingError("api_keys", type(self.api_keys).__name__, "a sequence of non-empty strings")
