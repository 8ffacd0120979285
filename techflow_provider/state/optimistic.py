"""What the stores that are reached over a network share: the optimistic update, and idle connections that are closed.

An update assumes that the entry is as it was last seen here, or that there is none, and sends one compare-and-set. So
it takes one round trip unless another process has written the entry since; the reply carries the present entry then.
Processes that write the same entry at once queue for a lock, where the store has one.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, cast

from techflow_provider.state.store import Change, Entry, StoreError, Write, read_only

T = TypeVar("T")

# Each attempt of an update fails only where another one succeeded meanwhile.
MAX_UPDATE_ATTEMPTS = 100
MAX_LOST_REPLIES = 3
LONGEST_JITTER_SECONDS = 0.02
# How far the clock that a change is given may be from the store's: less than a budget allows for.
CLOCK_TOLERANCE_SECONDS = 0.25
# For so long after a conflict, this process takes the lock before it reads the entry.
CONTENDED_SECONDS = 1.0
# A server can keep far fewer connections than Airflow has processes.
IDLE_SECONDS = 10.0
MAX_ROWS_SEEN = 1000

Key = tuple[str, str]


class UnreachableError(StoreError):
    """The server can't be reached at present, as while it restarts."""


class LostReplyError(UnreachableError):
    """The connection broke during a write, so it is unknown whether the store carried it out."""


@dataclass(frozen=True, slots=True)
class Row:
    """An entry as a store holds it; it may have expired.

    :param value: the text
    :param version: differs from those of all other rows that were ever written under the name
    :param written: when it was written, by the store's clock
    :param expires: when it expires
    """

    value: str
    version: str
    written: float
    expires: float

    def to_dict(self) -> dict[str, object]:
        """Return the fields by their names."""
        return {"value": self.value, "version": self.version, "written": self.written, "expires": self.expires}

    def entry(self, name: str, now: float) -> Entry | None:
        """Return what a change is given."""
        return Entry(name, self.value, max(0.0, now - self.written)) if self.expires > now else None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a store replies.

    :param row: what it holds; of no meaning where a write was carried out
    :param now: its clock
    :param done: whether a write was carried out
    """

    row: Row | None
    now: float
    done: bool = False


class Session(Protocol):
    """Reads and writes entries of a store. Every method may raise `StoreError`."""

    def fetch(self, namespace: str, name: str) -> Reply:
        """Return what the store holds under a name."""

    def swap(self, namespace: str, name: str, found: Row | None, following: Row | None, now: float) -> Reply:
        """Write a row if the store still holds what was found and its clock is near `now`; else return what it holds.

        :param found: what was found, None for nothing
        :param following: what to write, None to delete what was found
        :param now: the clock that the decision is based on
        :raises LostReplyError: it is unknown whether the store carried it out
        """


class OptimisticStore(ABC):
    """A store that is reached over a network. A subclass calls `touch` whenever it uses a connection.

    :param location: where it is, safe to log
    :param clock: seconds to use in place of the store's clock, for tests
    """

    def __init__(self, location: str, clock: Callable[[], float] | None = None) -> None:
        self.location = location
        self._clock = clock
        # The store's clock when a request arrives there, minus this process's when it is sent.
        self._ahead: float | None = None
        self._rows_seen: dict[Key, Row | None] = {}
        # What others have written between two operations of this process, and most likely will again.
        self._shared: set[Key] = set()
        self._contended_until: dict[Key, float] = {}
        self._used_at = 0.0
        self._timer: threading.Timer | None = None

    @abstractmethod
    def fetch(self, namespace: str, name: str) -> Reply:
        """Return what the store holds under a name (see `Session`)."""

    @abstractmethod
    def swap(self, namespace: str, name: str, found: Row | None, following: Row | None, now: float) -> Reply:
        """Write a row if the store still holds what was found (see `Session`)."""

    @abstractmethod
    def release(self) -> None:
        """Close the connections that are idle."""

    def warnings(self) -> list[str]:
        """Return what about the server endangers what it holds. May raise `StoreError`."""
        return []

    @contextlib.contextmanager
    def locked(self, namespace: str, name: str) -> Iterator[Session]:  # noqa: ARG002 - for stores that have locks
        """Let other processes that want the entry wait; a store without locks waits itself, for a random moment."""
        time.sleep(random.uniform(0, LONGEST_JITTER_SECONDS))  # noqa: S311 - jitter
        yield self

    def make_row(self, value: str, written: float, expires: float) -> Row:
        """Return a row to write, with a version of its own."""
        return Row(value, secrets.token_hex(8), written, expires)

    def update(self, namespace: str, name: str, change: Change[T]) -> T:
        """Read an entry, decide and write it in one atomic step, and return the change's result."""
        key, lost_replies = (namespace, name), 0
        update = _Update(self, key, change)
        may_guess = change is not read_only and self._ahead is not None and key not in self._shared
        is_contended = change is not read_only and self._contended_until.get(key, 0.0) > time.monotonic()
        for _ in range(MAX_UPDATE_ATTEMPTS):
            try:
                with self.locked(*key) if is_contended else contextlib.nullcontext(self) as session:
                    is_done = update.attempt(session, may_guess=may_guess and not is_contended)
            except LostReplyError:
                lost_replies, is_done = lost_replies + 1, False
                if lost_replies == MAX_LOST_REPLIES:
                    raise
            if is_done:
                self._remember(key, update.row)
                return update.result
            is_contended, may_guess = not lost_replies, False
            self._contended_until[key] = time.monotonic() + CONTENDED_SECONDS
        raise StoreError(f"{self.location}: {name} changed during each of {MAX_UPDATE_ATTEMPTS} attempts to update it")

    def last_seen(self, key: Key) -> Row | None:
        """Return what this process found or wrote last under a name."""
        return self._rows_seen.get(key)

    def found(self, key: Key, row: Row | None) -> None:
        """Note whether another process has written an entry since this one did."""
        last = self._rows_seen.get(key, row)
        if (last and last.version) == (row and row.version):
            self._shared.discard(key)
        else:
            self._shared.add(key)

    def _remember(self, key: Key, row: Row | None) -> None:
        for memory in (self._rows_seen, self._contended_until, self._shared):
            if len(memory) >= MAX_ROWS_SEEN:
                memory.clear()
        self._rows_seen[key] = row

    def now(self) -> float:
        """Return the store's clock as it will be when a request that is sent now arrives there."""
        return time.monotonic() + (self._ahead or 0.0) if self._clock is None else self._clock()

    def set_clock(self, now: float, sent_at: float) -> None:
        """Learn the store's clock from its reply to a request."""
        self._ahead = now - sent_at

    def touch(self) -> None:
        """Let idle connections be closed some time after this."""
        self._used_at = time.monotonic()
        if self._timer is None or not self._timer.is_alive():
            self._release_after(IDLE_SECONDS)

    def _release_after(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._release_if_idle)
        self._timer.daemon = True
        # At the interpreter's exit no thread can be started, and none is needed.
        with contextlib.suppress(RuntimeError):
            self._timer.start()

    def _release_if_idle(self) -> None:
        remaining = self._used_at + IDLE_SECONDS - time.monotonic()
        if remaining > 0:
            self._release_after(remaining)
        else:
            self.release()


