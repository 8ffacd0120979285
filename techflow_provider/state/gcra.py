"""The rate limit of one API key as pure arithmetic: a GCRA for two classes of requests, with a cool-down after a 429.

The theoretical arrival time (tat) says when the bucket would be full again if nothing more were sent. Commands queue
for slots in the order in which they ask. Polls don't queue: they take a slot that is free now and leave half of the
burst to commands, or learn when to ask again. Once the polls' last slot is a share's interval ago, the next poll goes
first and pushes back the slots that commands hold. After a 429 nothing is sent until the cool-down is over, and every
slot that is held is void. Then a single request goes as a probe; the others follow once the server accepts it.

`gcra.lua` implements `reserve`, `cool_down` and `settle` for Redis, and a test compares the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

MINUTE_SECONDS = 60.0
# How much later than its slot a request may reach the server without a window ever holding more than the limit.
JITTER_SECONDS = 1.5
# A caller that wakes up later than this after its slot has missed it; the rest of the jitter is left to the network.
LATE_SECONDS = 1.0
# The part of the rate that polls get even when commands want it all; all pollers of a key share it.
POLL_SHARE = 0.2
# Without a Retry-After: the first cool-down and the longest one; and the least that even a Retry-After of 0 brings. The
# longest one sends six requests a minute to a server that rejects all, and callers notice soon that it has recovered.
COOL_DOWNS = FIRST_COOL_DOWN_SECONDS, LONGEST_COOL_DOWN_SECONDS, SHORTEST_COOL_DOWN_SECONDS = 5.0, 10.0, 1.0
PROBE_SECONDS = 30.0
# Covers rounding, and a window that includes both its ends.
MARGIN_SECONDS = 0.001
# No caller is made to wait less than this, so that none asks in a busy loop.
SHORTEST_WAIT_SECONDS = 0.001
# A clock that is this many times the lateness ahead was set; less may be a slow store or a busy host.
JUMPS = 3
MOVING_FIELDS = ("tat", "admission_tat", "pushed_at", "polled_at", "cool_until", "probe_until")


@dataclass(frozen=True, slots=True)
class Rate:
    """A burst and a steady rate.

    :param burst: requests that may be sent at once after an idle time
    :param interval_seconds: time between two requests in the long run
    """

    burst: int
    interval_seconds: float

    @classmethod
    def within(cls, limit: int, period_seconds: float, burst: int, jitter_seconds: float = JITTER_SECONDS) -> Rate:
        """Return the fastest rate that never exceeds `limit` requests in any window of `period_seconds`.

        The burst is cut so that at least half of the limit is left to the steady rate.
        """
        kept = max(1, min(burst, limit // 2))
        return cls(kept, (period_seconds + jitter_seconds + MARGIN_SECONDS) / max(limit - kept, 1))

    def tolerance(self, burst: int | None = None) -> float:
        """Return how long before its theoretical arrival time a request may be sent."""
        return ((self.burst if burst is None else burst) - 1) * self.interval_seconds

    @property
    def polls_burst(self) -> int:
        """The part of the burst that polls may use up."""
        return (self.burst + 1) // 2


@dataclass(frozen=True, slots=True)
class Policy:
    """The parameters of a budget.

    :param rate: burst and steady rate
    :param poll_share: the part of the rate that polls get even when commands want it all
    :param late_seconds: a caller that wakes up later than this after its slot has missed it
    :param first_cool_down_seconds: cool-down after a first 429 without a Retry-After; each rejected probe doubles it
    :param longest_cool_down_seconds: bound of that growth
    :param shortest_cool_down_seconds: cool-down that even a Retry-After of 0 brings
    :param probe_seconds: time after which a probe without a response is given up
    """

    rate: Rate
    poll_share: float = POLL_SHARE
    late_seconds: float = LATE_SECONDS
    first_cool_down_seconds: float = FIRST_COOL_DOWN_SECONDS
    longest_cool_down_seconds: float = LONGEST_COOL_DOWN_SECONDS
    shortest_cool_down_seconds: float = SHORTEST_COOL_DOWN_SECONDS
    probe_seconds: float = PROBE_SECONDS

    @classmethod
    def of(cls, requests_per_minute: int, burst: int, minute_seconds: float = MINUTE_SECONDS) -> Policy:
        """Return the policy for a limit; a shorter minute scales every other time with it."""
        scale = minute_seconds / MINUTE_SECONDS
        rate = Rate.within(requests_per_minute, minute_seconds, burst, JITTER_SECONDS * scale)
        first, longest, shortest = (each * scale for each in COOL_DOWNS)
        return cls(rate, POLL_SHARE, LATE_SECONDS * scale, first, longest, shortest, PROBE_SECONDS * scale)

    @property
    def poll_interval_seconds(self) -> float:
        """Time after which a poll goes before commands."""
        return self.rate.interval_seconds / self.poll_share

    @property
    def exhausted_seconds(self) -> float:
        """How far ahead the theoretical arrival time of an exhausted bucket lies."""
        return self.rate.tolerance() + self.rate.interval_seconds


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
    :param tat: theoretical arrival time of requests
    :param admission_tat: theoretical arrival time of admissions
    :param pushback_seconds: by how much polls that went first have pushed back the slots of commands, in total
    :param pushed_at: when the last of them did
    :param polled_at: the polls' last slot
    :param cool_until: end of the cool-down
    :param probe_until: until when the response to a probe is waited for
    :param consecutive_429: 429s in a row; after a cool-down, each probe counts once
    :param epoch: changes when all slots that are held become void
    """

    updated_at: float
    tat: float
    admission_tat: float
    pushback_seconds: float
    pushed_at: float
    polled_at: float
    cool_until: float
    probe_until: float
    consecutive_429: float
    epoch: float

    @classmethod
    def empty(cls, policy: Policy, now: float) -> GcraState:
        """Return an exhausted bucket: what was sent before is unknown."""
        polled_at = now - policy.poll_interval_seconds
        return cls(now, now + policy.exhausted_seconds, now, 0.0, now, polled_at, now, now, 0.0, now)

    @classmethod
    def full(cls, policy: Policy, now: float) -> GcraState:
        """Return a bucket from which a whole burst may be sent."""
        return replace(cls.empty(policy, now), tat=now)


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
    :param assume_spent: whether requests may have been sent that the state doesn't know of, so that no burst is left
    :param expected: the store's clock as extrapolated from the caller's own, which reveals a clock that was set ahead
    """

    request_class: RequestClass
    within_seconds: float = math.inf
    earlier: Reservation | None = None
    assume_spent: bool = False
    expected: float | None = None


def reserve(state: GcraState, policy: Policy, request: ReservationRequest, now: float) -> tuple[GcraState, Reservation]:
    """Return the slot that the caller holds already, or else take the next one if it lies within the caller's time."""
    state = _at_time(state, policy, now, request.expected)
    if request.assume_spent:
        state = replace(state, tat=max(state.tat, state.updated_at + policy.exhausted_seconds))
    due = _held_slot(state, policy, request)
    if due is None:
        return _next_slot(state, policy, request)
    return state, _reservation(state, request, due, Reason.LIMIT)


