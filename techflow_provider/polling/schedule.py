"""Decide when a poller looks next; arithmetic without clock or waiting.

Waits say how often they would like a look. Polls in all get a fixed share of the rate limit, which the pollers of all
triggerers divide among them. Commands that queue for the budget make the looks rarer, and so do webhooks that announce
what the looks then find.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from techflow_provider.client.errors import backoff_seconds
from techflow_provider.state.gcra import MINUTE_SECONDS, POLL_SHARE
from techflow_provider.state.snapshot import Snapshot

# However eager the waits are, this keeps the looks of one poller under 20 a minute.
SHORTEST_INTERVAL_SECONDS = 3.0
# A look that a webhook asks for comes this soon after the last one, or waits for the shortest interval when such looks
# come thick and fast.
SHORTEST_RUNG_SECONDS = 1.0
RUNG_LOOKS_A_MINUTE = 12
# While webhooks announce every end, looks without one become this rare; they find what a webhook missed.
LONGEST_ANNOUNCED_SECONDS = 30.0
# After failures in a row looks become rarer by so much only: who waits wants to know soon after the server is back.
LONGEST_BACKOFF = 2.0


@dataclass(slots=True)
class PollSchedule:
    """What one poller knows that decides when it looks next.

    :param failures: looks in a row that failed
    :param announced: looks in a row that found an end, each after a webhook
    :param expecting: whether a webhook came whose news are still to be found, since the history may be behind it
    """

    failures: int = 0
    announced: int = 0
    expecting: bool = False
    _looks: deque[float] = field(default_factory=deque, repr=False)

    def failed(self, now: float) -> None:
        """Note a look that failed."""
        self._note(now)
        self.failures += 1

    def looked(self, now: float, *, rang: bool, news: bool) -> None:
        """Note a look.

        :param rang: whether a webhook asked for it
        :param news: whether it brought something that was waited for
        """
        self._note(now)
        self.failures = 0
        self.expecting = rang and not news
        if news:
            self.announced = self.announced + 1 if rang else 0

    def _note(self, now: float) -> None:
        self._looks.append(now)
        while self._looks[0] <= now - MINUTE_SECONDS:
            self._looks.popleft()

    def due(self, began: float, ended: float, wanted_seconds: float, budget: Snapshot, pollers: int) -> float:
        """Return when the next look is due.

        :param began: when the last one began
        :param ended: and when it ended; a slow server gets a rest
        """
        interval = self.interval(wanted_seconds, budget, pollers)
        return max(began + interval, ended + min(interval, SHORTEST_INTERVAL_SECONDS))

    def interval(self, wanted_seconds: float, budget: Snapshot, pollers: int) -> float:
        """Return the time from one look's begin to the next one's.

        :param wanted_seconds: the shortest interval that an observer asks for
        :param budget: how the budget stands
        :param pollers: how many pollers share it
        """
        share = MINUTE_SECONDS * pollers / (budget.requests_per_minute * POLL_SHARE)
        interval = max(wanted_seconds, SHORTEST_INTERVAL_SECONDS, share)
        if budget.waiting:
            interval *= 2
        if not self.expecting:
            interval = max(interval, min(interval * 2.0 ** min(self.announced, 30), LONGEST_ANNOUNCED_SECONDS))
        return backoff_seconds(interval, self.failures, interval * LONGEST_BACKOFF)

    def rung(self, last: float) -> float:
        """Return the earliest time for a look that a webhook asks for.

        :param last: when the last look began
        """
        soon = len(self._looks) < RUNG_LOOKS_A_MINUTE
        return last + (SHORTEST_RUNG_SECONDS if soon else SHORTEST_INTERVAL_SECONDS)
