"""What processes record for each other beside the budget: webhook deliveries, event cursors, wake-ups.

Every method may raise `StoreError`: unlike a budget, records have no fallback, since a record that other processes
can't read is useless to them.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from dataclasses import dataclass, field
from typing import TypeVar

from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.store import Change, Entry, Store, Write

T = TypeVar("T")

DELIVERY_TTL_SECONDS = 24 * 3600.0
CURSOR_TTL_SECONDS = 30 * 24 * 3600.0
# The registrations of those that wait, below a key (see `techflow_provider.polling.shared`).
WAITS = "waits"
# The namespace of all wake-up counters, by key: a process reads them together.
WAKEUPS = "wakeups"
WAKEUPS_SECONDS = 1.0
WAKEUPS_TTL_SECONDS = 7 * 24 * 3600.0


class Records:
    """The records of one budget's users.

    :param store: where they are kept
    :param key: the budget's name (see `budget_key`)
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key
        self._deliveries = f"{key}/deliveries"
        # The name that version 0.1.0 gave to cursors.
        self._cursors = f"{key}/lookouts"

    def see_delivery(self, delivery_id: str, ttl_seconds: float = DELIVERY_TTL_SECONDS) -> bool:
        """Remember a webhook's delivery; False when it was seen before."""

        def see(entry: Entry | None, _: float) -> tuple[Write | None, bool]:
            return (Write("seen", ttl_seconds), True) if entry is None else (None, False)

        return self._store.update(self._deliveries, delivery_id, see)

    def delivery_ages(self) -> list[float]:
        """Return the ages of the deliveries that are remembered, in seconds."""
        return [entry.age_seconds for entry in self._store.entries(self._deliveries)]

    def update_cursor(self, trigger: str, change: Change[T]) -> T:
        """Change the cursor of an event trigger, and return the change's result."""
        return self._store.update(self._cursors, trigger, change)

    def are_awaited(self) -> bool:
        """Whether a process has registered that it waits for something in the history."""
        return bool(self._store.entries(f"{self._key}/{WAITS}"))

    def notify(self) -> int:
        """Let those that wait know that there may be something new, and return the wake-up counter."""

        def count(entry: Entry | None, _: float) -> tuple[Write, int]:
            counter = _counter(entry) + 1
            return Write(str(counter), WAKEUPS_TTL_SECONDS), counter

        counter = self._store.update(WAKEUPS, self._key, count)
        _wakeups_of(self._store).counters[self._key] = counter
        return counter

    def wakeups(self) -> int:
        """Return the wake-up counter as it was at most a second ago; a change says that there may be something new."""
        return _wakeups_of(self._store).read(self._store).get(self._key, 0)


@dataclass
class _Wakeups:
    """The wake-up counters of all keys in one store, which a process reads at most once a second."""

    counters: dict[str, int] = field(default_factory=dict)
    read_at: float = -math.inf
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, store: Store) -> dict[str, int]:
        # A caller that finds another one reading makes do with what that one has read before.
        if time.monotonic() >= self.read_at + WAKEUPS_SECONDS and self.lock.acquire(blocking=False):
            try:
                self.read_at = time.monotonic()
                self.counters = {entry.name: _counter(entry) for entry in store.entries(WAKEUPS)}
            finally:
                self.lock.release()
        return self.counters


def _wakeups_of(store: Store) -> _Wakeups:
    # Stores that sign with different keys reach one place.
    return _wakeups_in(store if isinstance(store, MemoryStore) else store.location)


@functools.lru_cache(maxsize=16)
def _wakeups_in(_: Store | str) -> _Wakeups:
    return _Wakeups()


def _counter(entry: Entry | None) -> int:
    return int(entry.value) if entry is not None and entry.value.isdecimal() else 0
