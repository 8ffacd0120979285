"""Five algorithms with which a server may enforce "requests per period". They neither wait nor read a clock.

The reference gives a number and no algorithm. None of them counts a rejected request.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Protocol

from techflow_provider.sandbox.settings import Algorithm

# Sums of many fractions may differ from an integer by this much.
ROUNDING = 1e-9


class Window(Protocol):
    """Counts the requests of one key."""

    def admit(self, now: float) -> float:
        """Admit a request and return 0, or return the seconds until the next one would be admitted."""


class FixedWindow:
    """Consecutive periods from the sandbox's start; each admits the limit, however close to its boundaries."""

    def __init__(self, limit: int, period: float, origin: float) -> None:
        self._limit = limit
        self._period = period
        self._origin = origin
        self._index = 0
        self._count = 0

    def admit(self, now: float) -> float:
        """Admit a request and return 0, or return the seconds until the next one would be admitted."""
        index = math.floor((now - self._origin) / self._period)
        if index != self._index:
            self._index, self._count = index, 0
        if self._count >= self._limit:
            return self._origin + (index + 1) * self._period - now
        self._count += 1
        return 0.0


class SlidingLog:
    """No interval as long as the period contains more requests than the limit."""

    def __init__(self, limit: int, period: float) -> None:
        self._limit = limit
        self._period = period
        self._times: deque[float] = deque()

    def admit(self, now: float) -> float:
        """Admit a request and return 0, or return the seconds until the next one would be admitted."""
        while self._times and self._times[0] + self._period <= now:
            self._times.popleft()
        if len(self._times) >= self._limit:
            return self._times[0] + self._period - now
        self._times.append(now)
        return 0.0


class SlidingCounter:
    """The count of the current period, plus the previous one's weighted by how much of it a sliding period covers."""

    def __init__(self, limit: int, period: float, origin: float) -> None:
        self._limit = limit
        self._period = period
        self._origin = origin
        self._index = 0
        self._previous = 0
        self._count = 0

    def admit(self, now: float) -> float:
        """Admit a request and return 0, or return the seconds until the next one would be admitted."""
        position = (now - self._origin) / self._period
        self._advance(math.floor(position))
        elapsed = position - self._index
        if self._previous * (1 - elapsed) + self._count + 1 <= self._limit + ROUNDING:
            self._count += 1
            return 0.0
        return (self._next_slot() - elapsed) * self._period

    def _advance(self, index: int) -> None:
        if index != self._index:
            self._previous = self._count if index == self._index + 1 else 0
            self._index, self._count = index, 0

    def _next_slot(self) -> float:
        """Return when the next request is admitted, in periods from the start of the current one."""
        if self._count < self._limit:
            return 1 - (self._limit - 1 - self._count) / self._previous
        return 2 - (self._limit - 1) / self._count


class TokenBucket:
    """A bucket of `burst` tokens, refilled at a constant rate of the limit per period."""

    def __init__(self, limit: int, period: float, burst: int) -> None:
        self._interval = period / limit
        self._burst = burst
        self._tokens = float(burst)
        self._filled_at: float | None = None

    def admit(self, now: float) -> float:
        """Admit a request and return 0, or return the seconds until the next one would be admitted."""
        if self._filled_at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._filled_at) / self._interval)
        self._filled_at = now
        if self._tokens + ROUNDING < 1:
            return (1 - self._tokens) * self._interval
        self._tokens -= 1
        return 0.0


class Gcra:
    """The generic cell rate algorithm: requests are due at equal intervals, and may be early by a burst."""

    def __init__(self, limit: int, period: float, burst: int) -> None:
        self._interval = period / limit
        self._tolerance = (burst - 1) * self._interval
        self._tat = -math.inf

    def admit(self, now: float) -> float:
        """Admit a request and return 0, or return the seconds until the next one would be admitted."""
        early = self._tat - self._tolerance - now
        if early > ROUNDING:
            return early
        self._tat = max(self._tat, now) + self._interval
        return 0.0


def window(algorithm: Algorithm, limit: int, period: float, burst: int | None, origin: float) -> Window:
    """Return an empty window.

    :param limit: requests per period
    :param period: in seconds
    :param burst: requests that a token bucket or GCRA admits at once; None uses the limit
    :param origin: start of the first period, on the clock whose time `admit` receives
    """
    capacity = limit if burst is None else burst
    makers: dict[Algorithm, Callable[[], Window]] = {
        "fixed_window": lambda: FixedWindow(limit, period, origin),
        "sliding_log": lambda: SlidingLog(limit, period),
        "sliding_counter": lambda: SlidingCounter(limit, period, origin),
        "token_bucket": lambda: TokenBucket(limit, period, capacity),
        "gcra": lambda: Gcra(limit, period, capacity),
    }
    return makers[algorithm]()
