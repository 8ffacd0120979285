"""The ways in which a server may count "requests per period": five window algorithms, pure but for what they remember.

The reference gives a number and no algorithm. A refused request is not counted by any of them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Protocol

from techflow_provider.sandbox.settings import Algorithm

# Sums of many fractions may miss a whole number by this much.
ROUNDING = 1e-9


class Window(Protocol):
    """Counts the requests of one key."""

    def take(self, now: float) -> float:
        """Admit a request and return 0, or return in how many seconds the next would be admitted."""


class FixedWindow:
    """Periods follow each other from the sandbox's start; each admits the limit, however close to its ends."""

    def __init__(self, limit: int, period: float, origin: float) -> None:
        self._limit = limit
        self._period = period
        self._origin = origin
        self._index = 0
        self._count = 0

    def take(self, now: float) -> float:
        """Admit a request and return 0, or return in how many seconds the next would be admitted."""
        index = math.floor((now - self._origin) / self._period)
        if index != self._index:
            self._index, self._count = index, 0
        if self._count >= self._limit:
            return self._origin + (index + 1) * self._period - now
        self._count += 1
        return 0.0


class SlidingLog:
    """No stretch of one period holds more than the limit."""

    def __init__(self, limit: int, period: float) -> None:
        self._limit = limit
        self._period = period
        self._times: deque[float] = deque()

    def take(self, now: float) -> float:
        """Admit a request and return 0, or return in how many seconds the next would be admitted."""
        while self._times and self._times[0] + self._period <= now:
            self._times.popleft()
        if len(self._times) >= self._limit:
            return self._times[0] + self._period - now
        self._times.append(now)
        return 0.0


class SlidingCounter:
    """The present period's count, and the last one's in proportion to what a sliding period still covers of it."""

    def __init__(self, limit: int, period: float, origin: float) -> None:
        self._limit = limit
        self._period = period
        self._origin = origin
        self._index = 0
        self._last = 0
        self._count = 0

    def take(self, now: float) -> float:
        """Admit a request and return 0, or return in how many seconds the next would be admitted."""
        position = (now - self._origin) / self._period
        self._turn(math.floor(position))
        elapsed = position - self._index
        if self._last * (1 - elapsed) + self._count + 1 <= self._limit + ROUNDING:
            self._count += 1
            return 0.0
        return (self._opening() - elapsed) * self._period

    def _turn(self, index: int) -> None:
        if index != self._index:
            self._last = self._count if index == self._index + 1 else 0
            self._index, self._count = index, 0

    def _opening(self) -> float:
        """Return where the next request fits, in periods from the present one's start."""
        if self._count < self._limit:
            return 1 - (self._limit - 1 - self._count) / self._last
        return 2 - (self._limit - 1) / self._count


class TokenBucket:
    """A bucket of `burst` tokens, refilled steadily at the limit per period."""

    def __init__(self, limit: int, period: float, burst: int) -> None:
        self._interval = period / limit
        self._burst = burst
        self._tokens = float(burst)
        self._filled_at: float | None = None

    def take(self, now: float) -> float:
        """Admit a request and return 0, or return in how many seconds the next would be admitted."""
        if self._filled_at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._filled_at) / self._interval)
        self._filled_at = now
        if self._tokens + ROUNDING < 1:
            return (1 - self._tokens) * self._interval
        self._tokens -= 1
        return 0.0


class Gcra:
    """The generic cell rate algorithm: requests are due one by one, and may be early by a burst."""

    def __init__(self, limit: int, period: float, burst: int) -> None:
        self._interval = period / limit
        self._tolerance = (burst - 1) * self._interval
        self._due = -math.inf

    def take(self, now: float) -> float:
        """Admit a request and return 0, or return in how many seconds the next would be admitted."""
        early = self._due - self._tolerance - now
        if early > ROUNDING:
            return early
        self._due = max(self._due, now) + self._interval
        return 0.0


def window(algorithm: Algorithm, limit: int, period: float, burst: int | None, origin: float) -> Window:
    """Return an empty window.

    :param limit: requests per period
    :param period: in seconds
    :param burst: requests that a token bucket or GCRA admits at once; None takes the limit
    :param origin: where periods begin, on the clock that `take` is given
    """
    at_once = limit if burst is None else burst
    makers: dict[Algorithm, Callable[[], Window]] = {
        "fixed_window": lambda: FixedWindow(limit, period, origin),
        "sliding_log": lambda: SlidingLog(limit, period),
        "sliding_counter": lambda: SlidingCounter(limit, period, origin),
        "token_bucket": lambda: TokenBucket(limit, period, at_once),
        "gcra": lambda: Gcra(limit, period, at_once),
    }
    return makers[algorithm]()
