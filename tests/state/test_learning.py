"""What a budget learns from real kinds of limiters, in virtual time: which requests get 429s, and how many are sent."""

from __future__ import annotations

import logging
from random import Random

import pytest

from techflow_provider.state.budget import LocalBudget, RequestClass, SharedBudget
from techflow_provider.state.budget_state import BudgetState
from techflow_provider.state.learning import Cause, Learned, Quota
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.store import BUDGET_NAME, read_only
from tests.state.limiters import LIMITERS, FixedWindow, Gcra, Nginx, SlidingLog, World, per_minute

COMMAND = RequestClass.COMMAND


def learned(budget: SharedBudget) -> Learned:
    entry, _ = budget._tiers[0].store.update("key", BUDGET_NAME, read_only)
    state = None if entry is None else BudgetState.read(entry.value)
    assert state is not None
    return state.gcra.learned


@pytest.mark.parametrize("name", LIMITERS)
def test_a_limiter_gets_no_more_429s_than_it_takes_to_learn_its_burst(name):
    world = World(LIMITERS[name](Random(7)), seed=7)
    world.saturate(callers=16, seconds=180)
    assert world.rejected == []
    assert min(per_minute(world.accepted, 3)) >= 96
    shares = world.per_caller.values()
    assert max(shares) - min(shares) <= 2
    for _ in range(5):
        world.burst(20, idle_seconds=12)
    assert len(world.rejected) <= 1


def test_a_whole_burst_is_learned_where_the_server_accepts_it():
    world = World(FixedWindow(), seed=1)
    for _ in range(7):
        world.burst(8, idle_seconds=30)
    assert (learned(world.budget).burst, world.rejected) == (6, [])
    world.saturate(callers=8, seconds=240)
    # The burst has left the window after a minute, and the rate is the fastest again.
    assert per_minute([at - 240 for at in world.accepted], 4)[2] >= 96
    assert world.rejected == []


def test_a_burst_that_was_rejected_is_not_tried_again_for_half_an_hour():
    world = World(Nginx(burst=2), seed=1)
    for _ in range(6):
        world.burst(8, idle_seconds=30)
    assert len(world.rejected) == 1
    assert learned(world.budget).burst == 3
    assert learned(world.budget).cause is Cause.BURST
    world.run(world.now - world.began + 1800)
    world.burst(8, idle_seconds=30)
    assert len(world.rejected) == 2


def test_a_cool_down_does_not_bring_the_burst_back():
    clock = [0.0]
    budget = LocalBudget(100, 6, lambda: clock[0])
    first = budget.reserve(COMMAND, 0.0)
    clock[0] += budget.cool_down(30.0, first)
    budget.settle(budget.reserve(COMMAND, 0.0))
    assert not budget.reserve(COMMAND, 0.0).may_send


@pytest.mark.parametrize("limiter", [FixedWindow(), FixedWindow(states_quota=True), SlidingLog(), Gcra(burst=10)])
def test_somebody_else_keeps_the_part_of_the_limit_that_they_use(limiter):
    world = World(limiter, seed=3, others_per_minute=50)
    world.saturate(callers=8, seconds=420)
    theirs, ours = per_minute(world.others_accepted, 7)[3:], per_minute(world.accepted, 7)[3:]
    assert sum(theirs) / 4 >= 45
    assert sum(ours) / 4 >= 36
    assert len([at for at in world.rejected if at >= 180]) <= 8


@pytest.mark.parametrize("limiter", [FixedWindow(), FixedWindow(states_quota=True), SlidingLog(), Nginx(burst=5)])
def test_a_limit_that_is_lowered_and_raised_again_is_followed(limiter):
    world = World(limiter, seed=5)
    world.saturate(callers=8, seconds=120)
    limiter.limit = 60.0
    world.saturate(callers=8, seconds=360)
    assert sum(per_minute(world.accepted, 8)[4:]) >= 4 * 42
    assert len([at for at in world.rejected if at >= 240]) <= 8
    limiter.limit = 100.0
    world.saturate(callers=8, seconds=540)
    assert per_minute(world.accepted, 17)[-1] >= 90


