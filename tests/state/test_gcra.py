"""The arithmetic: however callers ask, sleep, fail or come late, no window of a minute holds more than the limit."""

from __future__ import annotations

import heapq
import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from techflow_provider.state.gcra import (
    JITTER_SECONDS,
    LATE_SECONDS,
    POLL_SHARE,
    PROBE_SECONDS,
    GcraState,
    Policy,
    RequestClass,
    Reservation,
    ReservationRequest,
    burst_within,
    cool_down,
    interval_within,
    reserve,
    settle,
)
from techflow_provider.state.learning import MINUTE_SECONDS, Rejection

COMMAND, POLL, ADMISSION = RequestClass
WHOLE = Policy(100, 6)


def worst_window(arrivals: list[float], seconds: float = MINUTE_SECONDS) -> int:
    """Return the most arrivals that any window, ends included, holds."""
    arrivals, first, worst = sorted(arrivals), 0, 0
    for last, at in enumerate(arrivals):
        while at - arrivals[first] > seconds:
            first += 1
        worst = max(worst, last - first + 1)
    return worst


def rejected(
    state: GcraState, policy: Policy, seconds: float | None, reservation: Reservation, now: float
) -> GcraState:
    """Return the state after a 429 for a request."""
    rejection = Rejection(seconds, reservation.epoch, reservation.in_burst)
    return cool_down(state, policy, rejection, lambda _: 0, now)


class World:
    """Callers of one budget, with random behaviour."""

    def __init__(self, policy: Policy, random: Random, rejections: float) -> None:
        self.policy = policy
        self.random = random
        self.rejections = rejections
        self.state = GcraState.empty(policy, 0.0)
        self.arrivals: list[float] = []
        self.grants: dict[RequestClass, int] = dict.fromkeys(RequestClass, 0)

    def run(self, classes: list[RequestClass], seconds: float) -> None:
        queue: list[tuple[float, int, Reservation | None]] = [
            (self.random.uniform(0, 5), i, None) for i in range(len(classes))
        ]
        heapq.heapify(queue)
        while queue and queue[0][0] < seconds:
            now, caller, earlier = heapq.heappop(queue)
            again, reservation = self.ask(now, classes[caller], earlier)
            heapq.heappush(queue, (again, caller, reservation))

    def ask(
        self, now: float, request_class: RequestClass, earlier: Reservation | None
    ) -> tuple[float, Reservation | None]:
        """Ask once, and return when to ask again and with what."""
        within = self.random.choice([0.0, 3.0, 1e9])
        self.state, reservation = reserve(
            self.state, self.policy, ReservationRequest(request_class, within, earlier), now
        )
        if not reservation.granted or self.random.random() < 0.02:
            # Gives up, or is killed; another one takes its place.
            return now + self.random.uniform(0.01, 10), None
        if not reservation.may_send:
            late = self.random.choice([0, 0, 0.01, LATE_SECONDS, 2 * LATE_SECONDS])
            # No two callers ask at the very same moment.
            return now + reservation.wait_seconds + late + self.random.uniform(0, 1e-6), reservation
        self.grants[request_class] += 1
        if request_class is not ADMISSION:
            self.send(now, reservation)
        return now + self.random.choice([0.0, 0.0, self.random.uniform(0, 20)]), None

    def send(self, now: float, reservation: Reservation) -> None:
        self.arrivals.append(now + self.random.uniform(0, JITTER_SECONDS - LATE_SECONDS))
        if self.random.random() < self.rejections:
            seconds = self.random.choice([None, 0.0, 2.0])
            self.state = rejected(self.state, self.policy, seconds, reservation, now)
        elif reservation.probe:
            self.state = settle(self.state, reservation.epoch)


@settings(max_examples=150, deadline=None)
@given(
    limit=st.integers(1, 40),
    burst=st.integers(1, 12),
    classes=st.lists(st.sampled_from(RequestClass), min_size=1, max_size=12),
    rejections=st.sampled_from([0.0, 0.0, 0.05]),
    seed=st.integers(0, 2**32),
)
def test_no_window_of_a_minute_holds_more_than_the_limit(limit, burst, classes, rejections, seed):
    world = World(Policy(limit, burst), Random(seed), rejections)
    world.run(classes, 300.0)
    assert worst_window(world.arrivals) <= limit


@given(limit=st.integers(1, 5000), burst=st.integers(1, 100))
def test_a_rate_never_exceeds_its_limit(limit, burst):
    followers = (MINUTE_SECONDS + JITTER_SECONDS) / interval_within(limit, burst)
    assert burst_within(limit, burst) + int(followers) <= limit or limit == 1


