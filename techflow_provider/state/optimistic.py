"""What the stores that are reached over a network share: the optimistic update, and idle connections that are closed.

An update assumes that the entry is as it was last seen here, or that there is none, and sends one compare-and-set. So
it takes one round trip unless another process has written the entry since; the reply carries the present entry then.
Processes that write the same entry at once queue for a lock, where the store has one.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from techflow_provider.state.store import Change, Entry, StoreError, Update, read_only

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

    def entry(self, name: str, now: float) -> Entry | None:
        """Return what a change is given."""
        return Entry(name, self.value, max(0.0, now - self.written)) if self.expires > now else None


@dataclass(frozen=True, slots=True)
class Operation:
    """What a store is asked: what it holds under a name; and to replace that if it is still what was found.

    :param namespace: the name's namespace
    :param name: the name
    :param found: what was found, None for nothing
    :param following: what to write, None to delete what was found
    :param now: the clock that the decision is based on, near which the store's must be; None only reads
    """

    namespace: str
    name: str
    found: Row | None = None
    following: Row | None = None
    now: float | None = None


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


@dataclass(slots=True)
class Seen:
    """What a process remembers of an entry.

    :param row: what it found or wrote last
    :param is_new: whether it has found or written nothing yet
    :param is_shared: whether another process has written it between two operations of this one, and most likely will
        again
    :param contended_until: until when others most likely write it at the same time, by this process's clock
    """

    row: Row | None = None
    is_new: bool = True
    is_shared: bool = False
    contended_until: float = 0.0

    def compare(self, row: Row | None) -> None:
        """Note whether another process has written what the store holds."""
        self.is_shared = not self.is_new and (self.row and self.row.version) != (row and row.version)


class OptimisticStore(ABC):
    """A store that is reached over a network.

    :param location: where it is, safe to log
    :param clock: seconds to use in place of the store's clock, for tests
    """

    def __init__(self, location: str, clock: Callable[[], float] | None = None) -> None:
        self.location = location
        self._clock = clock
        # The store's clock when a request arrives there, minus this process's when it is sent.
        self._ahead: float | None = None
        self._seen: dict[Key, Seen] = {}
        # Those of the processes that this one was forked from are kept: a child neither uses nor closes them.
        self._clients: dict[int, Any] = {}
        self._used_at = 0.0
        self._timer: threading.Timer | None = None

    @abstractmethod
    def exchange(self, operations: Sequence[Operation]) -> list[Reply]:
        """Carry out operations, each atomically, in one round trip if the store can.

        :raises LostReplyError: it is unknown whether the store carried them out
        """

    @abstractmethod
    def connect(self) -> Any:
        """Return a client, which connects when it is used."""

    def client(self) -> Any:
        """Return the client of this process, whose idle connections are closed some time after this."""
        self._used_at = time.monotonic()
        if self._timer is None or not self._timer.is_alive():
            self._release_after(IDLE_SECONDS)
        if os.getpid() not in self._clients:
            self._clients[os.getpid()] = self.connect()
        return self._clients[os.getpid()]

    def close(self) -> None:
        """Close the connections of this process."""
        client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()

    def release(self) -> None:
        """Close the connections that are idle."""
        self.close()

    def warnings(self) -> list[str]:
        """Return what about the server endangers what it holds. May raise `StoreError`."""
        return []

    def compete(self, update: PendingUpdate) -> None:  # noqa: ARG002 - for stores that have locks
        """Attempt an update while others that want its entry wait; a store without locks waits for a random moment."""
        time.sleep(random.uniform(0, LONGEST_JITTER_SECONDS))  # noqa: S311 - jitter

    def make_row(self, value: str, written: float, expires: float) -> Row:
        """Return a row to write, with a version of its own."""
        return Row(value, secrets.token_hex(8), written, expires)

    def update(self, namespace: str, name: str, change: Change[T]) -> T:
        """Read an entry, decide and write it in one atomic step, and return the change's result."""
        return cast("T", self.update_many([(namespace, name, change)])[0])

    def update_many(self, updates: Sequence[Update]) -> list[Any]:
        """Update several entries, each in one atomic step, and return the results."""
        all_updates = [PendingUpdate(self, *each) for each in updates]
        lost_replies = 0
        while pending := [update for update in all_updates if not update.is_done]:
            try:
                self._attempt(pending)
            except LostReplyError:
                lost_replies += 1
                if lost_replies == MAX_LOST_REPLIES:
                    raise
                for update in pending:
                    update.forget()
        return [update.result for update in all_updates]

    def _attempt(self, updates: Sequence[PendingUpdate]) -> None:
        for update in updates:
            if update.writes and update.seen.contended_until > time.monotonic():
                self.compete(update)
        asked = ((update, update.next()) for update in updates if not update.is_done)
        sent = [(update, operation) for update, operation in asked if operation is not None]
        replies = self.exchange([operation for _, operation in sent]) if sent else []
        for (update, _), reply in zip(sent, replies, strict=True):
            update.receive(reply)

    def seen(self, key: Key) -> Seen:
        """Return what this process remembers of an entry."""
        if len(self._seen) >= MAX_ROWS_SEEN:
            self._seen.clear()
        return self._seen.setdefault(key, Seen())

    @property
    def knows_clock(self) -> bool:
        """Whether `now` is the store's clock."""
        return self._ahead is not None

    def now(self) -> float:
        """Return the store's clock as it will be when a request that is sent now arrives there."""
        return time.monotonic() + (self._ahead or 0.0) if self._clock is None else self._clock()

    def set_clock(self, now: float, sent_at: float) -> None:
        """Learn the store's clock from its reply to a request."""
        self._ahead = now - sent_at

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


