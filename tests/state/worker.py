"""What other processes do in the tests; each task says `ready` and goes on when it is sent a line."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

from techflow_provider.state.budget import RequestClass, SharedBudget
from techflow_provider.state.files import StateFile
from techflow_provider.state.records import Records
from techflow_provider.state.sqlite import SqliteStore
from techflow_provider.state.store import open_store


def ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()


def reserve(state_url: str, key: str, times: str) -> list[float]:
    """Take slots and tell when they are."""
    budget = SharedBudget(open_store(state_url), key)
    ready()
    return [budget.reserve(RequestClass.COMMAND, 1e6).due for _ in range(int(times))]


def claim(state_url: str, key: str, task: str, executions: str) -> list[str]:
    """Claim executions and tell which were got."""
    records = Records(open_store(state_url), key)
    ready()
    return [name for name in map(str, range(int(executions))) if records.claim(name, task) == task]


def hold(path: str) -> None:
    """Stay inside a transaction."""
    store = SqliteStore(StateFile(Path(path)))

    def act(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO bells VALUES ('half done', 1)")
        ready()
        time.sleep(600)

    store._write(act)


if __name__ == "__main__":
    task, *arguments = sys.argv[1:]
    tasks: dict[str, Callable[..., object]] = {"reserve": reserve, "claim": claim, "hold": hold}
    result = tasks[task](*arguments)
    sys.stdout.write(json.dumps(result))
