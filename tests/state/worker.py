"""What other processes do in the tests; each task writes `ready` and continues when it is sent a line."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

from techflow_provider.state.budget import RequestClass, SharedBudget
from techflow_provider.state.redis import RedisStore
from techflow_provider.state.sql import SqlStore
from techflow_provider.state.sqlite import SqliteStore
from techflow_provider.state.store import Entry, Store, Write

# Only bounds a hang.
BUSY_TIMEOUT_SECONDS = 300.0


def store_with_long_timeout(state_url: str) -> Store:
    """Open a store that waits as long for others as a busy machine may need."""
    scheme, _, path = state_url.partition("://")
    if scheme == "sqlite":
        return SqliteStore(Path(path.removeprefix("/")), BUSY_TIMEOUT_SECONDS)
    if scheme == "postgresql":
        return SqlStore(state_url)
    return RedisStore(f"{state_url}?socket_timeout={BUSY_TIMEOUT_SECONDS}")


def ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()


def reserve(state_url: str, key: str, times: str) -> list[float]:
    """Take slots and report when they are."""
    budget = SharedBudget(store_with_long_timeout(state_url), key)
    ready()
    return [budget.reserve(RequestClass.COMMAND, 1e6).due for _ in range(int(times))]


def count(state_url: str, key: str, times: str) -> list[int]:
    """Increment a counter and report what it was."""
    store = store_with_long_timeout(state_url)

    def change(entry: Entry | None, _: float) -> tuple[Write, int]:
        found = 0 if entry is None else int(entry.value)
        return Write(str(found + 1), 600.0), found

    ready()
    return [store.update(key, "count", change) for _ in range(int(times))]


def hold(path: str) -> None:
    """Stay inside a transaction that has written already."""
    store = SqliteStore(Path(path))
    store.entries("")

    def act(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO entries VALUES ('half done', 'a', '', 0, 1e9, 1e9)")
        ready()

    store._run(act, writes=True)


if __name__ == "__main__":
    task, *arguments = sys.argv[1:]
    tasks: dict[str, Callable[..., object]] = {"reserve": reserve, "count": count, "hold": hold}
    result = tasks[task](*arguments)
    sys.stdout.write(json.dumps(result))
