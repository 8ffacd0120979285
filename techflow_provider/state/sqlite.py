"""The store for one host: a SQLite file with one table, one transaction per operation.

Times are those of CLOCK_MONOTONIC, which all processes of a host share and nobody can set. It starts anew with each
boot, so the file records to which boot its times belong. After a reboot budgets begin anew, and so does the time to
live of every other entry.
"""

from __future__ import annotations

import functools
import logging
import sqlite3
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from techflow_provider.state.state_file import StateFile
from techflow_provider.state.store import BUDGET_NAME, Change, Entry, StoreError, Update, read_only

log: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

FORMAT = 2
# Version 0.1.0 kept records in a table like `entries`, and budgets in tables of their own.
FORMAT_OF_0_1_0 = 1
TABLES = (
    """CREATE TABLE entries (namespace TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, written REAL NOT NULL,
    ttl REAL NOT NULL, expires REAL NOT NULL, PRIMARY KEY (namespace, name)) WITHOUT ROWID""",
    "CREATE INDEX entries_expires ON entries (expires)",
)
MIGRATION = (
    "INSERT INTO entries SELECT * FROM records",
    *(f"DROP TABLE {table}" for table in ("records", "accounts", "grants", "bells")),
)
LATEST_BOOT = "SELECT id FROM boot ORDER BY rowid DESC LIMIT 1"
BOOTS_KEPT = 10
READ = "SELECT name, value, ? - written FROM entries WHERE namespace = ? AND name = ? AND expires > ?"
READ_ALL = (
    "SELECT name, value, ? - written FROM entries "
    "WHERE namespace = ? AND substr(name, 1, ?) = ? AND expires > ? ORDER BY name"
)


@functools.cache
def boot_id() -> str:
    """Return what identifies the present boot of this host."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        pass
    try:
        command = ("/usr/sbin/sysctl", "-n", "kern.bootsessionuuid")
        return subprocess.run(command, capture_output=True, check=True, timeout=5, text=True).stdout.strip()  # noqa: S603 - constants only
    except (OSError, subprocess.SubprocessError):
        # Even so a reboot shows where the clock is behind the times that were kept.
        return "unknown"


class SqliteStore:
    """What the processes of one host share.

    :param file: the file
    :param clock: monotonic seconds, the same in all processes
    :param boot: returns what identifies the present boot
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

    def update(self, namespace: str, name: str, change: Change[T]) -> T:
        """Read an entry, decide and write it in one atomic step, and return the change's result."""
        return cast("T", self.update_many([(namespace, name, change)])[0])

    def update_many(self, updates: Sequence[Update]) -> list[Any]:
        """Update several entries in one atomic step, and return the results."""

        def act(connection: sqlite3.Connection) -> list[Any]:
            now, results = self._clock(), []
            for namespace, name, change in updates:
                row = connection.execute(READ, (now, namespace, name, now)).fetchone()
                write, result = change(None if row is None else Entry(*row), now)
                results.append(result)
                if write is not None and write.value is not None:
                    connection.execute("DELETE FROM entries WHERE expires <= ?", (now,))
                    written = (namespace, name, write.value, now, write.ttl_seconds, now + write.ttl_seconds)
                    connection.execute("REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?)", written)
                elif write is not None:
                    connection.execute("DELETE FROM entries WHERE namespace = ? AND name = ?", (namespace, name))
            return results

        only_reads = all(change is read_only for _, _, change in updates)
        return self._file.run(act, self, "BEGIN" if only_reads else "BEGIN IMMEDIATE")

    def entries(self, namespace: str, prefix: str = "") -> list[Entry]:
        """Return the entries whose names begin with a prefix, by name."""

        def act(connection: sqlite3.Connection) -> list[Entry]:
            now = self._clock()
            return [Entry(*row) for row in connection.execute(READ_ALL, (now, namespace, len(prefix), prefix, now))]

        return self._file.run(act, self, "BEGIN")

    def namespaces(self) -> list[str]:
        """Return the namespaces that hold something."""
        found = "SELECT DISTINCT namespace FROM entries"
        return self._file.run(lambda connection: [name for (name,) in connection.execute(found)], self, "BEGIN")

    def close(self) -> None:
        """Close the connection of this process."""
        self._file.close()

    def is_present(self, connection: sqlite3.Connection) -> bool:
        """Whether the tables are there and belong to the present boot."""
        version = self._version(connection)
        return version == FORMAT and connection.execute(LATEST_BOOT).fetchone() == (self._boot(),)

    def prepare(self, connection: sqlite3.Connection) -> None:
        """Create the tables, or convert them from version 0.1.0 or to the present boot."""
        version = self._version(connection)
        if version != FORMAT:
            self._create(connection, version)
        if connection.execute(LATEST_BOOT).fetchone() != (self._boot(),):
            self._begin_boot(connection)

    def _version(self, connection: sqlite3.Connection) -> int:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, FORMAT_OF_0_1_0, FORMAT):
            raise StoreError(f"{self.location}: expected state of format {FORMAT}, got {version}, of another version")
        return int(version)

    def _create(self, connection: sqlite3.Connection, version: int) -> None:
        migration = MIGRATION if version else ("CREATE TABLE boot (id TEXT NOT NULL)",)
        for statement in (*TABLES, *migration, f"PRAGMA user_version = {FORMAT}"):
            connection.execute(statement)
        if version:
            log.info("Migrated %s from version 0.1.0: its records are kept, its rate budgets begin anew", self.location)

    def _begin_boot(self, connection: sqlite3.Connection) -> None:
        now, boot = self._clock(), self._boot()
        if connection.execute("SELECT 1 FROM boot WHERE id = ?", (boot,)).fetchone():
            # No boot begins twice, so two kernels take turns, and neither sees the other's locks.
            remedy = "give each its own file, or leave [techflow] state_url empty"
            raise StoreError(f"{self.location}: several hosts or virtual machines use this file at once: {remedy}")
        connection.execute("INSERT INTO boot VALUES (?)", (boot,))
        connection.execute("DELETE FROM boot WHERE rowid <= (SELECT MAX(rowid) FROM boot) - ?", (BOOTS_KEPT,))
        connection.execute("DELETE FROM entries WHERE name = ?", (BUDGET_NAME,))
        connection.execute("UPDATE entries SET written = ?, expires = ? + ttl", (now, now))
