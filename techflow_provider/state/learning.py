"""What a budget learns about the server's limiter from 429s and from what responses state, as pure arithmetic.

A limiter can differ from the documented limit in two ways. Its bucket may be smaller than our burst: then a request of
a burst is rejected, and the burst shrinks to what was accepted. Or less than the limit is left for us, because it is
lower or somebody else uses the key: then a request is rejected although requests are evenly paced, and the share of the
limit that is used shrinks. A share grows again along a cubic curve, as in TCP CUBIC (RFC 9438): quickly to the plateau
where the server objected, slowly around it, and then the faster the longer nothing happens. A burst grows by one each
time it was used up, but for some time after a rejection it doesn't.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

MINUTE_SECONDS = 60.0
# By how much a 429 under even pacing lowers the share; each further one within so many minutes doubles it.
DECREASE, LARGEST_DECREASE, REPEATED_MINUTES = 0.06, 0.3, 2.0
# A share is not lowered below this part of what was accepted in the last minute.
ACCEPTED_PART = 0.75
# Reductions in quicker succession count twice: the limit is far off.
QUICK_MINUTES = 0.5
# A minute beyond the plateau the share is larger by this part of it, two minutes beyond by eight times as much.
GROWTH = 0.01
LOWEST_SHARE = 0.002
# A burst that was rejected is not tried again for so long.
BURST_MINUTES = 30.0
# A Retry-After of more intervals than this comes from a window that is full, not from a bucket that lacks a token.
WINDOW_INTERVALS = 6.0
# No more of the limit than this is left to others for good because of what one response states.
MOST_OTHERS = 0.75
# A quota is heeded for so long, and then again if a response still states it.
LONGEST_QUOTA_MINUTES = 5.0
# Requests in transit, and windows that begin at another time than ours, explain a difference as large as this.
SLACK = 4


class Cause(StrEnum):
    """Why a budget uses less than the configured limit, as text for people."""

    NONE = "nothing"
    BURST = "a 429 within a burst"
    RATE = "a 429 although requests were evenly paced"
    OTHERS = "responses show that somebody else uses the key"
    STATED = "responses state a lower limit"
    ALONE = "it isn't known what others send, since the shared state can't be used"


@dataclass(frozen=True, slots=True)
class Rejection:
    """A 429.

    :param seconds: what the server asked for
    :param epoch: the epoch of the request's slot
    :param in_burst: whether the request was earlier than the steady rate allows
    :param jitter: from 0 to 1, how much of the half of a cool-down that the server didn't ask for is left out, so that
        hosts that don't share a budget don't continue at the same time
    """

    seconds: float | None
    epoch: float
    in_burst: bool = False
    jitter: float = 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What a budget uses at present, to compare it with what a response states.

    :param limit: the configured limit per minute
    :param share: the part of the limit that is used
    :param interval_seconds: time between two requests
    :param sent: requests of the last minute; -1 when they weren't counted
    :param stated: the limit per minute that responses have stated before
    :param others: what somebody else is known to use of the limit
    """

    limit: float
    share: float
    interval_seconds: float
    sent: float
    stated: float
    others: float


@dataclass(frozen=True, slots=True)
class Quota:
    """What a response states about the limit.

    :param limit: requests per window
    :param remaining: requests that are left
    :param reset_seconds: until more are
    :param window_seconds: length of the window; 0 when it isn't stated
    """

    limit: float
    remaining: float
    reset_seconds: float
    window_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers.

        :raises ValueError: one can't be right
        """
        if not all(
            0 <= each < math.inf for each in (self.limit, self.remaining, self.reset_seconds, self.window_seconds)
        ):
            raise ValueError(f"expected finite numbers of 0 or more, got {self}")

    @property
    def per_minute(self) -> float:
        """The limit per minute; a window that isn't stated is taken for one."""
        return self.limit * MINUTE_SECONDS / (self.window_seconds or MINUTE_SECONDS)

    def others(self, usage: Usage) -> float:
        """Return how much of the limit somebody else uses at least, where that is more than was known."""
        is_minute = self.window_seconds == MINUTE_SECONDS or (
            not self.window_seconds and self.limit == usage.limit and self.reset_seconds <= MINUTE_SECONDS
        )
        if not is_minute or usage.sent < 0:
            return 0.0
        seen = self.limit - self.remaining - usage.sent
        # They have used that since the window began; one that can't be right is taken for half of it.
        elapsed = max(MINUTE_SECONDS - self.reset_seconds, MINUTE_SECONDS / 2)
        others = min(max(0.0, seen - SLACK) * MINUTE_SECONDS / elapsed, MOST_OTHERS * usage.limit)
        return others if others > usage.others + SLACK else 0.0

    def is_short(self, usage: Usage) -> bool:
        """Whether the remaining quota would be used up at the present rate, and not by our own use that we know of."""
        remaining = self.left_to_us(usage)
        ours = self.reset_seconds <= MINUTE_SECONDS and (
            usage.sent < 0 or remaining + usage.sent >= usage.limit * usage.share - SLACK
        )
        # The time may be rounded up to a second.
        return not ours and (self.reset_seconds - 1) // usage.interval_seconds > remaining

    def left_to_us(self, usage: Usage) -> float:
        """Return what remains beside that which others will use until the reset."""
        return max(0.0, self.remaining - usage.others * min(1.0, self.reset_seconds / MINUTE_SECONDS))

    def adds_to(self, usage: Usage) -> bool:
        """Whether the response states something that the budget does not know yet."""
        return self.per_minute != usage.stated or self.others(usage) > 0 or self.is_short(usage)


