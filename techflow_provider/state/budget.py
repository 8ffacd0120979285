"""The rate budget's interface, and the budget of one process.

A client takes a slot from its budget before each request. `LocalBudget` is known to the process that made it and to
no other; a budget that processes share implements the same two-step interface.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from techflow_provider.state.bucket import Rate, next_slot

DEFAULT_REQUESTS_PER_MINUTE = 100
DEFAULT_BURST = 6
MINUTE_SECONDS = 60.0
# Who wakes up later than this after a slot has missed it: the request would arrive in a window it was not counted in.
LATE_SECONDS = 1.0


class RequestClass(StrEnum):
    """Who wants a request: a user's command, or a wait that polls and can poll later."""

    COMMAND = "command"
    POLL = "poll"


@dataclass(frozen=True, slots=True)
class Reservation:
    """The budget's answer to a wish to send.

    :param wait_seconds: time until the slot
    :param granted: False when the slot lies beyond the time the caller can wait, and was not taken
    :param due: when the slot is, on the budget's clock
    """

    wait_seconds: float
    granted: bool
    due: float


class Budget(Protocol):
    """What a client asks before it sends."""

    def reserve(self, request_class: RequestClass, within_seconds: float) -> Reservation:
        """Take the next slot if it is no further away than `within_seconds`; never waits."""

    def confirm(self, reservation: Reservation) -> bool:
        """Whether a slot that was waited for may be used now; False when it is stale and a new one is needed."""

    def cool_down(self, seconds: float) -> None:
        """Let nobody send for some seconds, because the server said 429."""


class LocalBudget:
    """A budget for the threads and tasks of one process.

    :param requests_per_minute: the limit, in any window of 60 s (Rate Limiting)
    :param burst: requests that may leave at once after a pause
    :param clock: monotonic seconds
    """

    def __init__(
        self,
        requests_per_minute: int = DEFAULT_REQUESTS_PER_MINUTE,
        burst: int = DEFAULT_BURST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = Rate.within(requests_per_minute, MINUTE_SECONDS, burst)
        self._clock = clock
        self._lock = threading.Lock()
        self._arrival = float("-inf")
        self._cool_until = float("-inf")

    def reserve(self, request_class: RequestClass, within_seconds: float) -> Reservation:
        """Take the next slot if it is no further away than `within_seconds`; a poll leaves half the burst alone."""
        burst = self._rate.burst if request_class is RequestClass.COMMAND else (self._rate.burst + 1) // 2
        with self._lock:
            now = self._clock()
            slot = next_slot(self._rate, self._arrival, max(now, self._cool_until), burst)
            granted = slot.due - now <= within_seconds
            if granted:
                self._arrival = slot.arrival
        return Reservation(slot.due - now, granted, slot.due)

    def confirm(self, reservation: Reservation) -> bool:
        """Whether the slot is neither missed nor overtaken by a cool-down."""
        now = self._clock()
        return now - reservation.due <= LATE_SECONDS and now >= self._cool_until

    def cool_down(self, seconds: float) -> None:
        """Let nothing be sent for some seconds; the longest of several counts."""
        with self._lock:
            self._cool_until = max(self._cool_until, self._clock() + seconds)
