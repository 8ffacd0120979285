"""Models of the limiters that people put in front of an API, and callers of one budget, in virtual time.

Each limiter takes a moment and says whether it accepts a request then, what Retry-After and quota it states, and for
how long it holds the request back. Rejected requests don't count, except with HAProxy.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple, Protocol

from techflow_provider.state.budget import RequestClass, Reservation, SharedBudget
from techflow_provider.state.learning import Quota
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.store import Store

MINUTE = 60.0


class Response(NamedTuple):
    """What a limiter makes of a request.

    :param accepted: whether it is accepted
    :param retry_after: the Retry-After of a 429
    :param quota: what the response states
    :param held_seconds: for how long the request is held back
    """

    accepted: bool
    retry_after: float | None = None
    quota: Quota | None = None
    held_seconds: float = 0.0


class Limiter(Protocol):
    """Counts the requests of one key."""

    limit: float

    def admit(self, now: float) -> Response:
        """Accept or reject a request."""


@dataclass
class Nginx:
    """`limit_req rate=100r/m burst=N [nodelay]`: a leaky bucket in thousandths of a request and whole milliseconds."""

    limit: float = 100.0
    burst: int = 0
    delays: bool = False
    excess: int | None = None
    last: int = 0

    def admit(self, now: float) -> Response:
        """Accept or reject a request."""
        at, rate = int(now * 1000), int(self.limit / 60 * 1000)
        excess = 0 if self.excess is None else max(0, self.excess - rate * abs(at - self.last) // 1000 + 1000)
        if excess > self.burst * 1000:
            return Response(False)
        self.excess, self.last = excess, at
        return Response(True, held_seconds=excess / rate if self.delays else 0.0)


@dataclass
class FixedWindow:
    """So many requests in each window: of the clock, or from the first request on; Envoy's bucket is one as well."""

    limit: float = 100.0
    period: float = MINUTE
    phase: float = 0.0
    from_first: bool = False
    retry_after: bool = True
    states_quota: bool = False
    began: float = -math.inf
    count: int = 0

    def admit(self, now: float) -> Response:
        """Accept or reject a request."""
        if now >= self.began + self.period:
            self.began = now if self.from_first else now - (now - self.phase) % self.period
            self.count = 0
        left = float(math.ceil(self.began + self.period - now))
        accepted = self.count < self.limit
        self.count += accepted
        quota = Quota(self.limit, max(0.0, self.limit - self.count), left) if self.states_quota else None
        return Response(accepted, left if self.retry_after and not accepted else None, quota)


@dataclass
class SlidingLog:
    """The requests of the last minute, one by one."""

    limit: float = 100.0
    states_quota: bool = False
    log: deque[float] = field(default_factory=deque)

    def admit(self, now: float) -> Response:
        """Accept or reject a request."""
        while self.log and self.log[0] <= now - MINUTE:
            self.log.popleft()
        left = float(math.ceil(self.log[0] + MINUTE - now)) if self.log else MINUTE
        accepted = len(self.log) < self.limit
        if accepted:
            self.log.append(now)
        quota = Quota(self.limit, max(0.0, self.limit - len(self.log)), left) if self.states_quota else None
        return Response(accepted, None if accepted else left, quota)


@dataclass
class SlidingCounter:
    """The present window's count and a part of the one before; HAProxy's rates count rejected requests, too."""

    limit: float = 100.0
    phase: float = 0.0
    counts_rejected: bool = False
    index: int = 0
    count: int = 0
    previous: int = 0

    def admit(self, now: float) -> Response:
        """Accept or reject a request."""
        position = (now - self.phase) / MINUTE
        if math.floor(position) != self.index:
            self.previous = self.count if math.floor(position) == self.index + 1 else 0
            self.index, self.count = math.floor(position), 0
        accepted = self.previous * (1 - position + self.index) + self.count + 1 <= self.limit + 1e-9
        self.count += accepted or self.counts_rejected
        return Response(accepted)


@dataclass
class Gcra:
    """A bucket that is refilled steadily."""

    limit: float = 100.0
    burst: int = 1
    retry_after: bool = False
    tat: float = -math.inf

    def admit(self, now: float) -> Response:
        """Accept or reject a request."""
        interval = MINUTE / self.limit
        early = self.tat - (self.burst - 1) * interval - now
        if early > 1e-9:
            return Response(False, float(math.ceil(early)) if self.retry_after else None)
        self.tat = max(self.tat, now) + interval
        return Response(True)


LIMITERS: dict[str, Callable[[Random], Limiter]] = {
    "nginx, no burst": lambda _: Nginx(),
    "nginx, burst 3": lambda _: Nginx(burst=3),
    "nginx, burst 5": lambda _: Nginx(burst=5),
    "nginx, burst 20, delay": lambda _: Nginx(burst=20, delays=True),
    "bucket of 2 per 1.2 s": lambda random: FixedWindow(2, 1.2, random.random(), retry_after=False),
    "bucket of 5 per 3 s": lambda random: FixedWindow(5, 3.0, random.random(), retry_after=False),
    "HAProxy": lambda random: SlidingCounter(phase=60 * random.random(), counts_rejected=True),
    "fixed window": lambda random: FixedWindow(phase=60 * random.random()),
    "fixed window, from first": lambda _: FixedWindow(from_first=True, states_quota=True),
    "5 per 3 s, from first": lambda _: FixedWindow(5, 3.0, from_first=True, states_quota=True),
    "sliding log": lambda _: SlidingLog(),
    "sliding log, stated": lambda _: SlidingLog(states_quota=True),
    "sliding counter": lambda random: SlidingCounter(phase=60 * random.random()),
    "GCRA, burst 1": lambda _: Gcra(),
    "GCRA, burst 10": lambda _: Gcra(burst=10),
}


