"""The interface of a store, which keeps what processes share as named texts, and the values that go through it.

Everything else that is shared (the rate budget, records, the wake-up counter) is written once, above this interface.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

# The entry that holds a budget. Its text has times of the store's clock, so a store whose clock starts anew deletes it.
BUDGET_NAME = "budget"

EXPECTED_URL = (
    "nothing, file, metadata, broker, https://api-server/techflow/state, redis://host:port/number (also rediss://, "
    "valkey://, redis+sentinel://, redis+cluster://, unix://), postgresql://…, mysql://… or an absolute path"
)

T = TypeVar("T")


class StoreError(Exception):
    """A store can't be used at present, or what it holds can't be read; the message says why."""


class StateUrlError(ValueError):
    """A `state_url` names no store. Never shows user information, which may include a password.

    :param received: what was received, without password
    :param expected: what is expected instead
    """

    def __init__(self, received: str, expected: str = EXPECTED_URL) -> None:
        super().__init__(received, expected)
        self.received = received
        self.expected = expected

    def __str__(self) -> str:
        return f"state_url: expected {self.expected}, got {self.received}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A text as it is kept.

    :param name: its name within its namespace
    :param value: the text
    :param age_seconds: time since it was written, by the store's clock
    """

    name: str
    value: str
    age_seconds: float


@dataclass(frozen=True, slots=True)
class Write:
    """What an update writes.

    :param value: the text to keep; None deletes the entry
    :param ttl_seconds: how long it is kept, from now
    """

    value: str | None
    ttl_seconds: float = 0.0


# Takes the present entry and the store's clock, and returns what to write (None: nothing) and the update's result. It
# is pure, since a store calls it again when another process was faster.
Change = Callable[[Entry | None, float], tuple[Write | None, T]]
# A namespace, a name in it, and the change of the entry there.
Update = tuple[str, str, Change[Any]]


def read_only(entry: Entry | None, now: float) -> tuple[None, tuple[Entry | None, float]]:
    """Change nothing, and return the entry and the store's clock; a store takes no lock for it."""
    return None, (entry, now)


class Store(Protocol):
    """What processes share. Every method is atomic and may raise `StoreError`.

    Entries live in namespaces, under a name, for a time to live that begins anew with every write, and with a reboot of
    the host that keeps them in a file.
    """

    @property
    def location(self) -> str:
        """Where the store is, safe to log."""

    def update(self, namespace: str, name: str, change: Change[T]) -> T:
        """Read an entry, decide and write it in one atomic step, and return the change's result."""

    def update_many(self, updates: Sequence[Update]) -> list[Any]:
        """Update several entries, each in one atomic step, and return the results; one round trip as `update` takes.

        Where it fails, some may have been updated.
        """

    def entries(self, namespace: str, prefix: str = "") -> list[Entry]:
        """Return the entries whose names begin with a prefix, by name."""

    def close(self) -> None:
        """Close the connections; the next operation opens new ones."""


def budget_key(base_url: str, api_key: str) -> str:
    """Return the name under which an API key's budget is kept: a hash, from which the key can't be read.

    Connections with the same key and base URL get the same name, however the URL is spelled.
    """
    url = urlsplit(base_url.strip())
    port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    place = f"{url.scheme}://{url.hostname}:{port}{url.path.rstrip('/')}"
    return hashlib.blake2b(f"{place}\n{api_key}".encode(), digest_size=16, person=b"techflow").hexdigest()
