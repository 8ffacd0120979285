"""The arithmetic: whoever asks, sleeps, fails or comes late, no window of a minute holds more than the limit."""

from __future__ import annotations

import heapq
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from techflow_provider.state.gcra import (
    JITTER_SECONDS,
    LATE_SECONDS,
    MINUTE_SECONDS,
    GcraState,
    Policy,
    Rate,
    RequestClass,
    Reservation,
    ReservationRequest,
    cool,
    settle,
    take,
)

COMMAND, POLL, ADMISSION = RequestClass


def worst_window(arrivals: list[float], seconds: float = MINUTE_SECONDS) -> int:
    """Return the most arrivals that any window, ends included, holds."""
    arrivals, first, worst = sorted(arrivals), 0, 0
    for last, at in enumerate(arrivals):
        while at - arrivals[first] > seconds:
            first += 1
        worst = max(worst, last - first + 1)
    return worst


class World:
    """Callers of one budget, whose behaviour is drawn at random."""

    def __init__(self, policy: Policy, random: Random, refusals: float) -> None:
        self.policy = policy
        self.random = random
        self.refusals = refusals
        self.account = GcraState.empty(policy, 0.0)
        self.arrivals: list[float] = []
        self.grants: dict[RequestClass, int] = dict.fromkeys(RequestClass, 0)

    def run(self, classes: list[RequestClass], seconds: float) -> None:
        asks: list[tuple[float, int, Reservation | None]] = [
            (self.random.uniform(0, 5), i, None) for i in range(len(classes))
        ]
        heapq.heapify(asks)
        while asks and asks[0][0] < seconds:
            now, caller, earlier = heapq.heappop(asks)
            again, reservation = self.ask(now, classes[caller], earlier)
            heapq.heappush(asks, (again, caller, reservation))

    def ask(
        self, now: float, request_class: RequestClass, earlier: Reservation | None
    ) -> tuple[float, Reservation | None]:
        """Ask once, and return when to ask again and with what."""
        within = self.random.choice([0.0, 3.0, 1e9])
        self.account, answer = take(self.account, self.policy, ReservationRequest(request_class, within, earlier), now)
        if not answer.granted or self.random.random() < 0.02:
            # Gives up, or is killed; another one comes in its place.
            return now + self.random.uniform(0.01, 10), None
        if not answer.may_send:
            late = self.random.choice([0, 0, 0.01, LATE_SECONDS, 2 * LATE_SECONDS])
            return now + answer.wait_seconds + late, answer
        self.grants[request_class] += 1
        if request_class is not ADMISSION:
            self.send(now, answer)
        return now + self.random.choice([0.0, 0.0, self.random.uniform(0, 20)]), None

    def send(self, now: float, answer: Reservation) -> None:
        self.arrivals.append(now + self.random.uniform(0, JITTER_SECONDS - LATE_SECONDS))
        if self.random.random() < self.refusals:
            seconds = self.random.choice([None, 0.0, 2.0])
            self.account = cool(self.account, self.policy, seconds, answer.epoch, now)
        elif answer.probe:
            self.account = settle(self.account, answer.epoch)


@settings(max_examples=150, deadline=None)
@given(
    limit=st.integers(1, 40),
    burst=st.integers(1, 12),
    classes=st.lists(st.sampled_from(RequestClass), min_size=1, max_size=12),
    refusals=st.sampled_from([0.0, 0.0, 0.05]),
    seed=st.integers(0, 2**32),
)
def test_no_window_of_a_minute_holds_more_than_the_limit(limit, burst, classes, refusals, seed):
    world = World(Policy.of(limit, burst), Random(seed), refusals)
    world.run(classes, 300.0)
    assert worst_window(world.arrivals) <= limit


@given(limit=st.integers(1, 5000), burst=st.integers(1, 100))
def test_a_rate_within_a_limit_keeps_to_it_at_its_worst(limit, burst):
    rate = Rate.within(limit, MINUTE_SECONDS, burst)
    followers = (MINUTE_SECONDS + JITTER_SECONDS) / rate.interval_seconds
    assert rate.burst + int(followers) <= limit or limit == 1


