"""The rate budget of one API key, as a client asks for it: `LocalBudget` for one process, `SharedBudget` for all.

A client asks before each request, waits as long as the answer says, and asks again with that answer until it may send.
So a late wake-up, a pause that began meanwhile and a poll that went first are all found by one operation on the store,
which is never locked while anybody waits.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from techflow_provider.state.gcra import MINUTE_SECONDS, Policy, Reason, RequestClass, Reservation, ReservationRequest
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.snapshot import Snapshot, snapshot_of
from techflow_provider.state.store import Store, StoreError

__all__ = ["Budget", "LocalBudget", "Reason", "RequestClass", "Reservation", "SharedBudget"]

log = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_REQUESTS_PER_MINUTE = 100
DEFAULT_BURST = 6
# The part of the limit that goes on when the store can't be used: as many hosts may do so without exceeding the limit.
FALLBACK_SHARE = 0.25
FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0


class Budget(Protocol):
    """What a client asks before it sends."""

    def reserve(
        self, request_class: RequestClass, within_seconds: float, earlier: Reservation | None = None
    ) -> Reservation:
        """Take the next slot if it is no further away than `within_seconds`; never waits.

        :param earlier: the last answer, when it was waited for
        """

    def cool_down(self, seconds: float | None, reservation: Reservation) -> float:
        """Let nobody send for a while, because the server said 429, and return how long.

        :param seconds: what the server asked for; None lets the pause grow with each request that is refused
        :param reservation: the answer with which the refused request was sent
        """

    def settle(self, reservation: Reservation) -> None:
        """Tell that the server took a request that was sent as a probe, so that others may follow."""

    def snapshot(self) -> Snapshot:
        """Return the state of the budget; changes nothing."""


@dataclass(slots=True)
class _Tier:
    """A store to keep the budget in, and how it went lately.

    :param store: the store
    :param policy: how the budget is kept there
    :param requests_per_minute: the limit that the policy keeps to
    :param failures: failed operations in a row
    :param retry_at: when to try again, on the budget's clock
    """

    store: Store
    policy: Policy
    requests_per_minute: int
    failures: int = 0
    retry_at: float = -math.inf


class _TieredBudget:
    """A budget kept in the first of some stores that can be used; the last one is memory and always can."""

    def __init__(self, key: str, tiers: tuple[_Tier, ...], clock: Callable[[], float]) -> None:
        self._key = key
        self._tiers = tiers
        self._clock = clock
        self._active = tiers[0]
        # The tier that answered last, its clock then, and the caller's own.
        self._last: tuple[_Tier, float, float] | None = None

    def reserve(
        self, request_class: RequestClass, within_seconds: float, earlier: Reservation | None = None
    ) -> Reservation:
        """Take the next slot if it is no further away than `within_seconds`; never waits.

        :param earlier: the last answer, when it was waited for
        """
        asked = self._clock()

        def act(tier: _Tier, changed: bool) -> Reservation:
            # What was sent while another tier kept the budget is not known in this one.
            wish = ReservationRequest(
                request_class, within_seconds, earlier, drain=changed, expected=self._expected(tier, asked)
            )
            reservation = tier.store.take(self._key, tier.policy, wish)
            self._last = (tier, reservation.at, asked)
            return reservation

        return self._on_store(act)

    def _expected(self, tier: _Tier, asked: float) -> float | None:
        last = self._last
        return None if last is None or last[0] is not tier else last[1] + asked - last[2]

    def admit(self, within_seconds: float, earlier: Reservation | None = None) -> Reservation:
        """Take the next slot of a second bucket of the same rate, which spends nothing of the budget.

        For a task that is deferred until its request has a chance: let in at this rate, tasks don't wait in workers.
        """
        return self.reserve(RequestClass.ADMISSION, within_seconds, earlier)

    def cool_down(self, seconds: float | None, reservation: Reservation) -> float:
        """Let nobody send for a while, because the server said 429, and return how long."""
        return self._on_store(lambda tier, _: tier.store.cool(self._key, tier.policy, seconds, reservation.epoch))

    def settle(self, reservation: Reservation) -> None:
        """Tell that the server took a request that was sent as a probe, so that others may follow."""
        self._on_store(lambda tier, _: tier.store.settle(self._key, reservation.epoch))

    def snapshot(self) -> Snapshot:
        """Return the state of the budget; changes nothing."""

        def act(tier: _Tier, _: bool) -> Snapshot:
            ledger = tier.store.read_budget(self._key)
            shared = tier is self._tiers[0]
            return snapshot_of(ledger, tier.policy, tier.requests_per_minute, tier.store.location, shared=shared)

        return self._on_store(act)

    def _on_store(self, act: Callable[[_Tier, bool], T]) -> T:
        for tier in self._tiers[:-1]:
            if self._clock() < tier.retry_at:
                continue
            try:
                result = act(tier, tier is not self._active)
            except StoreError as error:
                self._failed(tier, error)
            else:
                self._succeeded(tier)
                return result
        result = act(self._tiers[-1], self._tiers[-1] is not self._active)
        self._active = self._tiers[-1]
        return result

    def _failed(self, tier: _Tier, error: StoreError) -> None:
        tier.failures += 1
        pause = FIRST_RETRY_SECONDS * 2.0 ** min(tier.failures - 1, 16)
        tier.retry_at = self._clock() + min(pause, LONGEST_RETRY_SECONDS)
        if tier.failures == 1:
            following = self._tiers[self._tiers.index(tier) + 1]
            log.warning(
                "The rate budget's state can't be used (%s); until it can, %s requests a minute go on, counted in %s",
                error,
                following.requests_per_minute,
                following.store.location,
            )

    def _succeeded(self, tier: _Tier) -> None:
        if tier.failures:
            log.info("The rate budget's state in %s is used again", tier.store.location)
            tier.failures = 0
        self._active = tier


class LocalBudget(_TieredBudget):
    """A budget for the threads and tasks of one process.

    :param requests_per_minute: the limit, in any window of 60 s (Rate Limiting)
    :param burst: requests that may leave at once after a pause
    :param clock: monotonic seconds
    """

    def __init__(
        self,
        requests_per_minute: int = DEFAULT_REQUESTS_PER_MINUTE,
        burst: int = DEFAULT_BURST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        tier = _Tier(MemoryStore(clock, full=True), Policy.of(requests_per_minute, burst), requests_per_minute)
        super().__init__("", (tier,), clock)


class SharedBudget(_TieredBudget):
    """A budget for all processes that use one store, and one key in it.

    Budgets of one key with different limits share one theoretical arrival time, and each applies its own rate to it:
    a request of the one with limit L takes 1/L of a minute from all.

    :param store: where it is kept
    :param key: the name of the budget (see `budget_key`)
    :param requests_per_minute: the limit, in any window of 60 s (Rate Limiting)
    :param burst: requests that may leave at once after a pause
    :param fallback: a store that this host's processes use while `store` can't be used; without one each goes alone
    :param fallback_share: the part of the limit that goes on then
    :param minute_seconds: a shorter minute, for tests
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
        fallback_share: float = FALLBACK_SHARE,
        minute_seconds: float = MINUTE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        share = max(1, int(requests_per_minute * fallback_share))
        reduced = Policy.of(share, 1, minute_seconds)
        first = _Tier(store, Policy.of(requests_per_minute, burst, minute_seconds), requests_per_minute)
        spares = [spare for spare in (fallback, MemoryStore(clock)) if spare is not None]
        super().__init__(key, (first, *(_Tier(spare, reduced, share) for spare in spares)), clock)
