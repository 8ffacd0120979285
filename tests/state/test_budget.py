"""A shared budget: it is one for all that use the store, and uses a share of the limit when the store can't be used."""

from __future__ import annotations

import heapq
import logging

import pytest

from techflow_provider.state.budget import LocalBudget, RequestClass, SharedBudget
from techflow_provider.state.gcra import Reason, Reservation
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.store import Store, StoreError
from tests.state.test_gcra import worst_window

COMMAND, POLL, _ = RequestClass


class Fragile(MemoryStore):
    """A store that can be broken and mended."""

    broken = False
    asked = 0

    def update(self, namespace, name, change):
        self.asked += 1
        if self.broken:
            raise StoreError("out of order")
        return super().update(namespace, name, change)


@pytest.fixture
def budget(store: Store, key, clock) -> SharedBudget:
    budget = SharedBudget(store, key, clock=clock)
    learn_burst(budget, clock)
    return budget


def learn_burst(budget: SharedBudget, clock) -> None:
    """Let the burst grow to what is configured, and the last one be a minute ago."""
    for _ in range(7):
        while budget.reserve(COMMAND, 0.0).granted:
            pass
        clock.advance(61)


def sent(budget, clock, seconds: float, callers: int = 4) -> int:
    """Return how many requests callers send that always want to."""
    end, count, queue = clock.now + seconds, 0, [(clock.now, None)] * callers
    while True:
        queue.sort(key=lambda ask: ask[0])
        at, earlier = queue.pop(0)
        if at >= end:
            return count
        clock.now = max(clock.now, at)
        reservation = budget.reserve(COMMAND, 1e9, earlier)
        count += reservation.may_send
        queue.append((clock.now + reservation.wait_seconds, None if reservation.may_send else reservation))


def test_two_budgets_of_one_key_are_one(budget, store, key, clock):
    other = SharedBudget(store, key, clock=clock)
    assert [each.reserve(COMMAND, 0.0).granted for each in (budget, other) * 4] == [True] * 6 + [False] * 2


def test_a_request_under_a_lower_limit_takes_more_time(store, key, clock):
    fast, slow = SharedBudget(store, key, 100, 1, clock=clock), SharedBudget(store, key, 10, 1, clock=clock)
    after_fast = slow.reserve(COMMAND, 1e9), fast.reserve(COMMAND, 1e9)
    first, second = after_fast
    assert second.due - first.due == pytest.approx(61.501 / 9)


def test_a_slot_that_was_waited_for_may_be_used(budget, clock):
    held = [budget.reserve(COMMAND, 1e9) for _ in range(7)][-1]
    clock.advance(held.wait_seconds)
    assert budget.reserve(COMMAND, 0.0, held).may_send


def test_a_refused_reservation_says_when_the_next_slot_would_be(budget):
    held = [budget.reserve(COMMAND, 1e9) for _ in range(7)][-1]
    reservation = budget.reserve(COMMAND, 0.0)
    assert not reservation.granted
    assert reservation.wait_seconds > held.wait_seconds


def test_a_reservation_gives_the_reason_of_its_wait(budget, clock):
    waits = [budget.reserve(COMMAND, 1e9) for _ in range(8)]
    assert waits[-1].reason is Reason.LIMIT
    budget.reserve(POLL, 1e9)
    assert budget.reserve(POLL, 1e9).reason is Reason.COMMANDS
    budget.cool_down(5.0, waits[-1])
    assert budget.reserve(COMMAND, 1e9).reason is Reason.COOL_DOWN
    clock.advance(8)
    assert budget.reserve(COMMAND, 1e9).probe
    assert budget.reserve(COMMAND, 1e9).reason is Reason.PROBE


def test_a_task_is_admitted_without_spending_the_budget(budget):
    admitted = [budget.admit(1e9) for _ in range(10)]
    assert [reservation.wait_seconds > 0 for reservation in admitted] == [False] * 6 + [True] * 4
    assert budget.reserve(COMMAND, 0.0).may_send


