"""A store in the memory of one process: for a budget of its own, and as the last resort when other stores fail."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from techflow_provider.state.store import Change, Entry

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


class MemoryStore:
    """What the threads of one process share; a forked child continues with a copy.

    :param clock: monotonic seconds
    """

    location = "memory"

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = _ProcessLock()
        self._kept: dict[str, dict[str, _Kept]] = {}
        # No entry expires before this time.
        self._next_expiry = math.inf

    def update(self, namespace: str, name: str, change: Change[T]) -> T:
        """Read an entry, decide and write it in one atomic step, and return the change's result."""
        with self._lock:
            now = self._clock()
            self._prune(now)
            kept = self._kept.get(namespace, {}).get(name)
            write, result = change(None if kept is None else _entry(name, kept, now), now)
            if write is not None and write.value is not None:
                expires = now + write.ttl_seconds
                self._kept.setdefault(namespace, {})[name] = _Kept(write.value, now, expires)
                self._next_expiry = min(self._next_expiry, expires)
            elif write is not None:
                self._kept.get(namespace, {}).pop(name, None)
            return result

    def _prune(self, now: float) -> None:
        if now < self._next_expiry:
            return
        for namespace, entries in list(self._kept.items()):
            self._kept[namespace] = {name: kept for name, kept in entries.items() if kept.expires > now}
        self._next_expiry = min(
            (kept.expires for entries in self._kept.values() for kept in entries.values()), default=math.inf
        )

    def entries(self, namespace: str, prefix: str = "") -> list[Entry]:
        """Return the entries whose names begin with a prefix, by name."""
        with self._lock:
            now = self._clock()
            self._prune(now)
            found = sorted(self._kept.get(namespace, {}).items())
            return [_entry(name, kept, now) for name, kept in found if name.startswith(prefix)]

    def close(self) -> None:
        """Keep everything: there is no connection."""


def _entry(name: str, kept: _Kept, now: float) -> Entry:
    return Entry(name, kept.value, now - kept.written)
