"""What a sandbox can be set to. Where TechFlow's reference is silent, a setting chooses between plausible answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from techflow_provider.sandbox.clock import Clock

if TYPE_CHECKING:
    from techflow_provider.sandbox.webhooks import Webhooks

Algorithm = Literal["fixed_window", "sliding_log", "sliding_counter", "token_bucket", "gcra"]
Outcome = Literal["completed", "failed"]
ExecuteAnswer = Literal["execution", "wrapped", "id", "empty"]
HistoryAnswer = Literal["executions", "list", "data"]
NextPage = Literal["link", "body"]
Times = Literal["iso", "iso_seconds", "epoch"]
RetryAfter = bool | Literal["seconds", "date"]

# Longer than any test, and short enough for every date to be representable.
LONGEST_SECONDS = 1_000_000_000.0


class SettingError(ValueError):
    """A setting has an unusable value.

    :param name: the setting's name
    :param received: what it was set to
    :param expected: what can be used, in words
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

    :param api_keys: the keys that are accepted, each with a rate limit of its own
    :param limit: requests per period and key (Rate Limiting)
    :param period_seconds: the period of the rate limit
    :param algorithm: how the requests of a period are counted
    :param burst: requests that a token bucket or GCRA admits at once; None takes the limit
    :param retry_after: whether a 429 tells when to come back, and whether in seconds or as a date
    :param execution_seconds: how long an execution takes; `math.inf` means until it is finished by hand
    :param outcome: how an execution ends
    :param history_lag_seconds: how long a started execution is missing from the history
    :param page_size: executions on one page of the history; None puts all on one
    :param next_page: where a page names its successor: in a Link header, or as `next` in the body
    :param etags: whether answers to GET have an ETag and If-None-Match is respected
    :param execute_answer: what a start is answered with
    :param history_answer: how the history is wrapped
    :param times: how instants are written
    :param status_words: other words for the statuses `running`, `completed`, `failed`, and `active` of a workflow
    :param workflows_at_start: workflows that exist from the beginning, as id and name
    :param webhooks: where webhooks are sent to while the sandbox is served; can be changed at any time
    :param seed: makes ids and the chance of faults reproducible
    :param clock: the time that the sandbox lives in
    :raises SettingError: a value can't be used
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
    etags: bool = False
    execute_answer: ExecuteAnswer = "execution"
    history_answer: HistoryAnswer = "executions"
    times: Times = "iso"
    status_words: Mapping[str, str] = field(default_factory=dict)
    workflows_at_start: Mapping[str, str] = field(default_factory=dict)
    webhooks: Webhooks | None = None
    seed: int | None = None
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self._check_api_keys()
        check_count("limit", self.limit)
        check_seconds("period_seconds", self.period_seconds, above=True)
        check_seconds("execution_seconds", self.execution_seconds)
        check_seconds("history_lag_seconds", self.history_lag_seconds)
        for name in ("burst", "page_size"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        self._check_choices()

    def _check_api_keys(self) -> None:
        if isinstance(self.api_keys, str) or not self.api_keys or not all(self.api_keys):
            received = type(self.api_keys).__name__ if self.api_keys else self.api_keys
            raise SettingError("api_keys", received, "a sequence of non-empty texts")

    def _check_choices(self) -> None:
        check_choice("retry_after", self.retry_after, (True, False, "seconds", "date"))
        check_choice("algorithm", self.algorithm, get_args(Algorithm))
        check_choice("outcome", self.outcome, get_args(Outcome))
        check_choice("next_page", self.next_page, get_args(NextPage))
        check_choice("execute_answer", self.execute_answer, get_args(ExecuteAnswer))
        check_choice("history_answer", self.history_answer, get_args(HistoryAnswer))
        check_choice("times", self.times, get_args(Times))
        for word in self.status_words:
            check_choice("status_words", word, ("running", "completed", "failed", "active"))


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Check that a value is one of some.

    :raises SettingError: it is another
    """
    if value not in choices:
        raise SettingError(name, value, f"one of {', '.join(map(str, choices))}")


def check_count(name: str, value: object) -> None:
    """Check that a value is a whole number above 0.

    :raises SettingError: it is not
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingError(name, value, "a whole number above 0")


def check_seconds(name: str, value: object, *, above: bool = False) -> None:
    """Check that a value is a duration in seconds; infinite is one, unless it has to be above 0.

    :raises SettingError: it is not
    """
    expected = f"a number of seconds {'above 0' if above else 'from 0'} up to {LONGEST_SECONDS:.0f}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingError(name, value, expected)
    if value == math.inf and not above:
        return
    if not 0 <= value <= LONGEST_SECONDS or (above and value == 0):
        raise SettingError(name, value, expected)
