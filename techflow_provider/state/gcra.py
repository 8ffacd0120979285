"""The rate limit of one API key as pure arithmetic: a GCRA for two classes of requests, with a cool-down after a 429.

The theoretical arrival time (tat) says when the next request is due at the steady rate. Tokens let further ones go at
once, and an idle time brings them back. Callers that ask all the time have no use for tokens: once the last one is a
window ago, the rate is as fast as a burst of one allows. Commands queue for slots in the order in which they ask. Polls
don't queue: they take a slot that is free now and leave half of the burst to commands, or learn when to ask again. Once
the polls' last slot is a share's interval ago, the next poll goes first and pushes back the slots that commands hold.
Tasks that wait elsewhere are admitted at the same rate, less the requests of others, but at half of it at least.
After a 429 nothing is sent until the cool-down is over, and every slot that is held is void. Then a single request goes
as a probe; the others follow one by one once the server accepts it.

`gcra.lua` implements `reserve` for Redis, and a test compares the two.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from operator import attrgetter

from techflow_provider.state.learning import (
    MINUTE_SECONDS,
    WINDOW_INTERVALS,
    Cause,
    Learned,
    Quota,
    Rejection,
    Usage,
)

# How much later than its slot a request may reach the server without a window ever holding more than the limit.
JITTER_SECONDS = 1.5
# A caller that wakes up later than this after its slot has missed it; the rest of the jitter is left to the network.
LATE_SECONDS = 1.0
# Callers that could not use the state return to it within this time once it can be used again.
RETURN_SECONDS = 10.0
# The part of the rate that polls get even when commands want it all; all pollers of a key share it.
POLL_SHARE = 0.2
# Without a Retry-After: the first cool-down, which each rejected probe doubles, and the longest one; and the least that
# even a Retry-After of 0 brings. A server that rejects all gets one request a minute then, and callers notice within as
# much time that it has recovered.
FIRST_COOL_DOWN_SECONDS, LONGEST_COOL_DOWN_SECONDS, SHORTEST_COOL_DOWN_SECONDS = 3.0, 48.0, 1.0
# A probe without a response is given up after this.
PROBE_SECONDS = 30.0
# Covers rounding, and a window that includes both its ends.
MARGIN_SECONDS = 0.001
# The time in which no more requests get a slot than the limit allows.
WINDOW_SECONDS = MINUTE_SECONDS + JITTER_SECONDS + MARGIN_SECONDS
# No caller is made to wait less than this, so that none asks in a busy loop.
SHORTEST_WAIT_SECONDS = 0.001
# A clock that is this many times the lateness ahead was set; less may be a slow store or a busy host.
JUMPS = 3
MOVING_FIELDS = ("tat", "tokens_at", "admission_tat", "pushed_at", "polled_at", "cool_until", "probe_until")
_times = attrgetter(*MOVING_FIELDS, "epoch")
# No time lies further from the last use of a budget than this.
LONGEST_SECONDS = 30 * 24 * 3600.0
# As many slots that were given back are kept for others.
MOST_RELEASED = 1000
# Sums of intervals are off by a little.
ROUNDING = 1e-6


@functools.lru_cache(maxsize=256)
def burst_within(limit: float, burst: float) -> int:
    """Return as much of a burst as leaves at least half of the limit to the steady rate."""
    return max(1, int(min(burst, limit // 2)))


@functools.lru_cache(maxsize=256)
def interval_within(limit: float, burst: float) -> float:
    """Return the seconds between two requests at the fastest rate that never exceeds `limit` requests in any minute."""
    return WINDOW_SECONDS / max(limit - burst_within(limit, burst), min(1.0, limit))


@dataclass(frozen=True, slots=True)
class Policy:
    """The parameters of a budget.

    :param limit: requests in any minute
    :param burst: requests that may be sent at once after an idle time, at most
    """

    limit: int
    burst: int

    def __post_init__(self) -> None:
        """Check the numbers, which may come from another process, and cut the burst to what the limit has room for.

        :raises ValueError: one can't be right
        """
        if min(self.limit, self.burst) < 1:
            raise ValueError(f"expected numbers of 1 or more, got {self}")
        object.__setattr__(self, "burst", burst_within(self.limit, self.burst))


class RequestClass(StrEnum):
    """What asks: a user's command, a poll, which can also be sent later, or a task that waits to be admitted."""

    COMMAND = "command"
    POLL = "poll"
    # Sends nothing itself, and spends nothing of what the other two share.
    ADMISSION = "admission"


