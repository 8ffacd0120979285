"""How fast a budget goes: the rate of a generic cell rate algorithm (GCRA) that keeps to a limit, and its policy.

A burst B and a rate r with B + r·(60 s + J) ≤ limit keep every window of a minute inside the limit, whichever way
the server counts; J is the time by which a request may arrive later than its slot.
"""

from __future__ import annotations

from dataclasses import dataclass

MINUTE_SECONDS = 60.0
# How much later than its slot a request may reach the server without a window ever holding more than the limit.
JITTER_SECONDS = 1.5
# Who wakes up later than this after a slot has missed it; what is left of the jitter is the time on the way.
LATE_SECONDS = 1.0
# The part of the rate that polls get even when commands want it all; all pollers of a key together make do with it.
POLL_SHARE = 0.2
# The pauses after a 429 that names none: the first, the longest, and what even a Retry-After of 0 brings. The longest
# one sends six requests a minute to a server that refuses all, and who waits learns of its end within two looks.
PAUSES = FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, SHORTEST_PAUSE_SECONDS = 5.0, 10.0, 1.0
# Covers rounding, and a window that holds both its ends.
MARGIN_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Rate:
    """A burst and a steady rate.

    :param burst: requests that may leave at once after a pause
    :param interval_seconds: time between two requests in the long run
    """

    burst: int
    interval_seconds: float

    @classmethod
    def within(cls, limit: int, period_seconds: float, burst: int, jitter_seconds: float = JITTER_SECONDS) -> Rate:
        """Return the fastest rate that never exceeds `limit` requests in any window of `period_seconds`.

        The burst is cut so that at least half the limit is left to the steady rate.
        """
        kept = max(1, min(burst, limit // 2))
        return cls(kept, (period_seconds + jitter_seconds + MARGIN_SECONDS) / max(limit - kept, 1))

    def tolerance(self, burst: int | None = None) -> float:
        """Return how long before its theoretical arrival time a request may leave."""
        return ((self.burst if burst is None else burst) - 1) * self.interval_seconds

    @property
    def polls_burst(self) -> int:
        """The part of the burst that polls may use up."""
        return (self.burst + 1) // 2


@dataclass(frozen=True, slots=True)
class Policy:
    """How a budget is kept.

    :param rate: burst and steady rate
    :param poll_share: the part of the rate that polls get even when commands want it all
    :param late_seconds: who wakes up later than this after a slot has missed it
    :param first_pause_seconds: pause after the first 429 without a Retry-After, doubled with each refused probe
    :param longest_pause_seconds: bound of the growth
    :param shortest_pause_seconds: a pause that even a Retry-After of 0 brings
    :param probe_seconds: time after which a probe that brought no answer is given up
    """

    rate: Rate
    poll_share: float = POLL_SHARE
    late_seconds: float = LATE_SECONDS
    first_pause_seconds: float = FIRST_PAUSE_SECONDS
    longest_pause_seconds: float = LONGEST_PAUSE_SECONDS
    shortest_pause_seconds: float = SHORTEST_PAUSE_SECONDS
    probe_seconds: float = 30.0

    @classmethod
    def of(cls, requests_per_minute: int, burst: int, minute_seconds: float = MINUTE_SECONDS) -> Policy:
        """Return the policy for a limit; a shorter minute makes everything else shorter, too."""
        scale = minute_seconds / MINUTE_SECONDS
        rate = Rate.within(requests_per_minute, minute_seconds, burst, JITTER_SECONDS * scale)
        first, longest, shortest = (each * scale for each in PAUSES)
        return cls(rate, POLL_SHARE, LATE_SECONDS * scale, first, longest, shortest, 30 * scale)

    @property
    def poll_interval_seconds(self) -> float:
        """Time after which a poll goes before commands."""
        return self.rate.interval_seconds / self.poll_share

    @property
    def drained_seconds(self) -> float:
        """How far ahead the theoretical arrival time of an empty bucket lies."""
        return self.rate.tolerance() + self.rate.interval_seconds