def cool_down(state: GcraState, policy: Policy, seconds: float | None, epoch: float, now: float) -> GcraState:
    """Begin a cool-down after a 429, or extend the present one; the longest of several counts.

    :param seconds: what the server asked for; without it, and when a probe is rejected, the cool-down grows
    :param epoch: the epoch of the request's slot; a 429 for one from before the present cool-down doesn't count again
    """
    state = _at_time(state, policy, now)
    now, requested = state.updated_at, seconds or 0.0
    if state.consecutive_429 and (now < state.cool_until or epoch < state.epoch):
        return replace(state, cool_until=max(state.cool_until, now + requested))
    consecutive = state.consecutive_429 + 1
    doublings = consecutive - (1 if seconds is None else 2)
    grown = policy.first_cool_down_seconds * 2.0 ** min(doublings, 16) if doublings >= 0 else 0.0
    length = max(requested, policy.shortest_cool_down_seconds, min(grown, policy.longest_cool_down_seconds))
    return replace(_voided(state, policy), cool_until=now + length, probe_until=now, consecutive_429=consecutive)


def settle(state: GcraState, epoch: float) -> GcraState:
    """End the probing, because the server accepted the probe of this epoch."""
    return state if epoch != state.epoch else replace(state, consecutive_429=0.0, probe_until=state.updated_at)


def _at_time(state: GcraState, policy: Policy, now: float, expected: float | None = None) -> GcraState:
    """Return the state as of now, moved along when the clock jumped: time counts only where it provably passed."""
    if state.updated_at - policy.late_seconds <= now < state.updated_at:
        return state
    jumped_ahead = expected is not None and max(expected, state.updated_at) < now - JUMPS * policy.late_seconds
    if now >= state.updated_at and not jumped_ahead:
        return replace(state, updated_at=now)
    by = now - (expected if expected is not None and now >= state.updated_at else state.updated_at)
    moved = {field: getattr(state, field) + by for field in MOVING_FIELDS}
    return _voided(replace(state, updated_at=now, **moved), policy)