class Reason(StrEnum):
    """Why a request has to wait, as text for a log line."""

    NONE = "nothing"
    LIMIT = "the rate limit"
    COMMANDS = "commands go first"
    COOL_DOWN = "the cool-down after a 429"
    PROBE = "the first request after a 429"
    STATE = "the shared state can't be used at present"


@dataclass(frozen=True, slots=True)
class GcraState:
    """What is kept for one API key; all times are on the clock of the store that keeps it.

    :param updated_at: when it was last used
    :param tat: theoretical arrival time: when the next request is due at the steady rate
    :param tokens: requests that may be sent before that
    :param tokens_at: when there last were any
    :param admission_tat: theoretical arrival time of admissions
    :param admission_pushback_seconds: by how much requests without an admission have put off those that are waited for
    :param admitted: tasks that were admitted, and whose commands have not come yet
    :param pushback_seconds: by how much polls that went first have pushed back the slots of commands, in total
    :param pushed_at: when the last of them did
    :param polled_at: the polls' last slot
    :param cool_until: end of the cool-down
    :param probe_until: until when the response to a probe is waited for
    :param consecutive_429: 429s in a row; after a cool-down, each probe counts once
    :param epoch: changes when all slots that are held become void
    :param learned: what was learned about the server's limiter
    :param released: slots that were given back, less the pushback at that time
    """

    updated_at: float
    tat: float
    tokens: float
    tokens_at: float
    admission_tat: float
    admission_pushback_seconds: float
    admitted: float
    pushback_seconds: float
    pushed_at: float
    polled_at: float
    cool_until: float
    probe_until: float
    consecutive_429: float
    epoch: float
    learned: Learned
    released: tuple[float, ...] = ()

    @classmethod
    def empty(cls, policy: Policy, now: float) -> GcraState:
        """Return an exhausted bucket: what was sent before is unknown."""
        interval = interval_within(policy.limit, 1)
        polled_at, learned = now - interval / POLL_SHARE, Learned.nothing(now, 1.0)
        return cls(now, now + interval, 0.0, now, now, 0.0, 0.0, 0.0, now, polled_at, now, now, 0.0, now, learned)

    @classmethod
    def full(cls, policy: Policy, now: float) -> GcraState:
        """Return a bucket from which a whole burst may be sent."""
        burst = float(policy.burst)
        return replace(cls.empty(policy, now), tat=now, tokens=burst - 1, learned=Learned.nothing(now, burst))

    def is_plausible(self) -> bool:
        """Whether a budget can have come to these numbers; others might block it for years."""
        learned, times = self.learned, (*_times(self), *self.learned.times)
        return (
            max(times) - LONGEST_SECONDS <= self.updated_at <= min(times) + LONGEST_SECONDS
            and 0 <= self.tokens <= learned.burst
            and 0 < learned.plateau <= 1 <= learned.burst
            and min(self.admitted, self.consecutive_429) >= 0
            and min(learned.reductions, learned.quota_interval, learned.stated) >= 0
        )

    @property
    def share(self) -> float:
        """The part of the limit to use."""
        return self.learned.share(self.updated_at)

    def interval(self, policy: Policy) -> float:
        """Return the seconds between two requests at the present rate.

        No window holds both what is sent at the faster rate and a request with a token.
        """
        steady = self.tokens == 0 and self.updated_at - self.tokens_at >= WINDOW_SECONDS
        burst = 1 if steady else min(self.learned.burst, policy.burst)
        return interval_within(policy.limit * self.learned.share(self.updated_at), burst)

    def interval_after(self, policy: Policy, due: float) -> float:
        """Return the time from a slot to the next one."""
        interval = self.interval(policy)
        return max(interval, self.learned.quota_interval) if due < self.learned.quota_until else interval

    def reserved(self, policy: Policy) -> int:
        """Return how much of the burst polls leave to commands; a burst that can grow is given the time to."""
        return int(min(policy.burst, self.learned.burst + (self.updated_at >= self.learned.burst_until))) // 2

    def free(self, policy: Policy) -> int:
        """Return how many commands may be sent now, after a 429 aside."""
        state = _refilled(self, policy)
        return int(state.tokens) + (state.tat <= state.updated_at)

    def usage(self, policy: Policy, sent: float) -> Usage:
        """Return what is used at present, to compare it with what a response states."""
        interval = self.interval_after(policy, self.updated_at)
        share, learned = self.share, self.learned
        others = policy.limit * (1 - share) if learned.cause is Cause.OTHERS else 0.0
        return Usage(policy.limit, share, interval, sent, learned.stated, others)