def saturate(policy: Policy, classes: list[RequestClass], seconds: float = 600.0) -> World:
    """Let callers ask again as soon as they were served."""
    world = World(policy, Random(7), 0.0)
    asks: list[tuple[float, int, Reservation | None]] = [(0.0, i, None) for i in range(len(classes))]
    heapq.heapify(asks)
    while asks[0][0] < seconds:
        now, caller, earlier = heapq.heappop(asks)
        world.account, answer = take(world.account, policy, ReservationRequest(classes[caller], earlier=earlier), now)
        if answer.may_send:
            world.grants[classes[caller]] += 1
            world.arrivals.append(now)
        heapq.heappush(asks, (now + answer.wait_seconds + 0.001, caller, None if answer.may_send else answer))
    return world


def test_commands_use_nearly_the_whole_limit():
    world = saturate(Policy.of(100, 6), [COMMAND] * 16)
    assert len(world.arrivals) / 10 > 90
    assert worst_window(world.arrivals) <= 100


def test_polls_get_their_share_while_commands_want_everything():
    policy = Policy.of(100, 6)
    world = saturate(policy, [COMMAND] * 16 + [POLL])
    share = world.grants[POLL] / len(world.arrivals)
    assert policy.poll_share * 0.9 <= share <= policy.poll_share * 1.1


def test_polls_alone_use_what_nobody_else_wants():
    assert len(saturate(Policy.of(100, 6), [POLL] * 4).arrivals) / 10 > 90


def test_a_command_finds_a_slot_while_polls_want_everything():
    policy = Policy.of(100, 6)
    account = saturate(policy, [POLL] * 8).account
    _, answer = take(account, policy, ReservationRequest(COMMAND), account.seen)
    assert answer.may_send


def test_equal_callers_get_equal_numbers_of_slots():
    policy, grants = Policy.of(100, 6), [0] * 16
    account = GcraState.empty(policy, 0.0)
    asks: list[tuple[float, int, Reservation | None]] = [(0.0, i, None) for i in range(16)]
    while asks[0][0] < 600:
        now, caller, earlier = heapq.heappop(asks)
        account, answer = take(account, policy, ReservationRequest(COMMAND, earlier=earlier), now)
        grants[caller] += answer.may_send
        heapq.heappush(asks, (now + answer.wait_seconds, caller, None if answer.may_send else answer))
    assert max(grants) - min(grants) <= 1


def test_a_slot_that_is_missed_is_taken_anew():
    policy = Policy.of(100, 1)
    account, held = take(GcraState.empty(policy, 0.0), policy, ReservationRequest(COMMAND), 0.0)
    account, other = take(account, policy, ReservationRequest(COMMAND), 0.0)
    late = held.due + LATE_SECONDS + 0.1
    account, again = take(account, policy, ReservationRequest(COMMAND, earlier=held), late)
    assert again.due > max(late, other.due)


def test_a_slot_that_is_met_within_the_jitter_counts():
    policy = Policy.of(100, 1)
    account, held = take(GcraState.empty(policy, 0.0), policy, ReservationRequest(COMMAND), 0.0)
    assert take(account, policy, ReservationRequest(COMMAND, earlier=held), held.due + LATE_SECONDS)[1].may_send


def test_a_slot_beyond_the_callers_time_is_not_taken_and_told():
    policy = Policy.of(60, 1)
    account = GcraState.empty(policy, 0.0)
    after, answer = take(account, policy, ReservationRequest(COMMAND, within_seconds=0.5), 0.0)
    assert (answer.granted, after.arrival) == (False, account.arrival)
    assert answer.wait_seconds > 0.5


def test_admissions_spend_nothing_of_the_budget():
    policy = Policy.of(100, 6)
    account = GcraState.full(policy, 0.0)
    for _ in range(50):
        account, _answer = take(account, policy, ReservationRequest(ADMISSION), 0.0)
    assert take(account, policy, ReservationRequest(COMMAND), 0.0)[1].may_send


def test_admissions_come_at_the_rate_of_the_budget():
    policy = Policy.of(100, 6)
    account, dues = GcraState.full(policy, 0.0), []
    for _ in range(200):
        account, answer = take(account, policy, ReservationRequest(ADMISSION), 0.0)
        dues.append(answer.due)
    assert worst_window(dues) <= 100


