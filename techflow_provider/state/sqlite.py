"""The store for one host: a SQLite file, one transaction per operation.

Times are those of CLOCK_MONOTONIC, which all processes of a host share and nobody can set; it starts anew with each
boot, so the file says to which boot its times belong. After a reboot accounts are begun empty, and the time to live of
every record starts again.
"""

from __future__ import annotations

import functools
import os
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from techflow_provider.state.files import StateFile
from techflow_provider.state.gcra import (
    GcraState,
    Policy,
    RequestClass,
    Reservation,
    ReservationRequest,
    cool,
    settle,
    take,
)
from techflow_provider.state.store import HISTORY_SECONDS, BudgetState, Change, Entry, Grant, StoreError

T = TypeVar("T")

FORMAT = 1
ACCOUNT_COLUMNS = tuple(GcraState.__dataclass_fields__)
TABLES = (
    "CREATE TABLE boot (id TEXT NOT NULL)",
    f"CREATE TABLE accounts (key TEXT PRIMARY KEY, {' REAL NOT NULL, '.join(ACCOUNT_COLUMNS)} REAL NOT NULL)",
    "CREATE TABLE grants (key TEXT NOT NULL, at REAL NOT NULL, class TEXT NOT NULL)",
    "CREATE INDEX grants_at ON grants (key, at)",
    """CREATE TABLE records (namespace TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, written REAL NOT NULL,
    ttl REAL NOT NULL, expires REAL NOT NULL, PRIMARY KEY (namespace, name))""",
    "CREATE INDEX records_expires ON records (expires)",
    "CREATE TABLE bells (namespace TEXT PRIMARY KEY, count INTEGER NOT NULL)",
    f"PRAGMA user_version = {FORMAT}",
)
READ_ACCOUNT = f"SELECT {', '.join(ACCOUNT_COLUMNS)} FROM accounts WHERE key = ?"  # noqa: S608 - constants only
WRITE_ACCOUNT = f"REPLACE INTO accounts VALUES (?{', ?' * len(ACCOUNT_COLUMNS)})"  # noqa: S608 - constants only
READ_RECORD = "SELECT name, value, ? - written FROM records WHERE namespace = ? AND name = ? AND expires > ?"
READ_RECORDS = (
    "SELECT name, value, ? - written FROM records "
    "WHERE namespace = ? AND substr(name, 1, ?) = ? AND expires > ? ORDER BY name"
)
RING = "INSERT INTO bells VALUES (?, 1) ON CONFLICT (namespace) DO UPDATE SET count = count + 1 RETURNING count"