def saturate(policy: Policy, classes: list[RequestClass], seconds: float = 600.0) -> World:
    """Let callers ask again as soon as they have sent."""
    world = World(policy, Random(7), 0.0)
    queue: list[tuple[float, int, Reservation | None]] = [(0.0, i, None) for i in range(len(classes))]
    heapq.heapify(queue)
    while queue[0][0] < seconds:
        now, caller, earlier = heapq.heappop(queue)
        world.state, reservation = reserve(
            world.state, policy, ReservationRequest(classes[caller], earlier=earlier), now
        )
        if reservation.may_send:
            world.grants[classes[caller]] += 1
            world.arrivals.append(now)
        heapq.heappush(
            queue, (now + reservation.wait_seconds + 0.001, caller, None if reservation.may_send else reservation)
        )
    return world


def test_commands_use_nearly_the_whole_limit():
    world = saturate(Policy(100, 6), [COMMAND] * 16)
    assert len(world.arrivals) / 10 > 90
    assert worst_window(world.arrivals) <= 100


def test_polls_get_their_share_while_commands_want_everything():
    policy = Policy(100, 6)
    world = saturate(policy, [COMMAND] * 16 + [POLL])
    share = world.grants[POLL] / len(world.arrivals)
    assert POLL_SHARE * 0.9 <= share <= POLL_SHARE * 1.1


def test_polls_alone_use_nearly_the_whole_limit():
    assert len(saturate(Policy(100, 6), [POLL] * 4).arrivals) / 10 > 90


def test_a_command_finds_a_slot_while_polls_want_everything():
    policy = Policy(100, 6)
    state = saturate(policy, [POLL] * 8).state
    _, reservation = reserve(state, policy, ReservationRequest(COMMAND), state.updated_at)
    assert reservation.may_send


def test_equal_callers_get_equal_numbers_of_slots():
    policy, grants = Policy(100, 6), [0] * 16
    state = GcraState.empty(policy, 0.0)
    queue: list[tuple[float, int, Reservation | None]] = [(0.0, i, None) for i in range(16)]
    while queue[0][0] < 600:
        now, caller, earlier = heapq.heappop(queue)
        state, reservation = reserve(state, policy, ReservationRequest(COMMAND, earlier=earlier), now)
        grants[caller] += reservation.may_send
        heapq.heappush(queue, (now + reservation.wait_seconds, caller, None if reservation.may_send else reservation))
    assert max(grants) - min(grants) <= 1


def test_a_slot_that_is_missed_is_taken_anew():
    policy = Policy(100, 1)
    state, held = reserve(GcraState.empty(policy, 0.0), policy, ReservationRequest(COMMAND), 0.0)
    state, other = reserve(state, policy, ReservationRequest(COMMAND), 0.0)
    late = held.due + LATE_SECONDS + 0.1
    state, again = reserve(state, policy, ReservationRequest(COMMAND, earlier=held), late)
    assert again.due > max(late, other.due)


def test_a_slot_that_is_met_within_the_jitter_counts():
    policy = Policy(100, 1)
    state, held = reserve(GcraState.empty(policy, 0.0), policy, ReservationRequest(COMMAND), 0.0)
    assert reserve(state, policy, ReservationRequest(COMMAND, earlier=held), held.due + LATE_SECONDS)[1].may_send


def test_a_slot_beyond_the_callers_time_is_reported_but_not_taken():
    policy = Policy(60, 1)
    state = GcraState.empty(policy, 0.0)
    after, reservation = reserve(state, policy, ReservationRequest(COMMAND, within_seconds=0.5), 0.0)
    assert (reservation.granted, after.tat) == (False, state.tat)
    assert reservation.wait_seconds > 0.5


def test_a_slot_that_a_poll_has_pushed_beyond_the_callers_time_is_kept():
    """The caller has waited for it, and nobody else would get it."""
    policy = Policy(100, 1)
    state, held = reserve(GcraState.empty(policy, 0.0), policy, ReservationRequest(COMMAND, 5.0), 0.0)
    while held.due < 4.0:
        state, held = reserve(state, policy, ReservationRequest(COMMAND, 5.0), 0.0)
    state, poll = reserve(state, policy, ReservationRequest(POLL, 5.0), 3.5)
    assert poll.granted
    state, again = reserve(state, policy, ReservationRequest(COMMAND, 0.01, held), held.due)
    assert again.granted
    assert again.wait_seconds > 0.01


def test_admissions_spend_nothing_of_the_budget():
    policy = Policy(100, 6)
    state = GcraState.full(policy, 0.0)
    for _ in range(50):
        state, _reservation = reserve(state, policy, ReservationRequest(ADMISSION), 0.0)
    assert reserve(state, policy, ReservationRequest(COMMAND), 0.0)[1].may_send


