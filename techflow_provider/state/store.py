"""The interface of a store, which keeps what processes share: accounts of rate budgets, records, and bells.

Every operation is atomic, takes microseconds on the store and never waits for anything but the store itself.
Which store is used is said by a `state_url`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

from techflow_provider.state.gcra import GcraState, Policy, RequestClass, Reservation, ReservationRequest

# Grants are kept for as long as a chart of them looks back.
HISTORY_SECONDS = 600.0
# What a store waits for, in all, before it says that it can't be used.
STORE_TIMEOUT_SECONDS = 1.0

T = TypeVar("T")

EXPECTED_URL = (
    "an absolute path, sqlite:////absolute/path, redis://host:port/number, "
    "rediss://host:port/number or unix:///path/of/socket"
)


class StoreError(Exception):
    """A store can't be used at present, or what is kept in it can't be read; the message says why."""


class StateUrlError(ValueError):
    """A `state_url` names no store. Never shows user information, which may hold a password.

    :param received: what came, without password
    :param expected: what is expected instead
    """

    def __init__(self, received: str, expected: str = EXPECTED_URL) -> None:
        super().__init__(received, expected)
        self.received = received
        self.expected = expected

    def __str__(self) -> str:
        return f"state_url: expected {self.expected}, got {self.received}"


@dataclass(frozen=True, slots=True)
class Grant:
    """A request that was let go.

    :param at: when, on the store's clock
    :param request_class: who sent it
    """

    at: float
    request_class: RequestClass


@dataclass(frozen=True, slots=True)
class BudgetState:
    """What a store knows of one key's budget.

    :param now: the store's clock
    :param account: None when nothing was asked yet
    :param grants: requests let go in the last ten minutes, in no order
    """

    now: float
    account: GcraState | None
    grants: tuple[Grant, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A record as it is kept.

    :param name: its name within its namespace
    :param value: its text
    :param age_seconds: time since it was written, by the store's clock
    """

    name: str
    value: str
    age_seconds: float


@dataclass(frozen=True, slots=True)
class Write:
    """What an update leaves behind.

    :param value: the text to keep; None deletes the entry
    :param ttl_seconds: how long it is kept, from now
    """

    value: str | None
    ttl_seconds: float = 0.0


# Takes the present entry and the store's clock, and returns what to write (None: nothing) and the update's result. It is
# pure, since a store may call it again when another process was faster.
Change = Callable[[Entry | None, float], tuple[Write | None, T]]


class Store(Protocol):
    """What processes share. Every method may raise `StoreError`.

    Records live in spaces, under a name, as text, for a time to live that every write begins anew, and so does
    a reboot of the host that keeps them in a file.
    """

    @property
    def location(self) -> str:
        """Where the store is, fit for a log line."""

    def take(self, key: str, policy: Policy, wish: ReservationRequest) -> Reservation:
        """Answer a wish to send (see `account.take`)."""

    def cool(self, key: str, policy: Policy, seconds: float | None, epoch: float) -> float:
        """Begin or lengthen a pause (see `account.cool`) and return the seconds that are left of it."""

    def settle(self, key: str, epoch: float) -> None:
        """End the time of probing (see `account.settle`)."""

    def read_budget(self, key: str) -> BudgetState:
        """Return what is known of a key's budget, and change nothing."""

    def update(self, namespace: str, name: str, change: Change[T]) -> T:
        """Read an entry, decide and write it in one atomic step, and return the change's result."""

    def get(self, namespace: str, name: str) -> Entry | None:
        """Return a record, or None when there is none or its time is over."""

    def put(self, namespace: str, name: str, value: str, ttl_seconds: float) -> None:
        """Write a record, whatever was there."""

    def swap(
        self, namespace: str, name: str, expected: str | None, value: str | None, ttl_seconds: float
    ) -> str | None:
        """Write a record only where the present one is as expected, and return the one found.

        It was written exactly when the value returned equals the expected one.

        :param expected: the text that must be there; None: nothing may be there
        :param value: the text to write; None deletes the record
        """

    def drop(self, namespace: str, name: str) -> None:
        """Delete a record, if there is one."""

    def entries(self, namespace: str, prefix: str = "") -> list[Entry]:
        """Return the records whose names begin with a prefix, by name."""

    def ring(self, namespace: str) -> int:
        """Count a bell one up and return its count."""

    def bell(self, namespace: str) -> int:
        """Return the count of a bell, 0 when it never rang; it only ever says that something is new."""

    def close(self) -> None:
        """Give up the connections; the next operation makes new ones."""


def budget_key(base_url: str, api_key: str) -> str:
    """Return the name under which an API key's budget is kept: a hash, from which the key can't be read.

    Connections with the same key and base URL get the same name, however the URL is spelled.
    """
    url = urlsplit(base_url.strip())
    port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    place = f"{url.scheme}://{url.hostname}:{port}{url.path.rstrip('/')}"
    return hashlib.blake2b(f"{place}\n{api_key}".encode(), digest_size=16, person=b"techflow").hexdigest()


@functools.lru_cache(maxsize=16)
def open_store(state_url: str) -> Store:
    """Return the store that a URL names, one per process and URL; connects to nothing yet.

    :raises StateUrlError: the URL names no store, or the Redis client is not installed
    """
    scheme, colon, rest = state_url.partition("://")
    if not colon:
        return _sqlite(state_url, state_url)
    if scheme == "sqlite":
        return _sqlite(rest.removeprefix("/"), state_url)
    if scheme in ("redis", "rediss", "unix"):
        return _redis(state_url)
    raise StateUrlError(f"{scheme}://…" if scheme.isalnum() else "something else")


def _sqlite(path: str, shown: str) -> Store:
    from techflow_provider.state.files import StateFile
    from techflow_provider.state.sqlite import SqliteStore

    file = Path(path).expanduser()
    if not file.is_absolute() or "\0" in path or path.endswith("/") or "?" in path:
        # Something that is no path may be a mistyped URL with a password.
        raise StateUrlError("a URL or path that is not absolute" if "@" in shown else repr(shown))
    return SqliteStore(StateFile(file))


def _redis(url: str) -> Store:
    if importlib.util.find_spec("redis") is None:
        raise StateUrlError("a Redis URL", "the redis package (pip install 'airflow-provider-techflow[redis]')")
    from techflow_provider.state.redis import RedisStore

    return RedisStore(url)
