"""The state of a budget as people want to see it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from techflow_provider.state.gcra import MINUTE_SECONDS, GcraState, Policy, RequestClass, ReservationRequest, take
from techflow_provider.state.store import HISTORY_SECONDS, BudgetState, Grant

SLICE_SECONDS = 10.0
# Sums of intervals are off by a little.
ROUNDING = 1e-6
SENDERS = (RequestClass.COMMAND, RequestClass.POLL)


@dataclass(frozen=True, slots=True)
class Slice:
    """Ten seconds of the history.

    :param ends_seconds_ago: age of its end
    :param requests: requests that were let go, by class
    """

    ends_seconds_ago: float
    requests: Mapping[RequestClass, int]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A budget at one moment.

    :param requests_per_minute: the limit it keeps to
    :param burst: requests that may leave at once after a pause
    :param used: requests that were let go in the last minute, by class
    :param free: commands that could leave right now
    :param next_slot_seconds: how long the next request of each class would have to wait
    :param cooldown_seconds: what is left of the pause after a 429
    :param waiting: slots that are taken and lie in the future
    :param history: the last ten minutes, oldest slice first
    :param store: where the budget is kept
    :param shared: False while the store can't be used and a share of the limit goes on without it
    """

    requests_per_minute: int
    burst: int
    used: Mapping[RequestClass, int]
    free: int
    next_slot_seconds: Mapping[RequestClass, float]
    cooldown_seconds: float
    waiting: int
    history: tuple[Slice, ...]
    store: str
    shared: bool

    @property
    def outlook(self) -> str:
        """When the next command may leave, in words."""
        if self.free:
            return f"{self.free} may leave now"
        if self.cooldown_seconds:
            return "none may leave now"
        wait = self.next_slot_seconds[RequestClass.COMMAND]
        return f"the next may leave in {wait:.1f} s" if wait > 0 else "1 may leave now, to try again after a 429"


def snapshot_of(ledger: BudgetState, policy: Policy, requests_per_minute: int, store: str, *, shared: bool) -> Snapshot:
    """Return what a store's ledger means under a policy."""
    account = ledger.account or GcraState.empty(policy, ledger.now)
    waits = {each: _wait(account, policy, each, ledger.now) for each in SENDERS}
    behind = account.arrival - policy.rate.tolerance() - ledger.now
    interval = policy.rate.interval_seconds
    open_now = waits[RequestClass.COMMAND] <= 0 and account.strikes == 0
    return Snapshot(
        requests_per_minute=requests_per_minute,
        burst=policy.rate.burst,
        used=_count([grant for grant in ledger.grants if grant.at > ledger.now - MINUTE_SECONDS]),
        free=min(policy.rate.burst, math.floor(-behind / interval + ROUNDING) + 1) if open_now else 0,
        next_slot_seconds=waits,
        cooldown_seconds=max(0.0, account.cool_until - ledger.now),
        waiting=max(0, math.ceil(behind / interval - ROUNDING) - 1),
        history=_history(ledger),
        store=store,
        shared=shared,
    )


def _wait(account: GcraState, policy: Policy, request_class: RequestClass, now: float) -> float:
    return take(account, policy, ReservationRequest(request_class), now)[1].wait_seconds


def _count(grants: list[Grant]) -> dict[RequestClass, int]:
    return {each: sum(grant.request_class is each for grant in grants) for each in SENDERS}


def _history(ledger: BudgetState) -> tuple[Slice, ...]:
    slices: list[list[Grant]] = [[] for _ in range(int(HISTORY_SECONDS / SLICE_SECONDS))]
    for grant in ledger.grants:
        age = max(0.0, ledger.now - grant.at)
        slices[min(int(age / SLICE_SECONDS), len(slices) - 1)].append(grant)
    return tuple(Slice(index * SLICE_SECONDS, _count(grants)) for index, grants in reversed(list(enumerate(slices))))
