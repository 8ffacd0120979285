"""Decide when a poller polls next; arithmetic without clock or waiting.

Every wait has an interval that it would like. All polls together get a fixed share of the rate limit. Polls become
rarer while commands queue for the budget, and while webhooks announce what the polls then find.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from techflow_provider.client.reading import SHORTEST_INTERVAL_SECONDS, WOKEN_INTERVAL_SECONDS
from techflow_provider.client.retry import backoff_seconds
from techflow_provider.state.gcra import MINUTE_SECONDS, POLL_SHARE
from techflow_provider.state.snapshot import Snapshot

# A webhook's poll comes soon after the last one, or after the shortest interval once there are many in a minute.
SOON_POLLS_PER_MINUTE = 12
# While webhooks announce every completion, polls without one become this rare; they find what a webhook missed.
LONGEST_STREAK_SECONDS = 30.0
# Failures in a row stretch the interval by no more than this, so that waits see soon that the server is back.
LONGEST_BACKOFF = 2.0


@dataclass(slots=True)
class PollSchedule:
    """What one poller knows that decides when it polls next.

    :param failures: polls in a row that failed
    :param webhook_streak: polls in a row that found something, each after a webhook
    :param expecting: whether what a webhook announced isn't found yet, since the history may lag behind
    """

    failures: int = 0
    webhook_streak: int = 0
    expecting: bool = False
    _polls: deque[float] = field(default_factory=deque, repr=False)

    def failed(self, now: float) -> None:
        """Record a poll that failed."""
        self._record(now)
        self.failures += 1

    def polled(self, now: float, *, woken: bool, found: bool) -> None:
        """Record a poll.

        :param woken: whether a webhook asked for it
        :param found: whether it held what an observer waited for
        """
        self._record(now)
        self.failures = 0
        self.expecting = woken and not found
        if found:
            self.webhook_streak = self.webhook_streak + 1 if woken else 0

    def _record(self, now: float) -> None:
        self._polls.append(now)
        while self._polls[0] <= now - MINUTE_SECONDS:
            self._polls.popleft()

    def due(self, began: float, ended: float, interval: float) -> float:
        """Return when the next poll is due.

        :param began: when the last one began
        :param ended: and when it ended; a slow server gets a rest
        :param interval: as `interval` returns it
        """
        return max(began + interval, ended + min(interval, SHORTEST_INTERVAL_SECONDS))

    def interval(self, wanted_seconds: float, budget: Snapshot) -> float:
        """Return the time from the beginning of one poll to that of the next.

        :param wanted_seconds: the shortest interval that an observer would like
        :param budget: the state of the budget
        """
        share = MINUTE_SECONDS / (budget.requests_per_minute * POLL_SHARE)
        interval = max(wanted_seconds, SHORTEST_INTERVAL_SECONDS, share)
        if budget.waiting:
            interval *= 2
        if not self.expecting:
            stretched = interval * 2.0 ** min(self.webhook_streak, 30)
            interval = max(interval, min(stretched, LONGEST_STREAK_SECONDS))
        return backoff_seconds(interval, self.failures, interval * LONGEST_BACKOFF)

    def woken_due(self, began: float) -> float:
        """Return when a poll that a webhook asks for is due.

        :param began: when the last poll began
        """
        soon = len(self._polls) < SOON_POLLS_PER_MINUTE
        return began + (WOKEN_INTERVAL_SECONDS if soon else SHORTEST_INTERVAL_SECONDS)
