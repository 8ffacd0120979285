"""A store in the memory of one process: what a budget of its own stands on, and the last resort when others fail."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from techflow_provider.state.gcra import GcraState, Policy, Reservation, ReservationRequest, cool, settle, take
from techflow_provider.state.store import HISTORY_SECONDS, BudgetState, Change, Entry, Grant

T = TypeVar("T")


class _ProcessLock:
    """A lock among the threads of one process, which a fork never leaves locked in the child."""

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def _lock(self) -> threading.Lock:
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def __enter__(self) -> None:
        self._lock().acquire()

    def __exit__(self, *error: object) -> None:
        self._lock().release()


@dataclass(frozen=True, slots=True)
class _Record:
    value: str
    written: float
    expires: float


class MemoryStore:
    """What the threads of one process share; a forked child goes on with a copy.

    :param clock: monotonic seconds
    :param full: whether a burst may leave at once at the beginning
    """

    location = "memory"

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, full: bool = False) -> None:
        self._clock = clock
        self._full = full
        self._lock = _ProcessLock()
        self._accounts: dict[str, GcraState] = {}
        self._grants: dict[str, deque[Grant]] = {}
        self._records: dict[tuple[str, str], _Record] = {}
        self._bells: dict[str, int] = {}

    def take(self, key: str, policy: Policy, wish: ReservationRequest) -> Reservation:
        """Answer a wish to send."""
        with self._lock:
            now = self._clock()
            self._accounts[key], reservation = take(self._account(key, policy, now), policy, wish, now)
            if reservation.counts(wish):
                self._log(key, Grant(reservation.at, wish.request_class))
            return reservation

    def _account(self, key: str, policy: Policy, now: float) -> GcraState:
        begun = GcraState.full(policy, now) if self._full else GcraState.empty(policy, now)
        return self._accounts.get(key, begun)

    def _log(self, key: str, grant: Grant) -> None:
        grants = self._grants.setdefault(key, deque())
        grants.append(grant)
        while grants[0].at < grant.at - HISTORY_SECONDS:
            grants.popleft()

    def cool(self, key: str, policy: Policy, seconds: float | None, epoch: float) -> float:
        """Begin or lengthen a pause, and return the seconds that are left of it."""
        with self._lock:
            now = self._clock()
            account = self._accounts[key] = cool(self._account(key, policy, now), policy, seconds, epoch, now)
            return account.cool_until - account.seen

    def settle(self, key: str, epoch: float) -> None:
        """End the time of probing."""
        with self._lock:
            if key in self._accounts:
                self._accounts[key] = settle(self._accounts[key], epoch)

    def read_budget(self, key: str) -> BudgetState:
        """Return what is known of a key's budget."""
        with self._lock:
            now = self._clock()
            recent = (grant for grant in self._grants.get(key, ()) if grant.at >= now - HISTORY_SECONDS)
            return BudgetState(now, self._accounts.get(key), tuple(recent))

    def get(self, namespace: str, name: str) -> Entry | None:
        """Return a record."""
        with self._lock:
            now = self._clock()
            record = self._live(namespace, name, now)
            return None if record is None else Entry(name, record.value, now - record.written)

    def _live(self, namespace: str, name: str, now: float) -> _Record | None:
        record = self._records.get((namespace, name))
        return None if record is None or record.expires <= now else record

    def put(self, namespace: str, name: str, value: str, ttl_seconds: float) -> None:
        """Write a record."""
        with self._lock:
            self._write(namespace, name, value, ttl_seconds)

    def _write(self, namespace: str, name: str, value: str | None, ttl_seconds: float) -> None:
        now = self._clock()
        self._records = {place: record for place, record in self._records.items() if record.expires > now}
        if value is None:
            self._records.pop((namespace, name), None)
        else:
            self._records[namespace, name] = _Record(value, now, now + ttl_seconds)

    def swap(
        self, namespace: str, name: str, expected: str | None, value: str | None, ttl_seconds: float
    ) -> str | None:
        """Write a record where the present one is as expected, and return the one found."""
        with self._lock:
            record = self._live(namespace, name, self._clock())
            found = None if record is None else record.value
            if found == expected:
                self._write(namespace, name, value, ttl_seconds)
            return found

    def update(self, namespace: str, name: str, change: Change[T]) -> T:
        """Read an entry, decide and write it in one atomic step, and return the change's result."""
        with self._lock:
            now = self._clock()
            record = self._live(namespace, name, now)
            write, result = change(None if record is None else Entry(name, record.value, now - record.written), now)
            if write is not None:
                self._write(namespace, name, write.value, write.ttl_seconds)
            return result

    def drop(self, namespace: str, name: str) -> None:
        """Delete a record."""
        with self._lock:
            self._records.pop((namespace, name), None)

    def entries(self, namespace: str, prefix: str = "") -> list[Entry]:
        """Return the records whose names begin with a prefix, by name."""
        with self._lock:
            now = self._clock()
            return [
                Entry(name, record.value, now - record.written)
                for (where, name), record in sorted(self._records.items(), key=lambda item: item[0])
                if where == namespace and name.startswith(prefix) and record.expires > now
            ]

    def ring(self, namespace: str) -> int:
        """Count a bell one up."""
        with self._lock:
            self._bells[namespace] = self._bells.get(namespace, 0) + 1
            return self._bells[namespace]

    def bell(self, namespace: str) -> int:
        """Return the count of a bell."""
        return self._bells.get(namespace, 0)

    def close(self) -> None:
        """Keep everything: there is no connection."""
