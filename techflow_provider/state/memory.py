"""A store in the memory of one process: for a budget of its own, and as the last resort when other stores fail."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from techflow_provider.state.store import Change, Entry, Update

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
class _Kept:
    value: str
    written: float
    expires: float

    def entry(self, name: str, now: float) -> Entry:
        return Entry(name, self.value, now - self.written)


class MemoryStore:
    """What the threads of one process share; a forked child continues with a copy.

    :param clock: monotonic seconds
    """

    location = "memory"

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = _ProcessLock()
        self._kept: dict[str, dict[str, _Kept]] = {}

    def update(self, namespace: str, name: str, change: Change[T]) -> T:
        """Read an entry, decide and write it in one atomic step, and return the change's result."""
        with self._lock:
            now = self._clock()
            kept = self._kept[namespace] = self._live(namespace, now)
            write, result = change(kept[name].entry(name, now) if name in kept else None, now)
            if write is not None and write.value is not None:
                kept[name] = _Kept(write.value, now, now + write.ttl_seconds)
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
            live = sorted(self._live(namespace, now).items())
            return [kept.entry(name, now) for name, kept in live if name.startswith(prefix)]

    def _live(self, namespace: str, now: float) -> dict[str, _Kept]:
        return {name: kept for name, kept in self._kept.get(namespace, {}).items() if kept.expires > now}

    def close(self) -> None:
        """Keep everything: there is no connection."""