class _Update(Generic[T]):
    """One update: remembers what it has tried to write, so that a lost reply doesn't lead to a second write."""

    def __init__(self, store: OptimisticStore, key: Key, change: Change[T]) -> None:
        self._store = store
        self._key = key
        self._change = change
        self._now = 0.0
        self._results: dict[str, T] = {}
        self.result = cast("T", None)
        self.row: Row | None = None

    def attempt(self, session: Session, *, may_guess: bool) -> bool:
        """Decide on a guess, if allowed, then on what the store holds; False when another process was faster."""
        row = self._store.last_seen(self._key) if may_guess else self._fetch(session)
        is_known = not may_guess
        while not self._was_written(row):
            write = self._decide(row)
            if write is not None:
                reply = self._swap(session, row, write)
                if reply.done or is_known:
                    return reply.done
                row = reply.row
                self._store.found(self._key, row)
            elif is_known:
                self.row = row
                return True
            else:
                row = self._fetch(session)
            is_known = True
        return True

    def _was_written(self, row: Row | None) -> bool:
        """Whether an earlier attempt, whose reply was lost, wrote what the store holds."""
        if row is None or row.version not in self._results:
            return False
        self.row, self.result = row, self._results[row.version]
        return True

    def _decide(self, row: Row | None) -> Write | None:
        self._now = self._store.now()
        entry = None if row is None else row.entry(self._key[1], self._now)
        write, self.result = self._change(entry, self._now)
        return None if write is None or (write.value is None and row is None) else write

    def _fetch(self, session: Session) -> Row | None:
        sent_at = time.monotonic()
        reply = session.fetch(*self._key)
        self._store.set_clock(reply.now, sent_at)
        self._store.found(self._key, reply.row)
        return reply.row

    def _swap(self, session: Session, row: Row | None, write: Write) -> Reply:
        self.row = None
        if write.value is not None:
            self.row = self._store.make_row(write.value, self._now, self._now + write.ttl_seconds)
            self._results[self.row.version] = self.result
        sent_at = time.monotonic()
        reply = session.swap(*self._key, row, self.row, self._now)
        self._store.set_clock(reply.now, sent_at)
        return reply