def _voided(state: GcraState, policy: Policy) -> GcraState:
    """Return the state without the slots that are held and not used yet."""
    tat = min(state.tat, state.updated_at + policy.exhausted_seconds)
    # An epoch is a time on the store's clock, so it differs from those of every other state.
    epoch = max(state.updated_at, state.epoch + 1e-6)
    return replace(state, tat=tat, admission_tat=min(state.admission_tat, tat), epoch=epoch)


def _held_slot(state: GcraState, policy: Policy, request: ReservationRequest) -> float | None:
    """Return when the slot is that the caller holds, or None when there is none, or it is void or missed."""
    earlier = request.earlier
    if earlier is None or not (earlier.held and earlier.granted) or earlier.epoch != state.epoch:
        return None
    due, interval = earlier.due, policy.rate.interval_seconds
    pushed = state.pushback_seconds - earlier.pushback_seconds if request.request_class is RequestClass.COMMAND else 0.0
    if pushed > 0:
        due += pushed
        # The last poll that went first came when this slot was due already, and did not push it.
        due -= interval if state.pushed_at >= due - interval else 0.0
    return due if state.updated_at - due <= policy.late_seconds else None


def _next_slot(state: GcraState, policy: Policy, request: ReservationRequest) -> tuple[GcraState, Reservation]:
    now, probing = state.updated_at, state.consecutive_429 > 0
    if now < state.cool_until:
        return state, _reservation(state, request, state.cool_until, Reason.COOL_DOWN, held=False)
    if probing and now < state.probe_until:
        again = min(state.probe_until, now + policy.shortest_cool_down_seconds)
        return state, _reservation(state, request, again, Reason.PROBE, held=False)
    due, after = _place(state, policy, request.request_class)
    probe = probing and request.request_class is not RequestClass.ADMISSION
    if after is None or (probe and due > now):
        reason = Reason.COMMANDS if after is None else Reason.LIMIT
        return state, _reservation(state, request, due, reason, held=False)
    if due - now > request.within_seconds:
        return state, _reservation(state, request, due, Reason.LIMIT)
    if probe:
        after = replace(after, probe_until=now + policy.probe_seconds)
    return after, _reservation(after, request, due, Reason.LIMIT, probe=probe)


def _place(state: GcraState, policy: Policy, request_class: RequestClass) -> tuple[float, GcraState | None]:
    """Return when the next slot is and the state once it is taken; or when to ask again, and None."""
    rate, now = policy.rate, state.updated_at
    if request_class is RequestClass.ADMISSION:
        return max(now, state.admission_tat - rate.tolerance()), _admitted(state, policy)
    due = max(now, state.tat - rate.tolerance())
    taken = replace(state, tat=max(now, state.tat) + rate.interval_seconds)
    return (due, taken) if request_class is RequestClass.COMMAND else _place_poll(state, policy, due, taken)


def _place_poll(state: GcraState, policy: Policy, due: float, taken: GcraState) -> tuple[float, GcraState | None]:
    interval, now = policy.rate.interval_seconds, state.updated_at
    free = state.tat - policy.rate.tolerance(policy.rate.polls_burst)
    turn = state.polled_at + policy.poll_interval_seconds
    if min(free, turn) > now:
        return min(free, turn), None
    if due > now:
        # The poll takes the next slot that is held, and all callers that hold one move up by one.
        due -= math.floor((due - now) / interval) * interval
        taken = replace(taken, pushback_seconds=state.pushback_seconds + interval, pushed_at=now)
    # A poll that comes a little late for the polls' turn does not put off the next one.
    polled_at = due if free <= now else max(turn, due - interval)
    return due, _admitted(replace(taken, polled_at=polled_at), policy)


def _admitted(state: GcraState, policy: Policy) -> GcraState:
    admission_tat = max(state.updated_at, state.admission_tat) + policy.rate.interval_seconds
    return replace(state, admission_tat=admission_tat)


def _reservation(
    state: GcraState,
    request: ReservationRequest,
    due: float,
    reason: Reason,
    *,
    held: bool = True,
    probe: bool = False,
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
        pushback_seconds=state.pushback_seconds,
        epoch=state.epoch,
    )