@dataclass(frozen=True, slots=True)
class Reservation:
    """The response to a reservation request: send now, wait and ask again with this reservation, or give up.

    :param wait_seconds: time until the slot, or until it makes sense to ask again; 0 when the request may be sent now
    :param granted: False when the slot lies beyond the time that the caller can wait, and was not taken
    :param due: when the slot is, on the budget's clock
    :param held: whether the slot is kept for the caller; otherwise this is only a time to ask again
    :param probe: whether the request is the first after a 429, and others wait for its outcome
    :param reason: why to wait
    :param at: the budget's clock when it was made
    :param pushback_seconds: the state's value then
    :param epoch: the state's epoch then
    :param in_burst: whether it is earlier than the steady rate allows
    :param usage: what the budget uses, when the request may be sent
    :param discarded: whether a state that can't be read was discarded
    """

    wait_seconds: float
    granted: bool
    due: float
    held: bool = True
    probe: bool = False
    reason: Reason = Reason.NONE
    at: float = 0.0
    pushback_seconds: float = 0.0
    epoch: float = 0.0
    in_burst: bool = False
    usage: Usage | None = None
    discarded: bool = False

    @property
    def may_send(self) -> bool:
        """Whether the request may be sent now."""
        return self.granted and self.wait_seconds <= 0


@dataclass(frozen=True, slots=True)
class ReservationRequest:
    """A caller's request for a slot.

    :param request_class: what asks
    :param within_seconds: how long the caller can wait
    :param earlier: the last reservation for the same request
    :param assumed_share: the part of the limit that the caller may assume to be its own, where requests may have been
        sent that the state doesn't know of, so that no burst is left; None where it knows all of them
    :param expected: the store's clock as extrapolated from the caller's own, which reveals a clock that was set ahead
    """

    request_class: RequestClass
    within_seconds: float = math.inf
    earlier: Reservation | None = None
    assumed_share: float | None = None
    expected: float | None = None


def reserve(state: GcraState, policy: Policy, request: ReservationRequest, now: float) -> tuple[GcraState, Reservation]:
    """Return the slot that the caller holds already, or else take the next one if it lies within the caller's time."""
    used_at = state.updated_at
    state = _at_time(state, policy, now, request.expected)
    if request.assumed_share is not None:
        state = _joined(state, policy, request.assumed_share, state.updated_at - used_at)
    due, is_admission = _held_slot(state, policy, request), request.request_class is RequestClass.ADMISSION
    if due is None:
        state, reservation = _next_slot(state, policy, request)
    else:
        reservation = _reservation(state, request, due, Reason.LIMIT)
        # A caller that polls have pushed back a little keeps its slot, which nobody else would get.
        reservation = replace(reservation, granted=reservation.granted or not is_admission)
    if is_admission and reservation.may_send:
        state = replace(state, admitted=state.admitted + 1)
    return state, reservation


def _joined(state: GcraState, policy: Policy, share: float, idle_seconds: float) -> GcraState:
    """Return the state for one more caller, after it or others have sent what the state doesn't know of."""
    learned, now = state.learned, state.updated_at
    has_others = learned.cause is Cause.ALONE and idle_seconds < MINUTE_SECONDS
    if has_others or share < state.share:
        share = min(1.0, share + state.share) if has_others else share
        learned = replace(learned.from_share(share, share, now), cause=Cause.ALONE)
    state = replace(state, tokens=0.0, tokens_at=now, learned=learned)
    # The first one to return leaves the others the time to do so, too.
    wait = RETURN_SECONDS if idle_seconds >= RETURN_SECONDS else 0.0
    return replace(state, tat=max(state.tat, now + max(wait, state.interval(policy))))


