"""The value that a store keeps of a budget, and that the Lua in Redis changes it as the Python does elsewhere."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from random import Random
from typing import Any

import pytest

from techflow_provider.state.budget import SharedBudget
from techflow_provider.state.budget_state import (
    Adjust,
    BudgetChange,
    BudgetState,
    Reserve,
    change_to_dict,
    read_change,
)
from techflow_provider.state.gcra import (
    GcraState,
    Policy,
    Reason,
    RequestClass,
    Reservation,
    ReservationRequest,
    interval_within,
)
from techflow_provider.state.learning import Quota, Rejection
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.redis import RedisStore
from techflow_provider.state.store import BUDGET_NAME, Write, read_only
from techflow_provider.state.wire import build

POLICY = Policy(100, 6)
COMMAND, POLL, ADMISSION = RequestClass
EMPTY = BudgetState(GcraState.empty(POLICY, 1000.0))


def kept(store, key: str) -> BudgetState | None:
    entry, _ = store.update(key, BUDGET_NAME, read_only)
    return None if entry is None else BudgetState.read(entry.value)


def corrupt(**changed: object) -> str:
    return json.dumps({**json.loads(EMPTY.to_text()), **changed})


class TestValue:
    """It is one JSON value, which is checked when it is read."""

    def test_it_is_read_as_it_was_written(self):
        state = EMPTY.with_grant(1000.2, COMMAND).with_grant(1003.9, POLL)
        assert BudgetState.read(state.to_text()) == state

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "no JSON",
            "[]",
            "{}",
            "1",
            corrupt(tat="1000.0"),
            corrupt(tat=None),
            corrupt(tat=True),
            corrupt(tat=math.nan),
            corrupt(cool_until=math.inf),
            corrupt(epoch=10**400),
            corrupt(grants=None),
            corrupt(grants=[[1, 2, 3]]),
        ],
    )
    def test_what_is_not_a_state_of_finite_numbers_begins_anew_and_is_logged_once(
        self, each_store, key, clock, caplog, text
    ):
        each_store.update(key, BUDGET_NAME, lambda *_: (Write(text, 60.0), None))
        budget = SharedBudget(each_store, key, clock=clock)
        assert budget.snapshot().free == 0
        waits = [budget.reserve(COMMAND, 1e9).wait_seconds for _ in range(2)]
        interval = interval_within(100, 1)
        assert waits == pytest.approx([interval, 2 * interval])
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "could not be read" in caplog.text
        assert kept(each_store, key) is not None

    def test_a_cool_down_and_the_end_of_probing_survive_what_can_not_be_read(self, each_store, key, clock):
        budget = SharedBudget(each_store, key, clock=clock)
        reservation = budget.reserve(COMMAND, 1e9)
        each_store.update(key, BUDGET_NAME, lambda *_: (Write("no JSON", 60.0), None))
        budget.settle(reservation)
        assert budget.cool_down(20.0, reservation) == 20.0

    def test_it_begins_anew_a_week_after_its_last_use(self, store, key, clock):
        budget = SharedBudget(store, key, clock=clock)
        budget.reserve(COMMAND, 1e9)
        clock.advance(7 * 24 * 3600.0)
        assert kept(store, key) is None


class TestGrants:
    """They are counted by the second for a minute, and by ten seconds before."""

    def test_those_of_one_second_are_counted_together(self):
        state = EMPTY
        for at, request_class in ((999.5, COMMAND), (1000.0, POLL), (1000.4, COMMAND), (1000.5, COMMAND)):
            state = state.with_grant(at, request_class)
        assert state.counts == [(1000, 2, 1), (1001, 1, 0)]

    def test_slices_that_lie_before_the_last_minute_are_merged(self):
        state = EMPTY
        for second in range(1000, 1081):
            state = state.with_grant(float(second), COMMAND)
        assert state.counts[:3] == [(1005, 10, 0), (1015, 10, 0), (1020, 1, 0)]
        assert sum(commands for _, commands, _ in state.counts) == 81

    def test_those_of_ten_minutes_take_few_counts_and_older_ones_none(self):
        state = EMPTY
        for second in range(1000, 3000):
            state = state.with_grant(float(second), COMMAND).with_grant(second + 0.1, POLL)
        assert 590 <= sum(commands for _, commands, _ in state.counts) <= 601
        assert len(state.counts) < 130
        assert len(state.to_text()) < 3000

    def test_those_after_a_clock_was_set_back_replace_those_in_the_future(self):
        state = EMPTY.with_grant(5000.0, COMMAND).with_grant(1000.0, POLL)
        assert state.counts == [(1000, 0, 1)]

    @pytest.mark.parametrize("grants", ["rubbish", "1000", "1000:1", "1000:1:2:3", "1000:1:x"])
    def test_those_that_can_not_be_read_count_as_none(self, grants):
        state = BudgetState(EMPTY.gcra, grants)
        assert state.counts == []
        assert state.with_grant(1000.0, POLL).counts == [(1000, 0, 1)]

    def test_only_requests_that_are_sent_are_counted(self, store, key, clock):
        policy = Policy(100, 1)
        for request in (ReservationRequest(COMMAND, 0.0), ReservationRequest(COMMAND), ReservationRequest(ADMISSION)):
            store.update(key, BUDGET_NAME, Reserve(policy, request))
        state = kept(store, key)
        assert state is not None
        assert state.counts == []
        clock.advance(60)
        for _ in range(3):
            store.update(key, BUDGET_NAME, Reserve(policy, ReservationRequest(POLL, 0.0)))
        state = kept(store, key)
        assert state is not None
        assert state.counts == [(1060, 0, 1)]


class TestEachStore:
    """A budget's state is kept from one operation to the next."""

    def reserve(self, store, key, **request) -> Reservation:
        change = Reserve(POLICY, ReservationRequest(COMMAND, **request))
        reservation: Reservation = store.update(key, BUDGET_NAME, change)
        return reservation

    def test_a_burst_grows_by_one_with_each_idle_time_after_it_was_used_up(self, each_store, key, clock):
        assert self.reserve(each_store, key).wait_seconds > 0
        bursts = []
        for _ in range(7):
            clock.advance(60)
            bursts.append(sum(self.reserve(each_store, key, within_seconds=0.0).granted for _ in range(10)))
        assert bursts == [2, 3, 4, 5, 6, 6, 6]

    def test_budgets_of_different_keys_are_independent(self, each_store, key):
        first = self.reserve(each_store, key)
        assert self.reserve(each_store, f"{key}2").wait_seconds == first.wait_seconds

    @pytest.mark.parametrize("step", [3600.0, -3600.0], ids=["ahead", "back"])
    def test_a_clock_that_is_set_neither_adds_to_the_budget_nor_blocks_it(self, each_store, key, clock, step):
        for _ in range(20):
            held = self.reserve(each_store, key)
            clock.advance(0.1)
        expected = clock.now
        clock.advance(step)
        reservations = [self.reserve(each_store, key, expected=expected) for _ in range(5)]
        assert not any(reservation.may_send for reservation in reservations)
        assert reservations[-1].wait_seconds < 6 * interval_within(100, 1)
        assert not self.reserve(each_store, key, earlier=held, expected=clock.now).may_send

    def test_a_clock_that_is_set_neither_shortens_nor_extends_a_cool_down(self, each_store, key, clock):
        epoch = self.reserve(each_store, key).epoch
        assert each_store.update(key, BUDGET_NAME, Adjust(POLICY, Rejection(30.0, epoch))).cool_down_seconds == 30.0
        expected = clock.now
        clock.advance(3600)
        assert self.reserve(each_store, key, expected=expected).wait_seconds == 30.0
        clock.advance(-3600)
        assert self.reserve(each_store, key).wait_seconds == 30.0


