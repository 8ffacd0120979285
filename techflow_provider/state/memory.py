"""A store in the memory of one process: for a budget of its own, and as the last resort when other stores fail."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from techflow_provider.state.store import Change, Entry, Update

T = TypeVar("T")
# A text, when it was written, and when it expires.
Kept = tuple[str, float, float]


class MemoryStore:
    """What the threads of one process share; a forked child continues with a copy.

    :param clock: monotonic seconds
    """

    location = "memory"

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # One for each process, so that a fork never leaves the child's locked.
        self._locks: dict[int, threading.Lock] = {}
        self._kept: dict[str, dict[str, Kept]] = {}

    def update(self, namespace: str, name: str, change: Change[T]) -> T:
        """Read an entry, decide and write it in one atomic step, and return the change's result."""
        with self._lock:
            now = self._clock()
            kept = self._live(namespace, now)
            write, result = change(self._entry(kept, name, now) if name in kept else None, now)
            if write is not None and write.value is not None:
                kept[name] = (write.value, now, now + write.ttl_seconds)
            elif write is not None:
                kept.pop(name, None)
            return result

    def update_many(self, updates: Sequence[Update]) -> list[Any]:
        """Update several entries, each in one atomic step, and return the results."""
        return [self.update(*each) for each in updates]

    def entries(self, namespace: str, prefix: str = "") -> list[Entry]:
        """Return the entries whose names begin with a prefix, by name."""
        with self._lock:
            now = self._clock()
            kept = self._live(namespace, now)
            return [self._entry(kept, name, now) for name in sorted(kept) if name.startswith(prefix)]

    @property
    def _lock(self) -> threading.Lock:
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def _live(self, namespace: str, now: float) -> dict[str, Kept]:
        kept = self._kept.get(namespace, {})
        self._kept[namespace] = {name: each for name, each in kept.items() if each[2] > now}
        return self._kept[namespace]

    def _entry(self, kept: dict[str, Kept], name: str, now: float) -> Entry:
        value, written, _ = kept[name]
        return Entry(name, value, now - written)

    def close(self) -> None:
        """Keep everything: there is no connection."""
