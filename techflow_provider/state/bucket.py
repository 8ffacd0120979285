"""The arithmetic of the rate budget: the generic cell rate algorithm (GCRA), pure.

One number is kept, the theoretical arrival time: when the bucket would be empty of debt if nothing more were taken.
A burst B and a rate r with B + r·(60 s + J) ≤ limit keep every window of a minute inside the limit, whichever way
the server counts; J is the time by which a request may arrive later than its slot.
"""

from __future__ import annotations

from dataclasses import dataclass

# How much later than its slot a request may reach the server without a window ever holding more than the limit.
JITTER_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class Rate:
    """A burst and a steady rate.

    :param burst: requests that may leave at once after a pause
    :param interval_seconds: time between two requests in the long run
    """

    burst: int
    interval_seconds: float

    @classmethod
    def within(cls, limit: int, period_seconds: float, burst: int) -> Rate:
        """Return the fastest rate that never exceeds `limit` requests in any window of `period_seconds`.

        The burst is cut so that at least half the limit is left to the steady rate.
        """
        kept = max(1, min(burst, limit // 2))
        return cls(kept, (period_seconds + JITTER_SECONDS) / max(limit - kept, 1))


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in the budget.

    :param due: when it may be used, on the budget's clock
    :param arrival: the theoretical arrival time to keep when it is taken
    """

    due: float
    arrival: float


def next_slot(rate: Rate, arrival: float, now: float, burst: int | None = None) -> Slot:
    """Return the next free slot.

    :param arrival: the theoretical arrival time kept so far
    :param now: the present, on the same clock
    :param burst: a smaller burst for a request that leaves part of it to others
    """
    tolerance = ((burst or rate.burst) - 1) * rate.interval_seconds
    due = max(now, arrival - tolerance)
    return Slot(due, max(now, arrival) + rate.interval_seconds)
