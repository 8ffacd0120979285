"""Decide when a poller polls next; arithmetic without clock or waiting.

Every wait has an interval that it would like. All polls together get a fixed share of the rate limit. Polls become
rarer while commands queue for the budget, and while webhooks announce what the polls then find.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from techflow_provider.client.reading import SHORTEST_INTERVAL_SECONDS, WOKEN_INTERVAL_SECONDS
from techflow_provider.state.gcra import POLL_SHARE
from techflow_provider.state.learning import MINUTE_SECONDS
from techflow_provider.state.snapshot import Snapshot

# A webhook's poll comes soon after the last one, unless another webhook's poll has come so shortly before.
SOON_SECONDS = 5.0
# While webhooks announce every completion, polls without one become this rare; they find what a webhook missed.
LONGEST_STREAK_SECONDS = 30.0
# Failures stretch the interval by no more than this, so that waits see soon that the server is back.
FAILURE_FACTOR = 2.0


@dataclass(slots=True)
class PollSchedule:
    """What one poller knows that decides when it polls next.

    :param has_failed: whether the last poll failed
    :param webhook_streak: polls in a row that found something, each after a webhook
    :param expecting: whether what a webhook announced isn't found yet, since the history may lag behind
    :param woken_at: when the last poll that a webhook asked for was due
    """

    has_failed: bool = False
    webhook_streak: int = 0
    expecting: bool = False
    woken_at: float = -math.inf

    def failed(self) -> None:
        """Record a poll that failed."""
        self.has_failed = True

    def polled(self, *, woken: bool, found: bool) -> None:
        """Record a poll.

        :param woken: whether a webhook asked for it
        :param found: whether it held what an observer waited for
        """
        self.has_failed = False
        self.expecting = woken and not found
        if found:
            self.webhook_streak = self.webhook_streak + 1 if woken else 0

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
        return interval * FAILURE_FACTOR if self.has_failed else interval

    def wake(self, began: float) -> float:
        """Record that a webhook asks for a poll, and return when that is due.

        :param began: when the last poll began
        """
        is_soon = began >= self.woken_at + SOON_SECONDS
        self.woken_at = began + (WOKEN_INTERVAL_SECONDS if is_soon else SHORTEST_INTERVAL_SECONDS)
        return self.woken_at