@pytest.mark.parametrize("seed", range(20))
def test_the_script_in_redis_does_the_same_as_the_arithmetic_here(redis_server, clock, key, seed):
    random, stores = Random(seed), (MemoryStore(clock), RedisStore(redis_server.url, clock))
    clock.now = 1.7e9 / 7
    held: list[Reservation | None] = [None] * 6
    for _ in range(80):
        clock.advance(random.choice([0, 0.1, 0.3, 0.7, random.random(), random.choice([3, 30, -0.5, -100])]))
        caller, roll = random.randrange(6), random.random()
        earlier = held[caller]
        change: BudgetChange
        if roll < 0.04:
            seconds, in_burst = random.choice([None, 0.0, 3.0, 20.0]), random.random() < 0.3
            rejection = Rejection(seconds, earlier.epoch if earlier else 0.0, in_burst)
            change = Adjust(POLICY, rejection)
        elif roll < 0.08 and earlier:
            change = Adjust(POLICY, accepted=earlier.epoch)
        elif roll < 0.12 and earlier:
            change, held[caller] = Adjust(POLICY, unused=earlier), None
        elif roll < 0.14:
            change = Adjust(POLICY, quota=Quota(100.0, float(random.randrange(100)), 60 * random.random()))
        else:
            request_class, within = random.choice(list(RequestClass)), random.choice([0.0, 2.0, math.inf])
            share, expected = (
                random.choice([None] * 49 + [1.0]),
                random.choice([None, None, clock.now, clock.now - 100]),
            )
            change = Reserve(POLICY, ReservationRequest(request_class, within, earlier, share, expected))
        results: list[Any] = [store.update(key, BUDGET_NAME, change) for store in stores]
        assert results[0] == results[1]
        if isinstance(change, Reserve):
            held[caller] = results[0]
        assert kept(stores[0], key) == kept(stores[1], key)