class TestAfterA429:
    """Everybody pauses, one goes first, and the pause grows while it is refused."""

    policy = Policy.of(100, 6)

    def refused(self, seconds: float | None = None) -> tuple[GcraState, Reservation]:
        account, answer = take(GcraState.full(self.policy, 0.0), self.policy, ReservationRequest(COMMAND), 0.0)
        return cool(account, self.policy, seconds, answer.epoch, 0.0), answer

    def test_nobody_sends_before_the_pause_is_over(self):
        account, _ = self.refused(20.0)
        _, answer = take(account, self.policy, ReservationRequest(COMMAND), 19.0)
        assert answer.wait_seconds == 1.0
        assert not answer.held

    def test_a_slot_held_before_the_pause_is_void(self):
        account, held = take(GcraState.empty(self.policy, 0.0), self.policy, ReservationRequest(COMMAND), 0.0)
        account = cool(account, self.policy, 0.0, held.epoch, held.due)
        assert not take(account, self.policy, ReservationRequest(COMMAND, earlier=held), held.due)[1].may_send

    def test_the_longest_of_several_pauses_counts(self):
        account, answer = self.refused(20.0)
        account = cool(account, self.policy, 5.0, answer.epoch, 1.0)
        assert account.cool_until == 20.0
        assert cool(account, self.policy, 50.0, answer.epoch, 1.0).cool_until == 51.0

    def test_requests_that_were_on_the_way_let_nothing_grow(self):
        account, answer = self.refused()
        later = cool(account, self.policy, None, answer.epoch, account.cool_until + 5)
        assert later.strikes == account.strikes

    def test_one_probe_goes_first(self):
        account, _ = self.refused()
        account, probe = take(account, self.policy, ReservationRequest(POLL), account.cool_until)
        account, other = take(account, self.policy, ReservationRequest(COMMAND), account.seen)
        assert (probe.may_send, probe.probe) == (True, True)
        assert not other.may_send

    def test_all_follow_when_the_probe_is_taken(self):
        account, _ = self.refused()
        account, probe = take(account, self.policy, ReservationRequest(COMMAND), account.cool_until)
        account = settle(account, probe.epoch)
        _, other = take(account, self.policy, ReservationRequest(COMMAND), account.seen)
        assert (other.may_send, other.probe) == (True, False)

    def test_the_pause_grows_when_the_probe_is_refused(self):
        account, _ = self.refused()
        pauses = [account.cool_until]
        for _ in range(5):
            account, probe = take(account, self.policy, ReservationRequest(COMMAND), account.cool_until)
            account = cool(account, self.policy, None, probe.epoch, account.seen)
            pauses.append(account.cool_until - account.seen)
        assert pauses == [5, 10, 10, 10, 10, 10]

    def test_a_short_retry_after_does_not_keep_it_from_growing(self):
        account, _ = self.refused(0.0)
        account, probe = take(account, self.policy, ReservationRequest(COMMAND), account.cool_until)
        account = cool(account, self.policy, 0.0, probe.epoch, account.seen)
        assert account.cool_until - account.seen == 5.0

    def test_a_probe_whose_sender_died_is_given_up(self):
        account, _ = self.refused()
        account, _probe = take(account, self.policy, ReservationRequest(COMMAND), account.cool_until)
        account, other = take(
            account, self.policy, ReservationRequest(COMMAND), account.seen + self.policy.probe_seconds
        )
        assert (other.may_send, other.probe) == (True, True)

    def test_a_storm_of_refusals_for_90_seconds_costs_at_most_10_requests(self):
        account, sent = GcraState.full(self.policy, 0.0), 0
        asks: list[tuple[float, int, Reservation | None]] = [(0.0, i, None) for i in range(16)]
        while asks[0][0] < 90:
            now, caller, earlier = heapq.heappop(asks)
            account, answer = take(account, self.policy, ReservationRequest(COMMAND, earlier=earlier), now)
            if answer.may_send:
                sent += 1
                account = cool(account, self.policy, None, answer.epoch, now + 0.05)
            heapq.heappush(asks, (now + max(answer.wait_seconds, 0.1), caller, None if answer.may_send else answer))
        assert sent <= 10