def release(state: GcraState, policy: Policy, reservation: Reservation) -> GcraState:
    """Give back a slot that is held and not used, so that the next command may take it."""
    if not (reservation.held and reservation.granted) or reservation.epoch != state.epoch:
        return state
    if reservation.probe:
        return replace(state, probe_until=state.updated_at)
    slot = reservation.due - reservation.pushback_seconds
    slots = sorted(each for each in (*state.released, slot) if each + state.pushback_seconds > state.updated_at)
    tat, interval = state.tat, state.interval(policy)
    # The last slot has none within an interval after it.
    while slots and tat - slots[-1] - state.pushback_seconds < 1.5 * interval:
        tat = slots.pop() + state.pushback_seconds
    return replace(state, tat=tat, released=tuple(slots[-MOST_RELEASED:]))


def cool_down(
    state: GcraState, policy: Policy, rejection: Rejection, sent: Callable[[float], int], now: float
) -> GcraState:
    """Begin a cool-down after a 429, or extend the present one; the longest of several counts.

    A 429 for a request from before the present cool-down doesn't count again.

    :param sent: returns the number of requests sent in the last seconds
    """
    state = _at_time(state, policy, now)
    now, requested = state.updated_at, rejection.seconds or 0.0
    if state.consecutive_429 and (now < state.cool_until or rejection.epoch < state.epoch):
        learned = _smaller_burst(state, rejection) or state.learned
        return replace(state, cool_until=max(state.cool_until, now + requested), learned=learned)
    state = replace(state, learned=_learn(state, policy, rejection, sent), consecutive_429=state.consecutive_429 + 1)
    # A server that objects again soon has more to forget than it says.
    again = min(2.0, max(0.0, state.learned.reductions - 1))
    doublings = state.consecutive_429 + again - (1 if rejection.seconds is None else 2)
    grown = FIRST_COOL_DOWN_SECONDS * 2.0 ** min(doublings, 16) if doublings >= 0 else 0.0
    grown = min(grown, LONGEST_COOL_DOWN_SECONDS) * (1 - rejection.jitter / 2)
    length = max(requested, SHORTEST_COOL_DOWN_SECONDS, grown)
    state, cool_until = _voided(state, policy), now + length
    tat = max(state.tat, cool_until)
    return replace(state, tat=tat, tokens=0.0, cool_until=cool_until, probe_until=now)


def _smaller_burst(state: GcraState, rejection: Rejection) -> Learned | None:
    """Return what a 429 for a request of a burst shows, or for one beside it; None for another request."""
    learned, age = state.learned, state.updated_at - state.tokens_at
    if not rejection.in_burst and (learned.burst == 1 or age > LATE_SECONDS + JITTER_SECONDS):
        return None
    return learned.with_burst(learned.burst - 1, state.updated_at)


def _learn(state: GcraState, policy: Policy, rejection: Rejection, sent: Callable[[float], int]) -> Learned:
    """Return what a 429 shows: that the burst is too large, or else that less of the limit is left than assumed."""
    learned, now = state.learned, state.updated_at
    if state.consecutive_429:
        return learned
    if (smaller := _smaller_burst(state, rejection)) is not None:
        return smaller
    if learned.burst > 1 and now - state.tokens_at < WINDOW_SECONDS:
        return learned.with_burst(1.0, now)
    elapsed = MINUTE_SECONDS - (rejection.seconds or 0.0)
    is_full = 0 < elapsed < MINUTE_SECONDS - WINDOW_INTERVALS * state.interval(policy)
    full = sent(elapsed) / policy.limit if is_full else None
    return learned.reduced(sent(MINUTE_SECONDS) / policy.limit, now, full, elapsed)


def observe(state: GcraState, policy: Policy, quota: Quota, sent: float, now: float) -> GcraState:
    """Heed what a response states about the limit; slots that come too early for that are void.

    :param sent: requests of the last minute
    """
    state = _at_time(state, policy, now)
    learned = state.learned.after(quota, state.usage(policy, sent), state.updated_at)
    shortened = learned.quota_until > max(state.learned.quota_until, state.updated_at)
    state = replace(state, learned=learned)
    if not shortened:
        return state
    return replace(_voided(state, policy), tat=state.updated_at + learned.quota_interval, tokens=0.0)


