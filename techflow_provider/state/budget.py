"""The rate budget of one API key, as a client asks for it: `LocalBudget` for one process, `SharedBudget` for all.

A client asks before each request, waits as long as the reservation says, and asks again with that reservation until
it may send. So one operation on the store notices a late wake-up, a cool-down that began meanwhile or a poll that went
first, and the store is never locked while a caller waits.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from techflow_provider.state.budget_state import BUDGET_TTL_SECONDS, Adjust, Adjustment, BudgetState, Reserve
from techflow_provider.state.gcra import (
    RETURN_SECONDS,
    GcraState,
    Policy,
    Reason,
    RequestClass,
    Reservation,
    ReservationRequest,
)
from techflow_provider.state.learning import MINUTE_SECONDS, Quota, Rejection
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.optimistic import OptimisticStore
from techflow_provider.state.snapshot import Snapshot, snapshot_of
from techflow_provider.state.store import BUDGET_NAME, Entry, Store, StoreError, Write, read_only

__all__ = ["Budget", "LocalBudget", "RequestClass", "Reservation", "SharedBudget"]

log: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_REQUESTS_PER_MINUTE = 100
DEFAULT_BURST = 6
# The part of the limit that is used when the store can't be: as many hosts may do so without exceeding the limit.
FALLBACK_SHARE = 0.25
# The least part of that with which a process begins, since it doesn't know how many others do the same.
LEAST_SHARE = 0.12
# A reservation without a wait would be one that may be used at once.
SHORTEST_WAIT_SECONDS = 0.001
# Refusals for so long mean that a server is gone; until then it is asked again after one of these times.
GRACE_SECONDS = 30.0
RETRY_SECONDS = 0.5, 2.0
FIRST_RETRY_SECONDS = 1.0


@dataclass(slots=True)
class _Tier:
    """A store to keep the budget in, and whether it works.

    :param store: the store
    :param policy: the budget's parameters there
    :param grace_seconds: how long it may fail until another tier is used: a slow network is not one that is gone
    :param failing_since: when it failed after it had worked, on the budget's clock
    :param failures: failed operations in a row since the grace time was over
    :param retry_at: when to try again, on the budget's clock
    """

    store: Store
    policy: Policy
    grace_seconds: float = 0.0
    failing_since: float = math.inf
    failures: int = 0
    retry_at: float = -math.inf

    def update(self, key: str, change: Reserve | Adjust) -> Any:
        """Apply a change to the budget, and report a state that can't be read."""
        result: Any = self.store.update(key, BUDGET_NAME, change)
        if result.discarded:
            log.warning("The rate budget in %s could not be read; it begins anew, exhausted", self.store.location)
        return result

    def log_adjustment(self, adjustment: Adjustment) -> None:
        """Report what was learned about the server's limiter."""
        log.info(
            "The rate budget now uses %.0f of %s requests a minute, in bursts of %.0f at most: %s",
            self.policy.limit * adjustment.share,
            self.policy.limit,
            adjustment.burst,
            adjustment.cause,
        )