def test_a_snapshot_shows_the_state_of_the_budget(budget, clock):
    for request_class in (COMMAND, COMMAND, POLL):
        budget.reserve(request_class, 0.0)
    before = budget.snapshot()
    assert (before.requests_per_minute, before.burst, before.free, before.waiting) == (100, 6, 3, 0)
    assert before.used == {COMMAND: 2, POLL: 1}
    assert before.next_slot_seconds[COMMAND] == 0 < before.next_slot_seconds[POLL]
    waiting = [budget.reserve(COMMAND, 1e9) for _ in range(5)]
    budget.cool_down(30.0, waiting[0])
    after = budget.snapshot()
    assert (after.free, after.cooldown_seconds, after.next_slot_seconds[COMMAND]) == (0, 30.0, 30.0)
    assert budget.snapshot() == after
    assert after.shared


def test_a_snapshot_counts_the_slots_that_are_waited_for(budget):
    for _ in range(9):
        budget.reserve(COMMAND, 1e9)
    assert budget.snapshot().waiting == 3


def test_a_snapshot_has_a_history_of_ten_minutes(budget, clock):
    budget.reserve(COMMAND, 0.0)
    clock.advance(25)
    budget.reserve(POLL, 0.0)
    history = budget.snapshot().history
    assert len(history) == 60
    assert history[-1].requests == {COMMAND: 0, POLL: 1}
    assert history[-3].requests == {COMMAND: 1, POLL: 0}
    assert history[-3].ends_seconds_ago == 20


def test_a_store_whose_clock_is_set_ahead_grants_no_more(key, clock):
    theirs = type(clock)(5.0)
    budget = SharedBudget(MemoryStore(theirs), key, clock=clock)
    budget.reserve(COMMAND, 1e9)
    theirs.advance(3600)
    assert not budget.reserve(COMMAND, 0.0).granted


def test_a_store_whose_clock_moves_with_the_callers_forgets_nothing(key, clock):
    theirs = type(clock)(5.0)
    budget = SharedBudget(MemoryStore(theirs), key, clock=clock)
    budget.reserve(COMMAND, 1e9)
    for seconds in (60, 10):
        clock.advance(seconds)
        theirs.advance(seconds)
        assert budget.reserve(COMMAND, 0.0).may_send
    assert sum(budget.snapshot().used.values()) == 2


def test_others_follow_a_probe_once_the_server_has_accepted_it(budget, clock):
    budget.cool_down(1.0, budget.reserve(COMMAND, 1e9))
    clock.advance(30)
    probe = budget.reserve(COMMAND, 0.0)
    assert (probe.probe, budget.reserve(COMMAND, 0.0).may_send) == (True, False)
    budget.settle(probe)
    following = budget.reserve(COMMAND, 1e9)
    assert (following.probe, following.wait_seconds < 1) == (False, True)


def test_a_budget_of_one_process_begins_with_a_burst(clock):
    budget = LocalBudget(100, 6, clock)
    assert [budget.reserve(COMMAND, 0.0).granted for _ in range(7)] == [True] * 6 + [False]


