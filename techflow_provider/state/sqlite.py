"""The store for one host: a SQLite file with one table, one transaction per operation.

The file is private to its owner, opened again when it was replaced, and quarantined when it is corrupt. A process has
one connection to it, which one thread at a time uses for one transaction, and which is closed before a fork: SQLite's
record of its own locks would be wrong in the child.

Times are those of CLOCK_MONOTONIC, which all processes of a host share and nobody can set. It starts anew with each
boot, so the file records to which boot its times belong. After a reboot budgets begin anew, and so does the time to
live of every other entry.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import random
import sqlite3
import stat
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from techflow_provider.state.file_access import PRIVATE_MODE, check_file, check_folder
from techflow_provider.state.store import BUDGET_NAME, Change, Entry, StoreError, Update, read_only

log: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

# How long a file's lock is waited for: on a busy host, those who hold it may wait for the processor.
TIMEOUT_SECONDS = 15.0
FILE_LOCK_RETRY_SECONDS = 0.02
CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
# A file may be replaced, and the new one be found corrupt, during one operation; more often isn't an accident.
MAX_OPENINGS = 3
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

# Held during each transaction, and by a thread that forks.
_process_lock = threading.RLock()
_stores: weakref.WeakSet[SqliteStore] = weakref.WeakSet()


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

    :param path: the file's absolute path
    :param timeout_seconds: how long to wait for other processes
    :param mode: the file's mode, which may let a group share it
    :param private: whether its folder is below one that everybody may write to
    :param clock: monotonic seconds, the same in all processes
    :param boot: returns what identifies the present boot
    """

    def __init__(
        self,
        path: Path,
        timeout_seconds: float = TIMEOUT_SECONDS,
        *,
        mode: int = PRIVATE_MODE,
        private: bool = False,
        clock: Callable[[], float] = time.monotonic,
        boot: Callable[[], str] = boot_id,
    ) -> None:
        self.location: str = str(path)
        self._path = path
        self._timeout_seconds = timeout_seconds
        self._mode = mode
        self._private = private
        self._clock = clock
        self._boot = boot
        self._connection: sqlite3.Connection | None = None
        # The device and inode of the file that the connection has open.
        self._file_id: tuple[int, int] | None = None
        _stores.add(self)

    def __del__(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def update(self, namespace: str, name: str, change: Change[T]) -> T:
        """Read an entry, decide and write it in one atomic step, and return the change's result."""
        return self._run(partial(self._update, namespace, name, change), writes=change is not read_only)

    def update_many(self, updates: Sequence[Update]) -> list[Any]:
        """Update several entries in one atomic step, and return the results."""

        def act(connection: sqlite3.Connection) -> list[Any]:
            return [self._update(*update, connection) for update in updates]

        return self._run(act, writes=any(change is not read_only for _, _, change in updates))

    def _update(self, namespace: str, name: str, change: Change[T], connection: sqlite3.Connection) -> T:
        now = self._clock()
        row = connection.execute(READ, (now, namespace, name, now)).fetchone()
        write, result = change(None if row is None else Entry(*row), now)
        if write is not None and write.value is not None:
            connection.execute("DELETE FROM entries WHERE expires <= ?", (now,))
            written = (namespace, name, write.value, now, write.ttl_seconds, now + write.ttl_seconds)
            connection.execute("REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?)", written)
        elif write is not None:
            connection.execute("DELETE FROM entries WHERE namespace = ? AND name = ?", (namespace, name))
        return result

    def entries(self, namespace: str, prefix: str = "") -> list[Entry]:
        """Return the entries whose names begin with a prefix, by name."""

        def act(connection: sqlite3.Connection) -> list[Entry]:
            now = self._clock()
            return [Entry(*row) for row in connection.execute(READ_ALL, (now, namespace, len(prefix), prefix, now))]

        return self._run(act)

    def namespaces(self) -> list[str]:
        """Return the namespaces that hold something."""
        found = "SELECT DISTINCT namespace FROM entries"
        return self._run(lambda connection: [name for (name,) in connection.execute(found)])

    def close(self) -> None:
        """Close the connection of this process."""
        with _process_lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def _run(self, act: Callable[[sqlite3.Connection], T], *, writes: bool = False) -> T:
        """Run `act` in a transaction on the file that is at the path."""
        try:
            with _process_lock:
                for _ in range(MAX_OPENINGS):
                    try:
                        connection = self._connection or self._open()
                        connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
                        if _file_id(self._path) == self._file_id:
                            result = act(connection)
                            connection.execute("COMMIT")
                            return result
                    except sqlite3.DatabaseError as error:
                        self.close()
                        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in CORRUPT:
                            raise
                        self._quarantine()
                    finally:
                        # Whatever interrupted it, even a signal: a connection that is closed holds no lock.
                        if self._connection is not None and self._connection.in_transaction:
                            self.close()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.location}: {error}") from error
        raise StoreError(f"{self.location}: the file keeps being replaced")

    def _open(self) -> sqlite3.Connection:
        self._prepare_folder()
        deadline = time.monotonic() + self._timeout_seconds
        while True:
            # Any number of processes may open the file at once; one at a time creates or replaces it.
            if _file_id(self._path) is not None and self._is_ready(connection := self._connect()):
                return connection
            self.close()
            with contextlib.suppress(TimeoutError), self._file_lock(0.0):
                return self._create()
            if time.monotonic() > deadline:
                raise TimeoutError("another process keeps the file's lock")
            time.sleep(random.uniform(0, FILE_LOCK_RETRY_SECONDS))  # noqa: S311 - jitter

    def _connect(self) -> sqlite3.Connection:
        check_file(self._path, self._mode)
        self._file_id = _file_id(self._path)
        self._connection = connection = sqlite3.connect(
            f"file:{quote(str(self._path))}?mode=rw",
            uri=True,
            timeout=self._timeout_seconds,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    def _create(self) -> sqlite3.Connection:
        """Create the file and its tables, or convert them from version 0.1.0 or to the present boot."""
        # SQLite would create a file that the umask may let others read. An existing file is not opened here: closing it
        # would drop the locks that SQLite has on it in this process.
        with contextlib.suppress(FileExistsError):
            os.close(self._open_private(str(self._path), os.O_EXCL))
        connection = self._connect()
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("BEGIN IMMEDIATE")
        version = self._version(connection)
        if version != FORMAT:
            migration = MIGRATION if version else ("CREATE TABLE boot (id TEXT NOT NULL)",)
            for statement in (*TABLES, *migration, f"PRAGMA user_version = {FORMAT}"):
                connection.execute(statement)
        if connection.execute(LATEST_BOOT).fetchone() != (self._boot(),):
            self._begin_boot(connection)
        connection.execute("COMMIT")
        if version == FORMAT_OF_0_1_0:
            log.info("Migrated %s from version 0.1.0: its records are kept, its rate budgets begin anew", self.location)
        return connection

    def _is_ready(self, connection: sqlite3.Connection) -> bool:
        """Whether the tables are there and belong to the present boot."""
        version = self._version(connection)
        return version == FORMAT and connection.execute(LATEST_BOOT).fetchone() == (self._boot(),)

    def _version(self, connection: sqlite3.Connection) -> int:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, FORMAT_OF_0_1_0, FORMAT):
            raise StoreError(f"{self.location}: expected state of format {FORMAT}, got {version}, of another version")
        return int(version)

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

    def _prepare_folder(self) -> None:
        folder = self._path.parent
        with contextlib.suppress(FileExistsError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
            if self._mode & stat.S_IWGRP:
                # What is created in it belongs to its group, too.
                folder.chmod(0o2770)
        check_folder(folder, self._mode, may_be_link=not self._private)

    def _open_private(self, path: str, flags: int = 0) -> int:
        flags |= os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, PRIVATE_MODE)
        if self._mode != PRIVATE_MODE and os.fstat(descriptor).st_uid == os.geteuid():
            os.fchmod(descriptor, self._mode)
        return descriptor

    @contextlib.contextmanager
    def _file_lock(self, seconds: float) -> Iterator[None]:
        """Hold the lock for creating or replacing the file; a killed process doesn't hold it."""
        descriptor = self._open_private(f"{self._path}.lock")
        try:
            deadline = time.monotonic() + seconds
            # A lock by lockf, unlike one by flock, is not inherited by children.
            while not _is_locked(descriptor):
                if time.monotonic() >= deadline:
                    raise TimeoutError("another process keeps the file's lock")
                time.sleep(random.uniform(0, FILE_LOCK_RETRY_SECONDS))  # noqa: S311 - jitter
            yield
        finally:
            os.close(descriptor)

    def _quarantine(self) -> None:
        """Rename a corrupt file, unless another process has done so."""
        with self._file_lock(self._timeout_seconds):
            if _file_id(self._path) != self._file_id:
                return
            # The journal first: it must never be read as that of the new file.
            for part in ("-wal", "-shm", ""):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{self._path}{part}").replace(f"{self._path}.broken{part}")
            message = "The state file %s is corrupt: it is now %s.broken, a new one begins empty"
            log.warning(message, self._path, self._path)


def _file_id(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _before_fork() -> None:
    _process_lock.acquire()
    for store in list(_stores):
        store.close()


os.register_at_fork(before=_before_fork, after_in_parent=_process_lock.release, after_in_child=_process_lock.release)