@dataclass
class World:
    """Callers that always want to send, and bursts after an idle time, at one limiter.

    :param limiter: the limiter
    :param seed: of the delays
    :param transit_seconds: the longest time to the server
    :param late_seconds: by how much a caller wakes up late, on average
    :param others_per_minute: requests that somebody else sends with the key
    """

    limiter: Limiter
    seed: int = 0
    transit_seconds: float = 0.005
    late_seconds: float = 0.002
    others_per_minute: float = 0.0
    now: float = 1000.0
    accepted: list[float] = field(default_factory=list)
    rejected: list[float] = field(default_factory=list)
    others_accepted: list[float] = field(default_factory=list)
    others_rejected: list[float] = field(default_factory=list)
    per_caller: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with an empty budget."""
        self.random = Random(self.seed)
        self.began = self.now
        self.budget = self.budget_on(MemoryStore(lambda: self.now))
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def budget_on(self, store: Store) -> SharedBudget:
        """Return a budget on a store."""
        return SharedBudget(store, "key", clock=lambda: self.now)

    def at(self, when: float, act: Callable[[], None]) -> None:
        """Do something at a time."""
        self._number += 1
        heapq.heappush(self._queue, (when, self._number, act))

    def run(self, until: float) -> None:
        """Let time pass, to so many seconds since the beginning."""
        while self._queue and self._queue[0][0] < self.began + until:
            when, _, act = heapq.heappop(self._queue)
            self.now = max(self.now, when)
            act()
        self.now = max(self.now, self.began + until)

    def saturate(self, callers: int, seconds: float, budgets: Sequence[SharedBudget] | None = None) -> None:
        """Let callers send as often as they may, until so many seconds from now."""
        until = self.now + seconds
        for caller in range(callers):
            budget = budgets[caller] if budgets else self.budget
            self.at(self.now + self.random.random() / 2, self._ask(budget, caller, None, until))
        if self.others_per_minute:
            self.at(self.now, self._send_others(until))
        self.run(until - self.began)

    def burst(self, requests: int, idle_seconds: float) -> None:
        """Send so many requests at once after an idle time, and wait until all are accepted."""
        self.run(self.now - self.began + idle_seconds)
        wanted = len(self.accepted) + requests
        for number in range(requests):
            self.at(self.now, self._ask(self.budget, -1 - number, None, None))
        while len(self.accepted) < wanted:
            self.run(self.now - self.began + 1.0)

    def _ask(
        self, budget: SharedBudget, caller: int, earlier: Reservation | None, until: float | None
    ) -> Callable[[], None]:
        def act() -> None:
            if until is not None and self.now >= until:
                if earlier is not None:
                    budget.release(earlier)
                return
            reservation = budget.reserve(RequestClass.COMMAND, 1e9, earlier)
            if reservation.may_send:
                transit = self.random.uniform(0, self.transit_seconds)
                self.at(self.now + transit, self._arrive(budget, caller, reservation, until))
                return
            woken = self.now + reservation.wait_seconds + self.random.expovariate(1 / self.late_seconds)
            self.at(min(woken, until or woken), self._ask(budget, caller, reservation, until))

        return act

    def _arrive(
        self, budget: SharedBudget, caller: int, reservation: Reservation, until: float | None
    ) -> Callable[[], None]:
        def act() -> None:
            response = self.limiter.admit(self.now)
            (self.accepted if response.accepted else self.rejected).append(self.now - self.began)
            self.per_caller[caller] = self.per_caller.get(caller, 0) + response.accepted
            back = self.now + self.random.uniform(0, self.transit_seconds) + response.held_seconds
            self.at(back, self._heed(budget, caller, reservation, response, until))

        return act

    def _heed(
        self, budget: SharedBudget, caller: int, reservation: Reservation, response: Response, until: float | None
    ) -> Callable[[], None]:
        def act() -> None:
            if not response.accepted:
                budget.cool_down(response.retry_after, reservation)
            elif reservation.probe:
                budget.settle(reservation)
            if response.accepted and response.quota is not None:
                budget.observe(response.quota, reservation)
            if until is not None or not response.accepted:
                self._ask(budget, caller, None, until)()

        return act

    def _send_others(self, until: float) -> Callable[[], None]:
        def act() -> None:
            accepted = self.limiter.admit(self.now).accepted
            (self.others_accepted if accepted else self.others_rejected).append(self.now - self.began)
            following = self.now + self.random.uniform(0.5, 1.5) * MINUTE / self.others_per_minute
            if following < until:
                self.at(following, self._send_others(until))

        return act


def per_minute(times: Sequence[float], minutes: int) -> list[int]:
    """Return how many there were in each minute."""
    return [sum(60 * minute <= at < 60 * minute + 60 for at in times) for minute in range(minutes)]