class Distant(MemoryStore):
    """A store whose clock is that of the world, and that a caller reaches only after a while.

    :param seconds: how long a request and its response take
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        # When a caller asks, and the world's clock.
        self.caller = self.now = 0.0
        super().__init__(lambda: self.now)

    def update(self, namespace, name, change):
        self.now = self.caller + self.seconds / 2
        result = super().update(namespace, name, change)
        self.caller += self.seconds
        return result


@pytest.mark.parametrize("seconds", [0.6, 1.2, 2.0, 3.0])
def test_callers_that_are_far_from_the_store_still_use_most_of_the_limit(seconds):
    store = Distant(seconds)
    budgets = [SharedBudget(store, "key", clock=lambda: store.caller) for _ in range(12)]
    count, queue = 0, list[tuple[float, int, Reservation | None]]((0.0, number, None) for number in range(12))
    while True:
        queue.sort(key=lambda ask: ask[:2])
        store.caller, number, earlier = queue.pop(0)
        if store.caller >= 600:
            break
        reservation = budgets[number].reserve(COMMAND, 1e9, earlier)
        count += reservation.may_send
        due = store.caller + reservation.wait_seconds
        queue.append((due, number, None if reservation.may_send else reservation))
    assert count >= 10 * 75


class TestWithoutItsStore:
    """A share of the limit is used, the log says so once, and the store is used again when it can be."""

    @pytest.fixture
    def fragile(self, clock) -> Fragile:
        return Fragile(clock)

    @pytest.fixture
    def budget(self, fragile, clock) -> SharedBudget:
        return SharedBudget(fragile, "key", clock=clock)

    def test_a_quarter_of_the_limit_is_used_in_the_end(self, budget, fragile, clock):
        fragile.broken = True
        assert sent(budget, clock, 60) <= 3
        assert sent(budget, clock, 800) >= 50
        assert 18 <= sent(budget, clock, 60) <= 25

    def test_a_process_that_used_a_quarter_of_the_limit_continues_to(self, budget, fragile, clock):
        assert sent(budget, clock, 30) >= 30
        fragile.broken = True
        assert 20 <= sent(budget, clock, 60) <= 25

    @pytest.mark.parametrize("processes", [2, 16, 40])
    def test_processes_that_share_nothing_then_keep_to_the_limit_together(self, fragile, clock, processes):
        budgets = [SharedBudget(fragile, "key", clock=clock) for _ in range(processes)]
        asking: list[tuple[float, int, Reservation | None]] = [(clock.now, number, None) for number in range(processes)]
        begin, sent_at = clock.now, []
        while asking[0][0] < begin + 360:
            now, number, earlier = heapq.heappop(asking)
            clock.advance(now - clock.now)
            fragile.broken = 120 <= now - begin < 240
            reservation = budgets[number].reserve(COMMAND, 1e9, earlier)
            if reservation.may_send:
                sent_at.append(now)
            heapq.heappush(
                asking, (now + reservation.wait_seconds, number, None if reservation.may_send else reservation)
            )
        assert worst_window(sent_at) <= 100
        assert sum(140 <= at - begin < 240 for at in sent_at) >= 20

    def test_a_process_that_has_sent_little_begins_with_as_much(self, budget, fragile, clock):
        budget.reserve(COMMAND, 1e9)
        clock.advance(10)
        for _ in range(3):
            budget.reserve(COMMAND, 1e9)
        fragile.broken = True
        assert 3 <= sent(budget, clock, 120) <= 8
        assert "it isn't known what others send" in budget.snapshot().cause

    def test_requests_are_sent_one_by_one(self, budget, fragile, clock):
        fragile.broken = True
        budget.reserve(COMMAND, 0.0)
        clock.advance(60)
        assert [budget.reserve(COMMAND, 0.0).granted for _ in range(2)] == [True, False]

    def test_of_a_small_limit_one_request_is_used(self, fragile, clock):
        fragile.broken = True
        budget = SharedBudget(fragile, "key", 2, clock=clock)
        assert sent(budget, clock, 600) in (9, 10)
        assert budget.snapshot().requests_per_minute == 1

    def test_it_never_exceeds_the_limit_on_the_way_out_and_back(self, budget, fragile, clock):
        log = []
        for broken in (False, True, False, True, False):
            fragile.broken = broken
            log.append(sent(budget, clock, 20))
        assert sum(log[:3]) <= 100
        assert sum(log[2:]) <= 100

    def test_callers_of_one_host_share_that_part(self, fragile, clock):
        fragile.broken = True
        fallback = MemoryStore(clock)
        budgets = [SharedBudget(fragile, "key", fallback=fallback, clock=clock) for _ in range(4)]
        waits = [budget.reserve(COMMAND, 1e9).due for budget in budgets]
        assert len(set(waits)) == 4

    def test_the_fallback_is_used_while_the_first_store_is_left_alone(self, fragile, clock):
        fragile.broken, fallback = True, Fragile(clock)
        budget = SharedBudget(fragile, "key", fallback=fallback, clock=clock)
        for _ in range(3):
            budget.reserve(COMMAND, 0.0)
        assert (fragile.asked, fallback.asked) == (1, 3)

    def test_where_the_fallback_fails_too_each_process_uses_its_memory(self, clock):
        stores = [Fragile(clock), Fragile(clock)]
        for each in stores:
            each.broken = True
        budget = SharedBudget(stores[0], "key", fallback=stores[1], clock=clock)
        assert 1 <= sent(budget, clock, 60) <= 3

    def test_one_warning_and_one_return_are_logged(self, budget, fragile, clock, caplog):
        caplog.set_level(logging.INFO)
        fragile.broken = True
        sent(budget, clock, 60)
        fragile.broken = False
        sent(budget, clock, 60)
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
        assert "out of order" in caplog.text

    def test_the_first_failure_is_logged_with_the_limit_in_force_and_where_it_is_counted(self, fragile, clock, caplog):
        fragile.broken = True
        fallback = MemoryStore(clock)
        fallback.location = "a spare file"
        SharedBudget(fragile, "key", fallback=fallback, clock=clock).reserve(COMMAND, 0.0)
        assert "at most 25 requests a minute are sent, counted in a spare file" in caplog.text

    def test_the_store_is_not_asked_each_time(self, budget, fragile, clock):
        fragile.broken = True
        sent(budget, clock, 120)
        assert fragile.asked < 17

    def test_the_store_is_used_again_within_ten_seconds(self, budget, fragile, clock):
        fragile.broken = True
        sent(budget, clock, 300)
        fragile.broken = False
        clock.advance(10)
        budget.reserve(COMMAND, 0.0)
        assert budget.snapshot().shared

    def test_the_store_is_tried_again_after_a_second(self, budget, fragile, clock):
        fragile.broken = True
        budget.reserve(COMMAND, 0.0)
        fragile.broken = False
        clock.advance(1)
        assert budget.snapshot().shared

    def test_the_store_is_tried_again_later_each_time_up_to_ten_seconds(self, budget, fragile, clock):
        fragile.broken, tries = True, []
        for second in range(95):
            before = fragile.asked
            budget.reserve(COMMAND, 0.0)
            tries += [second] * (fragile.asked - before)
            clock.advance(1)
        assert tries == [0, 1, 3, 7, *range(15, 95, 10)]

    def test_a_return_brings_no_burst(self, budget, fragile, clock):
        budget.reserve(COMMAND, 1e9)
        clock.advance(60)
        fragile.broken = True
        budget.reserve(COMMAND, 0.0)
        clock.advance(60)
        fragile.broken = False
        assert not budget.reserve(COMMAND, 0.0).granted

    def test_a_minute_after_its_return_a_whole_burst_is_sent_again(self, budget, fragile, clock):
        fragile.broken = True
        budget.reserve(COMMAND, 0.0)
        fragile.broken = False
        clock.advance(60)
        learn_burst(budget, clock)
        assert [budget.reserve(COMMAND, 0.0).granted for _ in range(7)] == [True] * 6 + [False]

    def test_a_store_that_fails_again_is_not_asked_in_a_busy_loop(self, clock):
        store = Fragile(clock)
        budget = SharedBudget(store, "key", clock=clock)
        budget._tiers[0].grace_seconds = 30.0
        store.broken = True
        sent(budget, clock, 60)
        store.broken = False
        clock.advance(10)
        budget.settle(Reservation(0.0, True, 0.0))
        store.broken, before = True, store.asked
        sent(budget, clock, 20, callers=1)
        assert store.asked - before <= 40

    def test_a_slot_of_the_one_means_nothing_to_the_other(self, budget, fragile, clock):
        held = budget.reserve(COMMAND, 1e9)
        fragile.broken = True
        clock.advance(held.wait_seconds)
        assert not budget.reserve(COMMAND, 1e9, held).may_send

    def test_the_snapshot_says_so(self, budget, fragile, clock):
        fragile.broken = True
        budget.reserve(COMMAND, 0.0)
        snapshot = budget.snapshot()
        assert (snapshot.shared, snapshot.requests_per_minute, snapshot.store) == (False, 25, "memory")