def test_admissions_come_at_the_rate_of_the_budget():
    policy = Policy(100, 6)
    state, dues = GcraState.full(policy, 0.0), []
    for _ in range(200):
        state, reservation = reserve(state, policy, ReservationRequest(ADMISSION), 0.0)
        dues.append(reservation.due)
    assert worst_window(dues) <= 100


def test_a_request_without_an_admission_puts_off_the_tasks_that_wait_for_one():
    policy = Policy(100, 6)
    state, waiting = GcraState.empty(policy, 0.0), []
    for _ in range(20):
        state, reservation = reserve(state, policy, ReservationRequest(ADMISSION), 0.0)
        waiting.append(reservation)
    admitted, later = sum(each.may_send for each in waiting), waiting[-1]
    for commands, request in ((admitted, COMMAND), (1, COMMAND), (1, POLL)):
        for _ in range(commands):
            state, _reservation = reserve(state, policy, ReservationRequest(request, 9.0), 4.0)
        state, again = reserve(state, policy, ReservationRequest(ADMISSION, earlier=later), 4.0)
        moved = 0.0 if commands == admitted else interval_within(policy.limit, 1)
        assert again.due == pytest.approx(later.due + moved, abs=0.05)
        later = again
    assert not reserve(state, policy, ReservationRequest(ADMISSION, 1.0, later), 4.0)[1].granted


@pytest.mark.parametrize(("others", "least"), [(0, 460), (1, 200), (2, 100)])
def test_most_tasks_that_are_admitted_find_a_slot_within_two_seconds_beside_other_requests(others, least):
    policy = Policy(100, 6)
    state, refused, sent, started = GcraState.empty(policy, 0.0), 0, 0, 0
    events: list[tuple[float, int, RequestClass, Reservation | None]] = []
    events += [(0.0, number, ADMISSION, None) for number in range(500)]
    events += [(6.0 * number, 1000 + number, COMMAND, None) for number in range(60)]
    events += [(10.0 * number, 2000 + number, POLL, None) for number in range(36)]
    # Each of them sends one request after another, all it may.
    events += [(0.0, 3000 + number, COMMAND, None) for number in range(others)]
    heapq.heapify(events)
    while events and events[0][0] < 360.0:
        now, number, request_class, earlier = heapq.heappop(events)
        within = 2.0 if request_class is COMMAND and number < 1000 else math.inf
        state, reservation = reserve(state, policy, ReservationRequest(request_class, within, earlier), now)
        if not reservation.granted:
            refused += 1
        elif not reservation.may_send:
            heapq.heappush(events, (now + reservation.wait_seconds, number, request_class, reservation))
        elif request_class is ADMISSION:
            heapq.heappush(events, (now + 1.5, number, COMMAND, None))
        else:
            sent, started = sent + 1, started + (number < 1000)
            if number >= 3000:
                heapq.heappush(events, (now, number, COMMAND, None))
    assert sent >= 360.0 / interval_within(policy.limit, 1) - 20
    assert started >= least
    # If others put nobody off, 84, 269 and 447 are refused.
    assert refused <= (15, 75, 225)[others]