class Budget:
    """What a client asks before it sends: a budget kept in the first of some stores that works.

    :param key: its name in the stores
    :param tiers: the stores; the last one is memory, which always works
    :param clock: monotonic seconds
    """

    def __init__(self, key: str, tiers: tuple[_Tier, ...], clock: Callable[[], float]) -> None:
        self._key = key
        self._tiers = tiers
        self._clock = clock
        self._active = tiers[0]
        # The tier that was used last, its clock then, and the caller's own.
        self._last: tuple[_Tier | None, float, float] = (None, 0.0, 0.0)
        # When the last requests were sent that the first tier has counted, on the budget's clock.
        self._sent: deque[float] = deque(maxlen=tiers[-1].policy.limit)

    def reserve(
        self, request_class: RequestClass, within_seconds: float, earlier: Reservation | None = None
    ) -> Reservation:
        """Take the next slot if it is no further away than `within_seconds`; never waits.

        :param earlier: the last reservation for the same request, after waiting for it
        """
        asked_at = self._clock()

        def act(tier: _Tier) -> Reservation:
            # What was sent while another tier kept the budget is not known in this one.
            share = None if tier is self._active else self._own_share(tier)
            used, clock, used_at = self._last
            expected = clock + asked_at - used_at if used is tier else None
            request = ReservationRequest(request_class, within_seconds, earlier, share, expected)
            reservation: Reservation = tier.update(self._key, Reserve(tier.policy, request))
            self._active, self._last = tier, (tier, reservation.at, asked_at)
            return reservation

        reservation = self._on_store(act, lambda: _ask_again(within_seconds))
        is_first = self._active is self._tiers[0]
        if reservation.may_send and is_first:
            self._sent.append(asked_at)
        if not reservation.granted or not reservation.wait_seconds:
            return reservation
        # Asking again takes as long as asking did, and a slot is missed by a caller that comes late.
        remaining = reservation.wait_seconds - (self._clock() - asked_at)
        if reservation.held and not is_first:
            # The first tier may work again sooner than that.
            remaining = min(remaining, self._tiers[0].retry_at - self._clock())
        return replace(reservation, wait_seconds=max(SHORTEST_WAIT_SECONDS, remaining))

    def _own_share(self, tier: _Tier) -> float:
        """Return the part of a tier's limit that this process has used until the first tier failed."""
        if tier is self._tiers[0]:
            return 1.0
        since = self._tiers[0].failing_since - MINUTE_SECONDS
        sent = max(1, sum(at > since for at in self._sent))
        return min(1.0, max(LEAST_SHARE, sent / tier.policy.limit))

    def admit(self, within_seconds: float, earlier: Reservation | None = None) -> Reservation:
        """Take the next slot of a second bucket of the same rate, which spends nothing of the budget.

        For a task that is deferred until its request has a chance: admitted at this rate, tasks don't wait in workers.
        """
        return self.reserve(RequestClass.ADMISSION, within_seconds, earlier)

    def cool_down(self, seconds: float | None, reservation: Reservation) -> float:
        """Let no caller send for a while, because the server responded with 429, and return how long.

        :param seconds: what the server asked for; None lets the cool-down grow with each request that is rejected
        :param reservation: the reservation with which the rejected request was sent
        """
        rejection = Rejection(seconds, reservation.epoch, reservation.in_burst, random.random())  # noqa: S311 - jitter
        return self._adjust(rejection=rejection).cool_down_seconds

    def observe(self, quota: Quota, reservation: Reservation) -> None:
        """Heed what a response states about the limit.

        :param reservation: the reservation with which the request was sent
        """
        if reservation.usage is None or quota.adds_to(reservation.usage):
            self._adjust(quota=quota)

    def release(self, reservation: Reservation) -> None:
        """Give back a slot that was waited for and is not used."""
        self._adjust(unused=reservation)

    def settle(self, reservation: Reservation) -> None:
        """Report that the server accepted a request that was sent as a probe, so that others may follow."""
        self._adjust(accepted=reservation.epoch)

    def _adjust(self, **event: Any) -> Adjustment:
        def act(tier: _Tier) -> Adjustment:
            adjustment: Adjustment = tier.update(self._key, Adjust(tier.policy, **event))
            if adjustment.changed:
                tier.log_adjustment(adjustment)
            return adjustment

        return self._on_store(act)

    def snapshot(self) -> Snapshot:
        """Return the state of the budget; changes nothing."""

        def act(tier: _Tier) -> Snapshot:
            entry, now = tier.store.update(self._key, BUDGET_NAME, read_only)
            state = None if entry is None else BudgetState.read(entry.value)
            state = state or BudgetState(GcraState.empty(tier.policy, now))
            is_shared = tier is self._tiers[0]
            return snapshot_of(state, tier.policy, now, store=tier.store.location, shared=is_shared)

        return self._on_store(act)

    def _on_store(self, act: Callable[[_Tier], T], ask_again: Callable[[], T] | None = None) -> T:
        for tier in self._tiers[:-1]:
            if self._clock() < tier.retry_at:
                continue
            try:
                result = act(tier)
            except StoreError as error:
                if not self._is_slow(tier, error):
                    self._failed(tier, error)
                elif ask_again is not None:
                    return ask_again()
                continue
            if tier.failing_since < math.inf:
                log.info("The rate budget's state in %s is used again", tier.store.location)
                tier.failures, tier.failing_since = 0, math.inf
            return result
        return act(self._tiers[-1])

    def _is_slow(self, tier: _Tier, error: StoreError) -> bool:
        """Whether a tier may still fail before another one is used."""
        now = self._clock()
        if tier.failing_since > now:
            tier.failing_since = now
            if tier.grace_seconds:
                log.warning("The rate budget's state can't be used at present, and is retried: %s", error)
        return now < tier.failing_since + tier.grace_seconds

    def _failed(self, tier: _Tier, error: StoreError) -> None:
        tier.failures += 1
        delay = FIRST_RETRY_SECONDS * 2.0 ** min(tier.failures - 1, 16)
        tier.retry_at = self._clock() + min(delay, RETURN_SECONDS)
        if tier.failures == 1:
            following = self._tiers[self._tiers.index(tier) + 1]
            log.warning(
                "The rate budget's state can't be used (%s); until it can, at most %s requests a minute are sent, "
                "counted in %s",
                error,
                following.policy.limit,
                following.store.location,
            )


