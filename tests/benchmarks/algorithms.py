"""Five ways in which a server may count requests, each returning how many arrivals it would have rejected."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable

# Servers whose windows begin at the clock's own time are tried with windows that begin at each of so many phases.
PHASES = 60


def fixed_window(arrivals: list[float], limit: int, period: float) -> int:
    """A count per window of the clock; the worst of all phases."""
    return max(_fixed(arrivals, limit, period, phase * period / PHASES) for phase in range(PHASES))


def _fixed(arrivals: list[float], limit: int, period: float, phase: float) -> int:
    window, count, rejected = None, 0, 0
    for at in arrivals:
        here = (at - phase) // period
        if here != window:
            window, count = here, 0
        if count >= limit:
            rejected += 1
        else:
            count += 1
    return rejected


def sliding_log(arrivals: list[float], limit: int, period: float) -> int:
    """The requests of the last minute, one by one."""
    log: deque[float] = deque()
    rejected = 0
    for at in arrivals:
        while log and log[0] <= at - period:
            log.popleft()
        if len(log) >= limit:
            rejected += 1
        else:
            log.append(at)
    return rejected


def sliding_counter(arrivals: list[float], limit: int, period: float) -> int:
    """The present window's count and a part of the one before; the worst of all phases."""
    return max(_counter(arrivals, limit, period, phase * period / PHASES) for phase in range(PHASES))


def _counter(arrivals: list[float], limit: int, period: float, phase: float) -> int:
    counts: dict[float, int] = {}
    rejected = 0
    for at in arrivals:
        window, inside = divmod(at - phase, period)
        estimate = counts.get(window - 1, 0) * (1 - inside / period) + counts.get(window, 0)
        if estimate >= limit:
            rejected += 1
        else:
            counts[window] = counts.get(window, 0) + 1
    return rejected


def token_bucket(arrivals: list[float], limit: int, period: float) -> int:
    """A bucket of the whole limit, filled steadily."""
    return _bucket(arrivals, limit, period, limit)


def gcra(arrivals: list[float], limit: int, period: float) -> int:
    """A bucket of a tenth of the limit, filled steadily: the strictest of the five."""
    return _bucket(arrivals, limit, period, max(1, limit // 10))


def _bucket(arrivals: list[float], limit: int, period: float, size: int) -> int:
    tokens, last, rejected = float(size), arrivals[0] if arrivals else 0.0, 0
    for at in arrivals:
        tokens, last = min(float(size), tokens + (at - last) * limit / period), at
        if tokens < 1:
            rejected += 1
        else:
            tokens -= 1
    return rejected


def worst_window(arrivals: list[float], period: float) -> int:
    """Return the most requests in any window of a minute."""
    return max((index - bisect_left(arrivals, at - period) + 1 for index, at in enumerate(arrivals)), default=0)


ALGORITHMS: dict[str, Callable[[list[float], int, float], int]] = {
    "fixed": fixed_window,
    "log": sliding_log,
    "counter": sliding_counter,
    "bucket": token_bucket,
    "gcra": gcra,
}
