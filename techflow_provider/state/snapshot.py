"""The state of a budget as people want to see it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from techflow_provider.state.budget_state import HISTORY_SECONDS, SLICE_SECONDS, BudgetState, GrantCount
from techflow_provider.state.gcra import Policy, RequestClass, ReservationRequest, reserve
from techflow_provider.state.learning import MINUTE_SECONDS, Cause

# Sums of intervals are off by a little.
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Slice:
    """Ten seconds of the history.

    :param ends_seconds_ago: age of its end
    :param requests: requests that were sent, by class
    """

    ends_seconds_ago: float
    requests: Mapping[RequestClass, int]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A budget at one moment.

    :param requests_per_minute: the limit that it enforces
    :param burst: requests that may be sent at once after an idle time, after what was learned
    :param used: requests that were sent in the last minute, by class
    :param free: commands that could be sent right now
    :param next_slot_seconds: how long the next request of each class would have to wait
    :param cooldown_seconds: what is left of the cool-down after a 429
    :param waiting: slots that are taken and lie in the future
    :param history: the last ten minutes, oldest slice first
    :param store: where the budget is kept
    :param shared: False while the store can't be used and a share of the limit is used without it
    :param uses_per_minute: the part of the limit that is used, after what was learned
    :param cause: why that or the burst is less than configured
    :param stated_per_minute: the limit that responses state; 0: none
    :param relaxed_seconds: until all of the limit is used again, if no response speaks against it
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
    uses_per_minute: int = 0
    cause: Cause = Cause.NONE
    stated_per_minute: float = 0.0
    relaxed_seconds: float = 0.0

    @property
    def learned(self) -> str:
        """What was learned about TechFlow's limiter and why, as text; empty when the whole limit is used."""
        if self.cause is Cause.NONE:
            return ""
        uses = f"{self.uses_per_minute} of {self.requests_per_minute} requests a minute, bursts of {self.burst}"
        return (
            f"{uses}: {self.cause}; all of it again in {max(1, round(self.relaxed_seconds / 60))} min at the earliest"
        )

    @property
    def outlook(self) -> str:
        """When the next command may be sent, as text."""
        if self.free:
            return f"{self.free} may be sent now"
        if self.cooldown_seconds:
            return "none may be sent now"
        wait = self.next_slot_seconds[RequestClass.COMMAND]
        return f"the next may be sent in {wait:.1f} s" if wait > 0 else "1 may be sent now, as a probe after a 429"


def snapshot_of(state: BudgetState, policy: Policy, now: float, *, store: str, shared: bool) -> Snapshot:
    """Return what a budget's state means under a policy."""
    gcra = replace(state.gcra, updated_at=max(now, state.gcra.updated_at))
    requests = (ReservationRequest(each) for each in (RequestClass.COMMAND, RequestClass.POLL))
    waits = {each.request_class: reserve(gcra, policy, each, now)[1].wait_seconds for each in requests}
    open_now = waits[RequestClass.COMMAND] <= 0 and gcra.consecutive_429 == 0
    interval, grants = gcra.interval(policy), state.counts
    ages = range(HISTORY_SECONDS - SLICE_SECONDS, -1, -SLICE_SECONDS)
    return Snapshot(
        requests_per_minute=policy.limit,
        uses_per_minute=max(1, round(policy.limit * gcra.share)),
        burst=int(min(gcra.learned.burst, policy.burst)),
        cause=gcra.learned.cause_at(gcra.updated_at, gcra.share),
        stated_per_minute=gcra.learned.stated,
        relaxed_seconds=max(0.0, gcra.learned.relaxed_at - gcra.updated_at),
        used=_count(grants, now, -1, MINUTE_SECONDS),
        free=gcra.free(policy) if open_now else 0,
        next_slot_seconds=waits,
        cooldown_seconds=max(0.0, gcra.cool_until - now),
        waiting=max(0, math.ceil((gcra.tat - now) / interval - ROUNDING) - 1 - len(gcra.released)),
        history=tuple(Slice(float(age), _count(grants, now, age or -1, age + SLICE_SECONDS)) for age in ages),
        store=store,
        shared=shared,
    )


def _count(grants: list[GrantCount], now: float, youngest: float, oldest: float) -> dict[RequestClass, int]:
    """Count the requests that were sent between two ages."""
    found = [each for each in grants if youngest <= now - each[0] < oldest]
    return {RequestClass.COMMAND: sum(each[1] for each in found), RequestClass.POLL: sum(each[2] for each in found)}