class PendingUpdate:
    """One update: remembers what it has tried to write, so that a lost reply doesn't lead to a second write."""

    def __init__(self, store: OptimisticStore, namespace: str, name: str, change: Change[Any]) -> None:
        self.key: tuple[str, str] = (namespace, name)
        self.is_done: bool = False
        self.result: Any = None
        self._store = store
        self._change = change
        self.seen: Seen = store.seen(self.key)
        self.writes: bool = change is not read_only
        self._may_guess = self.writes and store.knows_clock and not self.seen.is_shared
        self._is_known = False
        self._row = self.seen.row
        self._following: Row | None = None
        self._results: dict[str, Any] = {}
        self._conflicts = 0

    def next(self) -> Operation | None:
        """Decide on what the store holds or most likely holds, and return what to ask it; None: nothing."""
        if not self._is_known and not self._may_guess:
            return Operation(*self.key)
        now = self._store.now()
        entry = None if self._row is None else self._row.entry(self.key[1], now)
        write, self.result = self._change(entry, now)
        if write is None or (write.value is None and self._row is None):
            if not self._is_known:
                return Operation(*self.key)
            self._finish(self._row)
            return None
        self._following = None
        if write.value is not None:
            self._following = self._store.make_row(write.value, now, now + write.ttl_seconds)
            self._results[self._following.version] = self.result
        return Operation(*self.key, self._row, self._following, now)

    def receive(self, reply: Reply) -> None:
        """Heed what the store has replied."""
        if reply.done:
            self._finish(self._following)
            return
        self.seen.compare(reply.row)
        if reply.row is not None and reply.row.version in self._results:
            # An earlier attempt, whose reply was lost, wrote it.
            self.result = self._results[reply.row.version]
            self._finish(reply.row)
        elif self._is_known:
            self.seen.contended_until = time.monotonic() + CONTENDED_SECONDS
            self._conflicts += 1
            self.forget()
        else:
            self._row, self._is_known, self._may_guess = reply.row, True, False

    def forget(self) -> None:
        """Read what the store holds, and decide anew."""
        self._is_known = self._may_guess = False
        if self._conflicts >= MAX_UPDATE_ATTEMPTS:
            message = f"{self.key[1]} changed during each of {MAX_UPDATE_ATTEMPTS} attempts to update it"
            raise StoreError(f"{self._store.location}: {message}")

    def _finish(self, row: Row | None) -> None:
        self.seen.row, self.seen.is_new, self.is_done = row, False, True
