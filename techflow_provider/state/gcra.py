"""The account of one API key and its arithmetic, pure: who may send when.

An account keeps the theoretical arrival time of the GCRA: when the bucket would be empty of debt if nothing more were
taken. Commands queue for slots in the order in which they ask. Polls don't queue: they take a slot that is free now and
leave half the burst alone, or are told when to ask again; but when the polls' last slot is a share's interval ago, the
next poll goes first and pushes back the slots that commands hold. After a 429 everybody pauses and every slot that is
held is void; when the pause is over a single request goes as a probe, and the others follow once it was not refused.

`scripts` repeats `take`, `cool` and `settle` in Lua, and a test holds the two against each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

MINUTE_SECONDS = 60.0
# How much later than its slot a request may reach the server without a window ever holding more than the limit.
JITTER_SECONDS = 1.5
# Who wakes up later than this after a slot has missed it; what is left of the jitter is the time on the way.
LATE_SECONDS = 1.0
# The part of the rate that polls get even when commands want it all; all pollers of a key together make do with it.
POLL_SHARE = 0.2
# The pauses after a 429 that names none: the first, the longest, and what even a Retry-After of 0 brings. The longest
# one sends six requests a minute to a server that refuses all, and who waits learns of its end within two looks.
PAUSES = FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, SHORTEST_PAUSE_SECONDS = 5.0, 10.0, 1.0
# Covers rounding, and a window that holds both its ends.
MARGIN_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Rate:
    """A burst and a steady rate.

    :param burst: requests that may leave at once after a pause
    :param interval_seconds: time between two requests in the long run
    """

    burst: int
    interval_seconds: float

    @classmethod
    def within(cls, limit: int, period_seconds: float, burst: int, jitter_seconds: float = JITTER_SECONDS) -> Rate:
        """Return the fastest rate that never exceeds `limit` requests in any window of `period_seconds`.

        The burst is cut so that at least half the limit is left to the steady rate.
        """
        kept = max(1, min(burst, limit // 2))
        return cls(kept, (period_seconds + jitter_seconds + MARGIN_SECONDS) / max(limit - kept, 1))

    def tolerance(self, burst: int | None = None) -> float:
        """Return how long before its theoretical arrival time a request may leave."""
        return ((self.burst if burst is None else burst) - 1) * self.interval_seconds

    @property
    def polls_burst(self) -> int:
        """The part of the burst that polls may use up."""
        return (self.burst + 1) // 2


@dataclass(frozen=True, slots=True)
class Policy:
    """How a budget is kept.

    :param rate: burst and steady rate
    :param poll_share: the part of the rate that polls get even when commands want it all
    :param late_seconds: who wakes up later than this after a slot has missed it
    :param first_pause_seconds: pause after the first 429 without a Retry-After, doubled with each refused probe
    :param longest_pause_seconds: bound of the growth
    :param shortest_pause_seconds: a pause that even a Retry-After of 0 brings
    :param probe_seconds: time after which a probe that brought no answer is given up
    """

    rate: Rate
    poll_share: float = POLL_SHARE
    late_seconds: float = LATE_SECONDS
    first_pause_seconds: float = FIRST_PAUSE_SECONDS
    longest_pause_seconds: float = LONGEST_PAUSE_SECONDS
    shortest_pause_seconds: float = SHORTEST_PAUSE_SECONDS
    probe_seconds: float = 30.0

    @classmethod
    def of(cls, requests_per_minute: int, burst: int, minute_seconds: float = MINUTE_SECONDS) -> Policy:
        """Return the policy for a limit; a shorter minute makes everything else shorter, too."""
        scale = minute_seconds / MINUTE_SECONDS
        rate = Rate.within(requests_per_minute, minute_seconds, burst, JITTER_SECONDS * scale)
        first, longest, shortest = (each * scale for each in PAUSES)
        return cls(rate, POLL_SHARE, LATE_SECONDS * scale, first, longest, shortest, 30 * scale)

    @property
    def poll_interval_seconds(self) -> float:
        """Time after which a poll goes before commands."""
        return self.rate.interval_seconds / self.poll_share

    @property
    def drained_seconds(self) -> float:
        """How far ahead the theoretical arrival time of an empty bucket lies."""
        return self.rate.tolerance() + self.rate.interval_seconds


# No answer makes a caller wait less than this, so that nobody asks again and again without a pause.
SHORTEST_WAIT_SECONDS = 0.001
# A clock that is this many times the lateness ahead was set; less may be a slow store or a busy host.
JUMPS = 3


class RequestClass(StrEnum):
    """Who asks: a user's command, a wait that polls and can poll later, or a task that wants to be let in."""

    COMMAND = "command"
    POLL = "poll"
    # Sends nothing itself, and spends nothing of what the other two share.
    ADMISSION = "admission"


class Reason(StrEnum):
    """Why a request has to wait, in words for a log line."""

    NONE = "nothing"
    LIMIT = "the rate limit"
    COMMANDS = "commands go first"
    PAUSE = "the server answered 429"
    PROBE = "a first request after a 429"