@functools.cache
def boot_id() -> str:
    """Return what names the present boot of this host."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        pass
    try:
        command = ("/usr/sbin/sysctl", "-n", "kern.bootsessionuuid")
        return subprocess.run(command, capture_output=True, check=True, timeout=5, text=True).stdout.strip()  # noqa: S603 - constants only
    except (OSError, subprocess.SubprocessError):
        # Without a name a reboot still shows when the clock is behind the times that were kept.
        return "unknown"


@functools.cache
def temporary_store() -> SqliteStore:
    """Return the store that the processes of this user on this host share, to go on with where their own one fails."""
    folder = Path(tempfile.gettempdir()) / f"airflow-techflow-{os.geteuid()}"
    return SqliteStore(StateFile(folder / "fallback.sqlite", private=True))


class SqliteStore:
    """What the processes of one host share.

    :param file: the file
    :param clock: monotonic seconds, the same in all processes
    :param boot: what names the present boot
    """

    def __init__(
        self,
        file: StateFile,
        clock: Callable[[], float] = time.monotonic,
        boot: Callable[[], str] = boot_id,
    ) -> None:
        self._file = file
        self._clock = clock
        self._boot = boot

    @property
    def location(self) -> str:
        """The file's path."""
        return str(self._file.path)

    def _write(self, act: Callable[[sqlite3.Connection], T]) -> T:
        return self._file.run(act, self._prepare, "BEGIN IMMEDIATE")

    def _read(self, act: Callable[[sqlite3.Connection], T]) -> T:
        return self._file.run(act, self._prepare, "BEGIN")

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, FORMAT):
            raise StoreError(f"{self.location}: expected state of format {FORMAT}, got {version}, of another version")
        if version == 0:
            for statement in TABLES:
                connection.execute(statement)
        if connection.execute("SELECT id FROM boot").fetchone() != (self._boot(),):
            self._begin_boot(connection)

    def _begin_boot(self, connection: sqlite3.Connection) -> None:
        now = self._clock()
        connection.execute("DELETE FROM boot")
        connection.execute("INSERT INTO boot VALUES (?)", (self._boot(),))
        connection.execute("DELETE FROM accounts")
        connection.execute("DELETE FROM grants")
        connection.execute("UPDATE records SET written = ?, expires = ? + ttl", (now, now))

    def take(self, key: str, policy: Policy, wish: ReservationRequest) -> Reservation:
        """Answer a wish to send."""

        def act(connection: sqlite3.Connection) -> Reservation:
            now = self._clock()
            account = _account(connection, key) or GcraState.empty(policy, now)
            account, reservation = take(account, policy, wish, now)
            connection.execute(WRITE_ACCOUNT, (key, *_row(account)))
            if reservation.counts(wish):
                connection.execute("INSERT INTO grants VALUES (?, ?, ?)", (key, reservation.at, wish.request_class))
                connection.execute("DELETE FROM grants WHERE key = ? AND at < ?", (key, now - HISTORY_SECONDS))
            return reservation

        return self._write(act)

    def cool(self, key: str, policy: Policy, seconds: float | None, epoch: float) -> float:
        """Begin or lengthen a pause, and return the seconds that are left of it."""

        def act(connection: sqlite3.Connection) -> float:
            now = self._clock()
            account = cool(_account(connection, key) or GcraState.empty(policy, now), policy, seconds, epoch, now)
            connection.execute(WRITE_ACCOUNT, (key, *_row(account)))
            return account.cool_until - account.seen

        return self._write(act)

    def settle(self, key: str, epoch: float) -> None:
        """End the time of probing."""

        def act(connection: sqlite3.Connection) -> None:
            account = _account(connection, key)
            if account is not None:
                connection.execute(WRITE_ACCOUNT, (key, *_row(settle(account, epoch))))

        self._write(act)

    def read_budget(self, key: str) -> BudgetState:
        """Return what is known of a key's budget."""

        def act(connection: sqlite3.Connection) -> BudgetState:
            now = self._clock()
            rows = connection.execute(
                "SELECT at, class FROM grants WHERE key = ? AND at >= ?", (key, now - HISTORY_SECONDS)
            )
            grants = tuple(Grant(at, RequestClass(name)) for at, name in rows)
            return BudgetState(now, _account(connection, key), grants)

        return self._read(act)

    def get(self, namespace: str, name: str) -> Entry | None:
        """Return a record."""
        return self._read(lambda connection: self._entry(connection, namespace, name))

    def _entry(self, connection: sqlite3.Connection, namespace: str, name: str) -> Entry | None:
        now = self._clock()
        row = connection.execute(READ_RECORD, (now, namespace, name, now)).fetchone()
        return None if row is None else Entry(*row)

    def put(self, namespace: str, name: str, value: str, ttl_seconds: float) -> None:
        """Write a record."""
        self._write(lambda connection: self._put(connection, namespace, name, value, ttl_seconds))

    def _put(self, connection: sqlite3.Connection, namespace: str, name: str, value: str, ttl_seconds: float) -> None:
        now = self._clock()
        connection.execute("DELETE FROM records WHERE expires <= ?", (now,))
        row = (namespace, name, value, now, ttl_seconds, now + ttl_seconds)
        connection.execute("REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?)", row)

    def swap(
        self, namespace: str, name: str, expected: str | None, value: str | None, ttl_seconds: float
    ) -> str | None:
        """Write a record where the present one is as expected, and return the one found."""

        def act(connection: sqlite3.Connection) -> str | None:
            entry = self._entry(connection, namespace, name)
            found = None if entry is None else entry.value
            if found == expected and value is not None:
                self._put(connection, namespace, name, value, ttl_seconds)
            elif found == expected:
                _drop(connection, namespace, name)
            return found

        return self._write(act)

    def update(self, namespace: str, name: str, change: Change[T]) -> T:
        """Read an entry, decide and write it in one atomic step, and return the change's result."""

        def act(connection: sqlite3.Connection) -> T:
            write, result = change(self._entry(connection, namespace, name), self._clock())
            if write is not None and write.value is not None:
                self._put(connection, namespace, name, write.value, write.ttl_seconds)
            elif write is not None:
                _drop(connection, namespace, name)
            return result

        return self._write(act)

    def drop(self, namespace: str, name: str) -> None:
        """Delete a record."""
        self._write(lambda connection: _drop(connection, namespace, name))

    def entries(self, namespace: str, prefix: str = "") -> list[Entry]:
        """Return the records whose names begin with a prefix, by name."""

        def act(connection: sqlite3.Connection) -> list[Entry]:
            now = self._clock()
            return [Entry(*row) for row in connection.execute(READ_RECORDS, (now, namespace, len(prefix), prefix, now))]

        return self._read(act)

    def ring(self, namespace: str) -> int:
        """Count a bell one up."""
        return self._write(lambda connection: _number(connection.execute(RING, (namespace,)).fetchone()))

    def bell(self, namespace: str) -> int:
        """Return the count of a bell."""
        return self._read(
            lambda connection: _number(
                connection.execute("SELECT count FROM bells WHERE namespace = ?", (namespace,)).fetchone()
            )
        )

    def close(self) -> None:
        """Close the connection of this process."""
        self._file.close()


def _account(connection: sqlite3.Connection, key: str) -> GcraState | None:
    row = connection.execute(READ_ACCOUNT, (key,)).fetchone()
    return None if row is None else GcraState(*row)


def _row(account: GcraState) -> tuple[float, ...]:
    return tuple(getattr(account, column) for column in ACCOUNT_COLUMNS)


def _drop(connection: sqlite3.Connection, namespace: str, name: str) -> None:
    connection.execute("DELETE FROM records WHERE namespace = ? AND name = ?", (namespace, name))


def _number(row: tuple[int] | None) -> int:
    return 0 if row is None else row[0]