@dataclass(frozen=True, slots=True)
class Learned:
    """What was learned; times are on the clock of the store that keeps it.

    :param burst: the largest burst that is tried
    :param burst_until: until when it doesn't grow
    :param plateau: the share of the limit at which the server last objected
    :param plateau_at: when that share is reached again
    :param reduced_at: when the share was last reduced
    :param reductions: reductions in quick succession
    :param quota_interval: time between two requests that a remaining quota allows
    :param quota_until: until when it does
    :param stated: the limit per minute that responses state; 0: none
    :param cause: why the share or the burst was last reduced
    """

    burst: float
    burst_until: float
    plateau: float
    plateau_at: float
    reduced_at: float
    reductions: float = 0.0
    quota_interval: float = 0.0
    quota_until: float = 0.0
    stated: float = 0.0
    cause: Cause = Cause.NONE

    @classmethod
    def nothing(cls, now: float, burst: float) -> Learned:
        """Return what is known at first."""
        return cls(burst, now, 1.0, now, now, quota_until=now)

    @property
    def times(self) -> tuple[float, float, float, float]:
        """The times that it holds."""
        return self.burst_until, self.plateau_at, self.reduced_at, self.quota_until

    def share(self, now: float) -> float:
        """Return the part of the limit to use."""
        x = (now - self.plateau_at) / MINUTE_SECONDS
        return max(LOWEST_SHARE, min(1.0, self.plateau * (1.0 + GROWTH * x * x * x)))

    def moved(self, seconds: float) -> Learned:
        """Return it on a clock that was set."""
        burst_until, plateau_at, reduced_at, quota_until = (each + seconds for each in self.times)
        return replace(
            self, burst_until=burst_until, plateau_at=plateau_at, reduced_at=reduced_at, quota_until=quota_until
        )

    @property
    def relaxed_at(self) -> float:
        """When the whole limit is used again."""
        whole = self.plateau_at + MINUTE_SECONDS * math.cbrt((1 / self.plateau - 1) / GROWTH)
        return max(whole, self.burst_until) if self.cause is Cause.BURST else whole

    def cause_at(self, now: float, share: float) -> Cause:
        """Return why less is used than configured; nothing once a burst may grow and the share is whole again."""
        return self.cause if share < 1 or (self.cause is Cause.BURST and now < self.burst_until) else Cause.NONE

    def with_burst(self, burst: float, now: float) -> Learned:
        """Return it with a smaller burst, or one request if that is what remains."""
        return replace(self, burst=max(1.0, burst), burst_until=now + BURST_MINUTES * MINUTE_SECONDS, cause=Cause.BURST)

    def reduced(self, accepted: float, now: float, full: float | None, elapsed: float) -> Learned:
        """Return it with a smaller share, after a 429 under even pacing.

        :param accepted: the share of the limit that was accepted in the last minute, below which most of it works
        :param full: the share of the limit that we have used of the server's window, where that is known to be full
        :param elapsed: how long ago that window began
        """
        present, since = self.share(now), (now - self.reduced_at) / MINUTE_SECONDS
        further = 0.0 if since >= REPEATED_MINUTES else 2.0 if since < QUICK_MINUTES else 1.0
        reductions = self.reductions + further if self.reductions and further else 1.0
        decrease = min(LARGEST_DECREASE, DECREASE * 2.0 ** (reductions - 1))
        plateau = present * (1 - decrease / 2) if reductions > 1 else present
        if full is not None:
            # What is left to us of a minute if others continue to use as much as until now.
            ours = 1 - (1 - full) * MINUTE_SECONDS / max(elapsed, MINUTE_SECONDS / 4)
            plateau, decrease = min(present, max(ours, present / 2)), DECREASE
        share = max(plateau * (1 - decrease), min(present * (1 - DECREASE), ACCEPTED_PART * accepted))
        lowered = replace(self, reduced_at=now, reductions=reductions, cause=Cause.RATE)
        return lowered.from_share(max(plateau, share), share, now)

    def from_share(self, plateau: float, share: float, now: float) -> Learned:
        """Return it with a share that grows from the given one to the plateau and beyond."""
        plateau = max(plateau, LOWEST_SHARE)
        gap = max(0.0, 1 - share / plateau)
        return replace(self, plateau=plateau, plateau_at=now + MINUTE_SECONDS * math.cbrt(gap / GROWTH))

    def after(self, quota: Quota, usage: Usage, now: float) -> Learned:
        """Return what is known after a response has stated its quota."""
        stated, share = quota.per_minute, usage.share
        learned = replace(self, stated=stated)
        if self.cause is Cause.STATED and stated != self.stated:
            learned, share = replace(learned, plateau=1.0, plateau_at=now, cause=Cause.NONE), 1.0
        if quota.window_seconds and stated < usage.limit * share:
            share = stated / usage.limit
            learned = replace(learned.from_share(share, share, now), cause=Cause.STATED)
        if others := quota.others(usage):
            share = min(share, 1 - others / usage.limit)
            learned = replace(learned.from_share(share, share, now), cause=Cause.OTHERS)
        if quota.is_short(usage):
            others = usage.limit * (1 - share) if learned.cause is Cause.OTHERS else 0.0
            interval = quota.reset_seconds / (quota.left_to_us(replace(usage, others=others)) + 1)
            lasts = min(quota.reset_seconds, LONGEST_QUOTA_MINUTES * MINUTE_SECONDS)
            learned = replace(learned, quota_interval=min(interval, lasts), quota_until=now + lasts)
        return learned