@dataclass(frozen=True, slots=True)
class GcraState:
    """What is kept for one API key; all times are on the clock of the store that keeps it.

    :param seen: when it was last used
    :param arrival: theoretical arrival time of requests
    :param admitted: theoretical arrival time of admissions
    :param delay: seconds by which polls that went first have pushed back the slots of commands, in all
    :param pushed_at: when the last of them did
    :param polled_at: the polls' last slot
    :param cool_until: end of the pause
    :param probe_until: until when the answer of a probe is waited for
    :param strikes: 429s in a row, probes after a pause each counting once
    :param epoch: changes when all slots that are held become void
    """

    seen: float
    arrival: float
    admitted: float
    delay: float
    pushed_at: float
    polled_at: float
    cool_until: float
    probe_until: float
    strikes: float
    epoch: float

    @classmethod
    def empty(cls, policy: Policy, now: float) -> GcraState:
        """Return a bucket with nothing in it: nobody knows what was sent before it was begun."""
        polled_at = now - policy.poll_interval_seconds
        return cls(now, now + policy.drained_seconds, now, 0.0, now, polled_at, now, now, 0.0, now)

    @classmethod
    def full(cls, policy: Policy, now: float) -> GcraState:
        """Return a bucket from which a whole burst may leave."""
        return replace(cls.empty(policy, now), arrival=now)


@dataclass(frozen=True, slots=True)
class Reservation:
    """The budget's answer to a wish to send: send now, wait and ask again with this answer, or give up.

    :param wait_seconds: time until the slot, or until it makes sense to ask again; 0 when the request may leave now
    :param granted: False when the slot lies beyond the time the caller can wait, and was not taken
    :param due: when the slot is, on the budget's clock
    :param held: whether the slot is kept for the caller; else there is only a time to ask again
    :param probe: whether the request is the first after a 429, and others wait for its outcome
    :param reason: why to wait
    :param at: the budget's clock when it answered
    :param delay: the account's delay then
    :param epoch: the account's epoch then
    """

    wait_seconds: float
    granted: bool
    due: float
    held: bool = True
    probe: bool = False
    reason: Reason = Reason.NONE
    at: float = 0.0
    delay: float = 0.0
    epoch: float = 0.0

    @property
    def may_send(self) -> bool:
        """Whether the request may leave now."""
        return self.granted and self.wait_seconds <= 0

    def counts(self, wish: ReservationRequest) -> bool:
        """Whether this answer sends a request to the server."""
        return self.may_send and wish.request_class is not RequestClass.ADMISSION


@dataclass(frozen=True, slots=True)
class ReservationRequest:
    """A wish to send.

    :param request_class: who wants it
    :param within_seconds: how long the caller can wait
    :param earlier: the last answer to this wish
    :param drain: whether requests may have left that the account doesn't know of, so that the burst is used up
    :param expected: what the account's clock should show by the caller's own, which finds a clock that jumped ahead
    """

    request_class: RequestClass
    within_seconds: float = math.inf
    earlier: Reservation | None = None
    drain: bool = False
    expected: float | None = None


def take(account: GcraState, policy: Policy, wish: ReservationRequest, now: float) -> tuple[GcraState, Reservation]:
    """Answer a wish: the slot that is held already, or else the next one if it lies within the caller's time."""
    account = _on_time(account, policy, now, wish.expected)
    if wish.drain:
        account = replace(account, arrival=max(account.arrival, account.seen + policy.drained_seconds))
    due = _held_slot(account, policy, wish)
    if due is None:
        return _next_slot(account, policy, wish)
    return account, _answer(account, wish, due, Reason.LIMIT)


def cool(account: GcraState, policy: Policy, seconds: float | None, epoch: float, now: float) -> GcraState:
    """Begin a pause after a 429, or lengthen the present one; the longest of several counts.

    :param seconds: what the server asked for; without it, and when a probe was refused, the pause grows
    :param epoch: the epoch of the request's slot; one from before the present pause is no new strike
    """
    account = _on_time(account, policy, now)
    now, asked = account.seen, seconds or 0.0
    if account.strikes and (now < account.cool_until or epoch < account.epoch):
        return replace(account, cool_until=max(account.cool_until, now + asked))
    strikes = account.strikes + 1
    doublings = strikes - (1 if seconds is None else 2)
    grown = policy.first_pause_seconds * 2.0 ** min(doublings, 16) if doublings >= 0 else 0.0
    pause = max(asked, policy.shortest_pause_seconds, min(grown, policy.longest_pause_seconds))
    return replace(_voided(account, policy), cool_until=now + pause, probe_until=now, strikes=strikes)


def settle(account: GcraState, epoch: float) -> GcraState:
    """End the time of probing, because the server took the probe of this epoch."""
    return account if epoch != account.epoch else replace(account, strikes=0.0, probe_until=account.seen)