def test_what_was_learned_is_shared_and_survives_a_restart():
    world = World(Nginx(), seed=2)
    for _ in range(2):
        world.burst(8, idle_seconds=12)
    assert len(world.rejected) == 1
    store = world.budget._tiers[0].store
    others = [world.budget_on(store) for _ in range(4)]
    world.saturate(callers=4, seconds=60, budgets=others)
    assert len(world.rejected) == 1
    assert others[0].snapshot().burst == 1


def test_one_log_line_says_what_was_learned(caplog):
    caplog.set_level(logging.INFO, "techflow_provider.state")
    world = World(Nginx(), seed=2)
    for _ in range(2):
        world.burst(8, idle_seconds=12)
    assert [record.getMessage() for record in caplog.records] == [
        "The rate budget now uses 100 of 100 requests a minute, in bursts of 1 at most: a 429 within a burst"
    ]


class TestQuota:
    """What responses state is heeded, without a 429, and costs an operation on the store only where it is new."""

    @pytest.fixture
    def clock(self) -> list[float]:
        return [1000.0]

    @pytest.fixture
    def budget(self, clock) -> SharedBudget:
        return SharedBudget(MemoryStore(lambda: clock[0]), "key", clock=lambda: clock[0])

    def send(self, budget, clock: list[float], quota: Quota | None = None) -> float:
        """Send a request as soon as it may be sent, and return when that is."""
        earlier = None
        while True:
            reservation = budget.reserve(COMMAND, 1e9, earlier)
            if reservation.may_send:
                break
            earlier = reservation
            clock[0] += reservation.wait_seconds
        if quota is not None:
            budget.observe(quota, reservation)
        return clock[0]

    def test_a_remaining_quota_below_ours_is_spread_until_the_reset(self, budget, clock):
        self.send(budget, clock, Quota(60, 4, 50))
        sent = [self.send(budget, clock) - 1000 for _ in range(5)]
        assert sent == pytest.approx([10.6, 20.6, 30.6, 40.6, 50.6], abs=0.1)
        assert self.send(budget, clock) - 1000 < 51.5

    def test_what_others_will_use_of_the_remaining_quota_is_left_to_them(self, budget, clock):
        self.send(budget, clock, Quota(100, 60, 30))
        assert budget.snapshot().cause is Cause.OTHERS
        sent = 0
        while self.send(budget, clock) < 1030:
            sent += 1
        assert 10 <= sent <= 30

    def test_nothing_is_sent_before_the_reset_when_nothing_remains(self, budget, clock):
        self.send(budget, clock, Quota(100, 0, 30))
        assert self.send(budget, clock) - 1000 >= 30

    def test_a_slot_that_is_held_is_void_when_nothing_remains(self, budget, clock):
        first = budget.reserve(COMMAND, 1e9)
        held = budget.reserve(COMMAND, 1e9)
        clock[0] += held.wait_seconds
        budget.observe(Quota(100, 0, 30), first)
        assert not budget.reserve(COMMAND, 1e9, held).may_send

    def test_a_lower_limit_with_its_window_is_used_and_a_higher_one_is_not(self, budget, clock):
        self.send(budget, clock, Quota(30, 29, 60, window_seconds=60))
        assert (budget.snapshot().uses_per_minute, budget.snapshot().cause) == (30, Cause.STATED)
        self.send(budget, clock, Quota(500, 499, 60, window_seconds=60))
        snapshot = budget.snapshot()
        assert (snapshot.uses_per_minute, snapshot.cause, snapshot.stated_per_minute) == (100, Cause.NONE, 500)

    def test_a_quota_that_is_known_costs_no_operation_on_the_store(self, budget, clock, monkeypatch):
        self.send(budget, clock, Quota(100, 99, 60))
        operations = []
        store = budget._tiers[0].store
        update = store.update

        def recording_update(namespace, name, change):
            operations.append(change)
            return update(namespace, name, change)

        monkeypatch.setattr(store, "update", recording_update)
        for sent in range(20):
            self.send(budget, clock, Quota(100, 98 - sent, 60 - sent * 0.6))
        assert {type(each).__name__ for each in operations} == {"Reserve"}

    @pytest.mark.parametrize("number", [-1.0, float("inf"), float("nan")])
    def test_numbers_that_can_not_be_right_are_refused(self, number):
        with pytest.raises(ValueError, match="expected finite numbers"):
            Quota(100, number, 60)
