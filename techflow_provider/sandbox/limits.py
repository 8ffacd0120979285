"""The algorithms with which a server may enforce "requests per period". They neither wait nor read a clock.

The reference gives a number and no algorithm. None of them counts a rejected request.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TypeAlias

from techflow_provider.sandbox.settings import Algorithm

# Sums of many fractions may differ from an integer by this much.
ROUNDING = 1e-9


@dataclass
class SlidingLog:
    """No interval as long as the period contains more requests than the limit."""

    limit: int
    period: float
    times: deque[float] = field(default_factory=deque)

    def admit(self, now: float) -> float:
        """Admit a request and return 0, or return the seconds until the next one would be admitted."""
        while self.times and self.times[0] + self.period <= now:
            self.times.popleft()
        if len(self.times) >= self.limit:
            return self.times[0] + self.period - now
        self.times.append(now)
        return 0.0


@dataclass
class PeriodCounter:
    """The count of the current one of consecutive periods, and that of the previous one by its weight.

    :param origin: start of the first period
    :param weight: 1 for a sliding counter, which counts the previous period by how much of it a sliding period covers;
        0 for a fixed window, which forgets it
    """

    limit: int
    period: float
    origin: float
    weight: int
    index: int = 0
    previous: int = 0
    count: int = 0

    def admit(self, now: float) -> float:
        """Admit a request and return 0, or return the seconds until the next one would be admitted."""
        position = (now - self.origin) / self.period
        self._advance(math.floor(position))
        elapsed = position - self.index
        if self.previous * (1 - elapsed) + self.count + 1 <= self.limit + ROUNDING:
            self.count += 1
            return 0.0
        return (self._next_slot() - elapsed) * self.period

    def _advance(self, index: int) -> None:
        if index != self.index:
            self.previous = self.count * self.weight if index == self.index + 1 else 0
            self.index, self.count = index, 0

    def _next_slot(self) -> float:
        """Return when the next request is admitted, in periods from the start of the current one."""
        if self.count < self.limit:
            return 1 - (self.limit - 1 - self.count) / self.previous
        return 2 - (self.limit - 1) / self.count if self.weight else 1


@dataclass
class Gcra:
    """The generic cell rate algorithm: requests are due at equal intervals, and may be early by a burst.

    A bucket of as many tokens as the burst, refilled at the same rate, admits exactly the same requests.
    """

    limit: int
    period: float
    burst: int
    tat: float = -math.inf

    def admit(self, now: float) -> float:
        """Admit a request and return 0, or return the seconds until the next one would be admitted."""
        interval = self.period / self.limit
        early = self.tat - (self.burst - 1) * interval - now
        if early > ROUNDING:
            return early
        self.tat = max(self.tat, now) + interval
        return 0.0


# Counts the requests of one key.
Window: TypeAlias = SlidingLog | PeriodCounter | Gcra


def window(algorithm: Algorithm, limit: int, period: float, burst: int | None, origin: float) -> Window:
    """Return an empty window.

    :param limit: requests per period
    :param period: in seconds
    :param burst: requests that a token bucket or GCRA admits at once; None uses the limit
    :param origin: start of the first period, on the clock whose time `admit` receives
    """
    match algorithm:
        case "fixed_window":
            return PeriodCounter(limit, period, origin, weight=0)
        case "sliding_counter":
            return PeriodCounter(limit, period, origin, weight=1)
        case "sliding_log":
            return SlidingLog(limit, period)
        case "token_bucket" | "gcra":
            return Gcra(limit, period, burst or limit)