def test_the_script_in_redis_keeps_the_same_fields(redis_server, key):
    store = RedisStore(redis_server.url)
    store.update(key, BUDGET_NAME, Reserve(POLICY, ReservationRequest(COMMAND)))
    (entry,) = store.entries(key)
    assert json.loads(entry.value).keys() == json.loads(EMPTY.to_text()).keys()
    store.close()


class TestWire:
    """A change and its result cross a process boundary as JSON, and are checked there."""

    HELD = Reservation(1.5, True, 7.0, reason=Reason.LIMIT)

    @pytest.mark.parametrize(
        "change",
        [
            Reserve(POLICY, ReservationRequest(POLL, math.inf, HELD, 0.5, 3.5)),
            Reserve(POLICY, ReservationRequest(COMMAND)),
            Adjust(POLICY, Rejection(None, 4.0)),
            Adjust(POLICY, quota=Quota(100.0, 5.0, 3.0)),
            Adjust(POLICY, unused=HELD),
            Adjust(POLICY, accepted=4.0),
        ],
        ids=repr,
    )
    def test_it_is_read_as_it_was_sent(self, clock, key, change):
        sent = json.loads(json.dumps(change_to_dict(change)))
        assert read_change(sent) == change
        result = MemoryStore(clock).update(key, BUDGET_NAME, change)
        assert build(change.result, json.loads(json.dumps(asdict(result)))) == result

    @pytest.mark.parametrize(
        "changed",
        [
            {"change": "Else"},
            {"change": None},
            {"policy": None},
            {"policy": {}},
            {"policy": {"rate": [1, 2]}},
            {"request": {"request_class": "else"}},
            {"request": {"request_class": "poll", "within_seconds": math.nan}},
            {"request": {"request_class": "poll", "within_seconds": "1"}},
            {"request": {"request_class": "poll", "within_seconds": True}},
        ],
    )
    def test_what_is_not_a_change_is_refused(self, changed):
        sent = change_to_dict(Reserve(POLICY, ReservationRequest(COMMAND)))
        with pytest.raises(ValueError, match=r"expected|missing|valid"):
            read_change({**sent, **changed})

    @pytest.mark.parametrize("value", [{}, {"changed": True}, 1.0, None])
    def test_what_is_not_a_result_is_refused(self, value):
        with pytest.raises(ValueError, match=r"expected|missing"):
            build(Adjust.result, value)