def settle(state: GcraState, epoch: float) -> GcraState:
    """End the probing, because the server accepted the probe of this epoch."""
    return state if epoch != state.epoch else replace(state, consecutive_429=0.0, probe_until=state.updated_at)


def _at_time(state: GcraState, policy: Policy, now: float, expected: float | None = None) -> GcraState:
    """Return the state as of now, moved along when the clock jumped: time counts only where it provably passed."""
    if state.updated_at - LATE_SECONDS <= now < state.updated_at:
        return state
    jumped_ahead = expected is not None and max(expected, state.updated_at) < now - JUMPS * LATE_SECONDS
    if now >= state.updated_at and not jumped_ahead:
        return replace(state, updated_at=now)
    by = now - (expected if expected is not None and now >= state.updated_at else state.updated_at)
    moved = {field: getattr(state, field) + by for field in MOVING_FIELDS}
    return _voided(replace(state, updated_at=now, learned=state.learned.moved(by), **moved), policy)


def _voided(state: GcraState, policy: Policy) -> GcraState:
    """Return the state without the slots that are held and not used yet."""
    tat = min(state.tat, state.updated_at + state.interval(policy))
    # An epoch is a time on the store's clock, so it differs from those of every other state.
    epoch = max(state.updated_at, state.epoch + 1e-6)
    return replace(state, tat=tat, admission_tat=min(state.admission_tat, tat), epoch=epoch, released=())


def _held_slot(state: GcraState, policy: Policy, request: ReservationRequest) -> float | None:
    """Return when the slot is that the caller holds, or None when there is none, or it is void or missed."""
    earlier = request.earlier
    if earlier is None or not (earlier.held and earlier.granted) or earlier.epoch != state.epoch:
        return None
    due, pushed = earlier.due, _pushback(state, request) - earlier.pushback_seconds
    if request.request_class is RequestClass.ADMISSION:
        # Again and again, so that in all it takes no more than twice as long as without the others.
        due += min(pushed, (due - earlier.at) / 2)
    elif request.request_class is RequestClass.COMMAND and pushed > 0:
        due += pushed
        # The last poll that went first came when this slot was due already, and did not push it.
        interval = state.interval(policy)
        due -= interval if state.pushed_at >= due - interval else 0.0
    return due if state.updated_at - due <= LATE_SECONDS else None


def _next_slot(state: GcraState, policy: Policy, request: ReservationRequest) -> tuple[GcraState, Reservation]:
    now, probing = state.updated_at, state.consecutive_429 > 0
    if now < state.cool_until:
        return state, _reservation(state, request, state.cool_until, Reason.COOL_DOWN, held=False)
    if probing and now < state.probe_until:
        again = min(state.probe_until, now + SHORTEST_COOL_DOWN_SECONDS)
        return state, _reservation(state, request, again, Reason.PROBE, held=False)
    due, after = _place(state, policy, request.request_class)
    probe = probing and request.request_class is not RequestClass.ADMISSION
    if after is None or (probe and due > now):
        reason = Reason.COMMANDS if after is None else Reason.LIMIT
        return state, _reservation(state, request, due, reason, held=False)
    if due - now > request.within_seconds:
        if request.request_class is RequestClass.COMMAND:
            # It leaves a slot to those that were admitted after it, so that commands wait less.
            state = _with_command(state, policy)
        return state, _reservation(state, request, due, Reason.LIMIT)
    if probe:
        after = replace(after, probe_until=now + PROBE_SECONDS)
    in_burst = after.tokens < state.tokens
    return after, _reservation(after, request, due, Reason.LIMIT, probe=probe, in_burst=in_burst)