def _ask_again(within_seconds: float) -> Reservation:
    """Return a reservation of nothing, after which the caller asks again."""
    wait = random.uniform(*RETRY_SECONDS)  # noqa: S311 - jitter
    return Reservation(wait, granted=wait <= within_seconds, due=0.0, held=False, reason=Reason.STATE)


class LocalBudget(Budget):
    """A budget for the threads and tasks of one process.

    :param requests_per_minute: the limit, in any window of 60 s (Rate Limiting)
    :param burst: requests that may be sent at once after an idle time
    :param clock: monotonic seconds
    """

    def __init__(
        self,
        requests_per_minute: int = DEFAULT_REQUESTS_PER_MINUTE,
        burst: int = DEFAULT_BURST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        tier = _Tier(MemoryStore(clock), Policy(requests_per_minute, burst))
        super().__init__("", (tier,), clock)

        def fill(_: Entry | None, now: float) -> tuple[Write, None]:
            # Only this process sends, and it has sent nothing yet.
            full = BudgetState(GcraState.full(tier.policy, now))
            return Write(full.to_text(), BUDGET_TTL_SECONDS), None

        tier.store.update("", BUDGET_NAME, fill)


class SharedBudget(Budget):
    """A budget for all processes that use one store, and one key in it.

    Budgets of one key with different limits share one theoretical arrival time, and each applies its own rate to it:
    a request of the one with limit L takes 1/L of a minute from all.

    :param store: where it is kept
    :param key: the name of the budget (see `budget_key`)
    :param requests_per_minute: the limit, in any window of 60 s (Rate Limiting)
    :param burst: requests that may be sent at once after an idle time
    :param fallback: a store that this host's processes use while `store` can't be used; without one, memory
    :param clock: monotonic seconds
    """

    def __init__(
        self,
        store: Store,
        key: str,
        requests_per_minute: int = DEFAULT_REQUESTS_PER_MINUTE,
        burst: int = DEFAULT_BURST,
        *,
        fallback: Store | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        reduced = Policy(max(1, int(requests_per_minute * FALLBACK_SHARE)), 1)
        grace_seconds = GRACE_SECONDS if isinstance(store, OptimisticStore) else 0.0
        first = _Tier(store, Policy(requests_per_minute, burst), grace_seconds)
        spares = () if fallback is None else (_Tier(fallback, reduced),)
        super().__init__(key, (first, *spares, _Tier(MemoryStore(clock), reduced)), clock)