def _on_time(account: GcraState, policy: Policy, now: float, expected: float | None = None) -> GcraState:
    """Return the account as of now, moved along when the clock jumped: no time has passed where none can be proved."""
    if account.seen - policy.late_seconds <= now < account.seen:
        return account
    jumped_ahead = expected is not None and max(expected, account.seen) < now - JUMPS * policy.late_seconds
    if now >= account.seen and not jumped_ahead:
        return replace(account, seen=now)
    by = now - (expected if expected is not None and now >= account.seen else account.seen)
    moved = replace(
        account,
        seen=now,
        arrival=account.arrival + by,
        admitted=account.admitted + by,
        pushed_at=account.pushed_at + by,
        polled_at=account.polled_at + by,
        cool_until=account.cool_until + by,
        probe_until=account.probe_until + by,
    )
    return _voided(moved, policy)


def _voided(account: GcraState, policy: Policy) -> GcraState:
    """Return the account without the slots that are held and not used yet."""
    arrival = min(account.arrival, account.seen + policy.drained_seconds)
    # An epoch is a time on the store's clock, so it differs from those of every other account.
    epoch = max(account.seen, account.epoch + 1e-6)
    return replace(account, arrival=arrival, admitted=min(account.admitted, arrival), epoch=epoch)


def _held_slot(account: GcraState, policy: Policy, wish: ReservationRequest) -> float | None:
    """Return when the slot is that the caller holds, or None when there is none, or it is void or missed."""
    earlier = wish.earlier
    if earlier is None or not (earlier.held and earlier.granted) or earlier.epoch != account.epoch:
        return None
    due, interval = earlier.due, policy.rate.interval_seconds
    pushed = account.delay - earlier.delay if wish.request_class is RequestClass.COMMAND else 0.0
    if pushed > 0:
        due += pushed
        # The last poll that went first came when this slot was due already, and did not push it.
        due -= interval if account.pushed_at >= due - interval else 0.0
    return due if account.seen - due <= policy.late_seconds else None


def _next_slot(account: GcraState, policy: Policy, wish: ReservationRequest) -> tuple[GcraState, Reservation]:
    now, probing = account.seen, account.strikes > 0
    if now < account.cool_until:
        return account, _answer(account, wish, account.cool_until, Reason.PAUSE, held=False)
    if probing and now < account.probe_until:
        again = min(account.probe_until, now + policy.shortest_pause_seconds)
        return account, _answer(account, wish, again, Reason.PROBE, held=False)
    due, after = _place(account, policy, wish.request_class)
    probe = probing and wish.request_class is not RequestClass.ADMISSION
    if after is None or (probe and due > now):
        return account, _answer(account, wish, due, Reason.COMMANDS if after is None else Reason.LIMIT, held=False)
    if due - now > wish.within_seconds:
        return account, _answer(account, wish, due, Reason.LIMIT)
    if probe:
        after = replace(after, probe_until=now + policy.probe_seconds)
    return after, _answer(after, wish, due, Reason.LIMIT, probe=probe)


def _place(account: GcraState, policy: Policy, request_class: RequestClass) -> tuple[float, GcraState | None]:
    """Return when the next slot is and the account once it is taken; or when to ask again, and None."""
    rate, now = policy.rate, account.seen
    if request_class is RequestClass.ADMISSION:
        return max(now, account.admitted - rate.tolerance()), _let_in(account, policy)
    due = max(now, account.arrival - rate.tolerance())
    taken = replace(account, arrival=max(now, account.arrival) + rate.interval_seconds)
    return (due, taken) if request_class is RequestClass.COMMAND else _place_poll(account, policy, due, taken)


def _place_poll(account: GcraState, policy: Policy, due: float, taken: GcraState) -> tuple[float, GcraState | None]:
    interval, now = policy.rate.interval_seconds, account.seen
    free = account.arrival - policy.rate.tolerance(policy.rate.polls_burst)
    turn = account.polled_at + policy.poll_interval_seconds
    if min(free, turn) > now:
        return min(free, turn), None
    if due > now:
        # The poll takes the next slot that somebody holds, and all who hold one move up by one.
        due -= math.floor((due - now) / interval) * interval
        taken = replace(taken, delay=account.delay + interval, pushed_at=now)
    # Who comes a little late for the polls' turn does not put off the next one.
    polled_at = due if free <= now else max(turn, due - interval)
    return due, _let_in(replace(taken, polled_at=polled_at), policy)


def _let_in(account: GcraState, policy: Policy) -> GcraState:
    return replace(account, admitted=max(account.seen, account.admitted) + policy.rate.interval_seconds)


def _answer(
    account: GcraState, wish: ReservationRequest, due: float, reason: Reason, *, held: bool = True, probe: bool = False
) -> Reservation:
    wait = due - account.seen
    wait = 0.0 if wait <= 0 else max(wait, SHORTEST_WAIT_SECONDS)
    return Reservation(
        wait_seconds=wait,
        granted=wait <= wish.within_seconds,
        due=due,
        held=held,
        probe=probe,
        reason=reason if wait > 0 else Reason.NONE,
        at=account.seen,
        delay=account.delay,
        epoch=account.epoch,
    )