def _place(state: GcraState, policy: Policy, request_class: RequestClass) -> tuple[float, GcraState | None]:
    """Return when the next slot is and the state once it is taken; or when to ask again, and None."""
    if request_class is RequestClass.ADMISSION:
        interval = state.interval(policy)
        due = max(state.updated_at, state.admission_tat - (policy.burst - 1) * interval)
        return due, replace(state, admission_tat=_later(state, interval))
    state = _refilled(state, policy)
    if request_class is RequestClass.POLL:
        return _place_poll(state, policy)
    if state.released and state.updated_at < state.tat:
        left = [each for each in state.released if each + state.pushback_seconds >= state.updated_at]
        if left:
            return left[0] + state.pushback_seconds, replace(state, released=tuple(left[1:]))
    due, taken = _place_command(state, policy)
    return due, _with_command(taken, policy)


def _refilled(state: GcraState, policy: Policy) -> GcraState:
    """Return the state with the tokens of an idle time, once the request that asks has taken its turn.

    The burst grows when it was used up before and the idle time is long enough for one more.
    """
    now, learned = state.updated_at, state.learned
    gained = math.floor((now - state.tat) / state.interval(policy) + ROUNDING)
    if gained < 1:
        return state
    grows = (
        state.tokens == 0 and learned.burst <= gained and learned.burst < policy.burst and now >= learned.burst_until
    )
    burst = min(learned.burst + grows, float(policy.burst))
    tokens = min(burst - 1, state.tokens + gained)
    tokens_at = now if tokens > 0 else state.tokens_at
    return replace(state, tokens=tokens, tokens_at=tokens_at, learned=replace(learned, burst=burst))


def _place_command(state: GcraState, policy: Policy) -> tuple[float, GcraState]:
    """Return when the next slot is and the state once it is taken, with a token if the steady rate doesn't allow it."""
    now = state.updated_at
    if state.tokens > 0:
        state = replace(state, tokens_at=now)
        if state.tat > now:
            return now, replace(state, tokens=state.tokens - 1)
    due = max(now, state.tat)
    return due, replace(state, tat=due + state.interval_after(policy, due))


def _place_poll(state: GcraState, policy: Policy) -> tuple[float, GcraState | None]:
    now, interval, reserved = state.updated_at, state.interval_after(policy, state.updated_at), state.reserved(policy)
    free = now if state.tokens > reserved else state.tat + (reserved - state.tokens) * interval
    turn = state.polled_at + interval / POLL_SHARE
    if min(free, turn) > now:
        return min(free, turn), None
    due, taken = _place_command(state, policy)
    if due > now:
        # The poll takes the next slot that is held, and all callers that hold one move up by one.
        due -= math.floor((due - now) / interval) * interval
        taken = replace(taken, pushback_seconds=state.pushback_seconds + interval, pushed_at=now)
    # A poll that comes a little late for the polls' turn does not put off the next one.
    polled_at = due if free <= now else max(turn, due - interval)
    return due, _put_off(replace(taken, polled_at=polled_at), policy)


def _with_command(state: GcraState, policy: Policy) -> GcraState:
    """Return the state after a command, that of an admitted task if one is expected."""
    return replace(state, admitted=state.admitted - 1) if state.admitted > 0 else _put_off(state, policy)


def _put_off(state: GcraState, policy: Policy) -> GcraState:
    """Return the state after a request without an admission, which takes the slot of a task that waits for one."""
    interval = state.interval(policy)
    pushback = state.admission_pushback_seconds + interval
    return replace(state, admission_tat=_later(state, interval), admission_pushback_seconds=pushback)


def _later(state: GcraState, interval: float) -> float:
    return max(state.updated_at, state.admission_tat) + interval


def _pushback(state: GcraState, request: ReservationRequest) -> float:
    is_admission = request.request_class is RequestClass.ADMISSION
    return state.admission_pushback_seconds if is_admission else state.pushback_seconds


def _reservation(
    state: GcraState,
    request: ReservationRequest,
    due: float,
    reason: Reason,
    *,
    held: bool = True,
    probe: bool = False,
    in_burst: bool = False,
) -> Reservation:
    wait = due - state.updated_at
    wait = 0.0 if wait <= 0 else max(wait, SHORTEST_WAIT_SECONDS)
    return Reservation(
        wait_seconds=wait,
        granted=wait <= request.within_seconds,
        due=due,
        held=held,
        probe=probe,
        reason=reason if wait > 0 else Reason.NONE,
        at=state.updated_at,
        pushback_seconds=_pushback(state, request),
        epoch=state.epoch,
        in_burst=in_burst,
    )