class TestAfterA429:
    """Nothing is sent during the cool-down, then one request goes first; the cool-down grows while it is rejected."""

    policy = Policy(100, 6)

    def cooling(self, seconds: float | None = None) -> tuple[GcraState, Reservation]:
        state, reservation = reserve(GcraState.full(self.policy, 0.0), self.policy, ReservationRequest(COMMAND), 0.0)
        return rejected(state, self.policy, seconds, reservation, 0.0), reservation

    def test_nothing_is_sent_before_the_cool_down_is_over(self):
        state, _ = self.cooling(20.0)
        _, reservation = reserve(state, self.policy, ReservationRequest(COMMAND), 19.0)
        assert reservation.wait_seconds == 1.0
        assert not reservation.held

    def test_a_slot_held_before_the_cool_down_is_void(self):
        state, held = reserve(GcraState.empty(self.policy, 0.0), self.policy, ReservationRequest(COMMAND), 0.0)
        state = rejected(state, self.policy, 0.0, held, held.due)
        assert not reserve(state, self.policy, ReservationRequest(COMMAND, earlier=held), held.due)[1].may_send

    def test_the_longest_of_several_cool_downs_counts(self):
        state, reservation = self.cooling(20.0)
        state = rejected(state, self.policy, 5.0, reservation, 1.0)
        assert state.cool_until == 20.0
        assert rejected(state, self.policy, 50.0, reservation, 1.0).cool_until == 51.0

    def test_requests_sent_before_the_cool_down_do_not_let_it_grow(self):
        state, reservation = self.cooling()
        later = rejected(state, self.policy, None, reservation, state.cool_until + 5)
        assert later.consecutive_429 == state.consecutive_429

    def test_one_probe_goes_first(self):
        state, _ = self.cooling()
        state, probe = reserve(state, self.policy, ReservationRequest(POLL), state.cool_until)
        state, other = reserve(state, self.policy, ReservationRequest(COMMAND), state.updated_at)
        assert (probe.may_send, probe.probe) == (True, True)
        assert not other.may_send

    def test_the_others_follow_one_by_one_once_the_probe_is_accepted(self):
        state, _ = self.cooling()
        state, probe = reserve(state, self.policy, ReservationRequest(COMMAND), state.cool_until)
        state = settle(state, probe.epoch)
        _, other = reserve(state, self.policy, ReservationRequest(COMMAND), state.updated_at)
        assert not other.probe
        assert other.wait_seconds == pytest.approx(interval_within(self.policy.limit, 5))

    def test_the_cool_down_grows_when_the_probe_is_rejected(self):
        state, _ = self.cooling()
        cool_downs = [state.cool_until]
        for _ in range(5):
            state, probe = reserve(state, self.policy, ReservationRequest(COMMAND), state.cool_until)
            state = rejected(state, self.policy, None, probe, state.updated_at)
            cool_downs.append(state.cool_until - state.updated_at)
        assert cool_downs == [3, 6, 12, 24, 48, 48]

    def test_a_short_retry_after_does_not_keep_it_from_growing(self):
        state, _ = self.cooling(0.0)
        state, probe = reserve(state, self.policy, ReservationRequest(COMMAND), state.cool_until)
        state = rejected(state, self.policy, 0.0, probe, state.updated_at)
        assert state.cool_until - state.updated_at == 3.0

    def test_a_probe_without_a_response_is_given_up(self):
        state, _ = self.cooling()
        state, _probe = reserve(state, self.policy, ReservationRequest(COMMAND), state.cool_until)
        state, other = reserve(state, self.policy, ReservationRequest(COMMAND), state.updated_at + PROBE_SECONDS)
        assert (other.may_send, other.probe) == (True, True)

    def test_90_seconds_of_429_cost_at_most_10_requests(self):
        state, sent = GcraState.full(self.policy, 0.0), 0
        queue: list[tuple[float, int, Reservation | None]] = [(0.0, i, None) for i in range(16)]
        while queue[0][0] < 90:
            now, caller, earlier = heapq.heappop(queue)
            state, reservation = reserve(state, self.policy, ReservationRequest(COMMAND, earlier=earlier), now)
            if reservation.may_send:
                sent += 1
                state = rejected(state, self.policy, None, reservation, now + 0.05)
            heapq.heappush(
                queue, (now + max(reservation.wait_seconds, 0.1), caller, None if reservation.may_send else reservation)
            )
        assert sent <= 10


@pytest.mark.parametrize("limit", [*range(2, 30), 100, 1000])
@pytest.mark.parametrize("burst", [1, 2, 6, 40])
def test_a_rate_is_the_fastest_whose_windows_never_hold_more_than_the_limit(limit, burst):
    most = burst_within(limit, burst) + (60.0 + JITTER_SECONDS) / interval_within(limit, burst)
    assert limit - 0.05 < most < limit


@pytest.mark.parametrize(("limit", "kept"), [(1, 1), (2, 1), (3, 1), (4, 2), (11, 5), (12, 6), (100, 6)])
def test_a_burst_leaves_half_of_the_limit_to_the_steady_rate_and_is_one_at_least(limit, kept):
    assert burst_within(limit, 6) == kept


def test_a_limit_of_one_allows_a_request_a_minute():
    assert interval_within(1, 6) == pytest.approx(61.501)


def test_a_burst_is_sent_at_once_and_the_next_request_waits_for_the_interval():
    state, waits = GcraState.full(WHOLE, 0.0), []
    for _ in range(8):
        state, reservation = reserve(state, WHOLE, ReservationRequest(COMMAND), 0.0)
        waits.append(reservation.wait_seconds)
    interval = interval_within(WHOLE.limit, 6)
    assert waits == pytest.approx([0] * 6 + [interval, 2 * interval])


@pytest.mark.parametrize(("burst", "part"), [(1, 0), (2, 1), (3, 1), (6, 3), (7, 3)])
def test_polls_leave_half_of_the_burst_to_commands(burst, part):
    policy = Policy(100, burst)
    assert GcraState.full(policy, 0.0).reserved(policy) == part
