"""A SQLite file that is safe to open: private to its owner, reopened when replaced, quarantined when corrupt.

A process has one connection to it, which one thread at a time uses for one transaction, and which is closed before a
fork: SQLite's record of its own locks would be wrong in the child.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import random
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import quote

from techflow_provider.state.file_access import PRIVATE_MODE, check_file, check_folder
from techflow_provider.state.store import STORE_TIMEOUT_SECONDS, StoreError

log: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

FILE_LOCK_RETRY_SECONDS = 0.02
NO_FILE = (0, 0)
CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
# A file may be replaced, and the new one be found corrupt, during one operation; more often isn't an accident.
MAX_OPENINGS = 3

# Held during each transaction, and by a thread that forks.
_process_lock = threading.RLock()
_files: weakref.WeakSet[StateFile] = weakref.WeakSet()


class Schema(Protocol):
    """The tables of a file."""

    def is_present(self, connection: sqlite3.Connection) -> bool:
        """Whether they are there and belong to the present boot."""

    def prepare(self, connection: sqlite3.Connection) -> None:
        """Create or change them, in a transaction."""


class _ReplacedError(Exception):
    """The file at the path isn't the one that the connection has open."""


class StateFile:
    """A file of shared state.

    :param path: an absolute path
    :param timeout_seconds: how long to wait for other processes
    :param mode: its mode, which may let a group share it
    :param private: whether its folder is below one that everybody may write to
    """

    def __init__(
        self,
        path: Path,
        timeout_seconds: float = STORE_TIMEOUT_SECONDS,
        *,
        mode: int = PRIVATE_MODE,
        private: bool = False,
    ) -> None:
        self.path = path
        self._timeout_seconds = timeout_seconds
        self._mode = mode
        self._private = private
        self._connection: sqlite3.Connection | None = None
        self._file_id = NO_FILE
        _files.add(self)

    def __del__(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def run(self, act: Callable[[sqlite3.Connection], T], schema: Schema, begin: str) -> T:
        """Run `act` in a transaction.

        :param schema: creates the tables
        :param begin: the statement that begins the transaction
        :raises StoreError: the file can't be used
        """
        with _process_lock:
            for _ in range(MAX_OPENINGS):
                try:
                    return self._run(act, schema, begin)
                except _ReplacedError:
                    continue
                except (sqlite3.Error, OSError) as error:
                    raise StoreError(f"{self.path}: {error}") from error
        raise StoreError(f"{self.path}: the file keeps being replaced")

    def _run(self, act: Callable[[sqlite3.Connection], T], schema: Schema, begin: str) -> T:
        completed = False
        try:
            connection = self._connection or self._open(schema)
            with _transaction(connection, begin):
                self._check_file()
                result = act(connection)
            completed = True
        except sqlite3.Error as error:
            self.close()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in CORRUPT:
                with self._file_lock(fcntl.LOCK_EX):
                    self._quarantine(self._file_id)
                raise _ReplacedError from error
            raise
        finally:
            # Whatever interrupted it, including a signal's exception: a connection that is closed holds no lock.
            if not completed:
                self.close()
        return result

    def close(self) -> None:
        """Close the connection."""
        with _process_lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def _open(self, schema: Schema) -> sqlite3.Connection:
        self._check_folder()
        deadline = time.monotonic() + self._timeout_seconds
        while True:
            # Any number of processes may open the file at once; one at a time creates or replaces it.
            with self._file_lock(fcntl.LOCK_SH, deadline):
                if self._present_file() != NO_FILE and schema.is_present(connection := self._connect()):
                    return connection
            self.close()
            with contextlib.suppress(TimeoutError), self._file_lock(fcntl.LOCK_EX, time.monotonic()):
                return self._create(schema)
            if time.monotonic() > deadline:
                raise TimeoutError("another process keeps the file's lock")

    def _create(self, schema: Schema) -> sqlite3.Connection:
        # SQLite would create a file that the umask may let others read. An existing file is not opened here: closing it
        # would drop the locks that SQLite has on it in this process.
        with contextlib.suppress(FileExistsError):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(self._open_private(str(self.path), flags))
        connection = self._connect()
        connection.execute("PRAGMA journal_mode=WAL")
        with _transaction(connection, "BEGIN IMMEDIATE"):
            schema.prepare(connection)
        return connection

    def _connect(self) -> sqlite3.Connection:
        check_file(self.path, self._mode)
        self._file_id = self._present_file()
        self._connection = connection = sqlite3.connect(
            f"file:{quote(str(self.path))}?mode=rw",
            uri=True,
            timeout=self._timeout_seconds,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    @contextlib.contextmanager
    def _file_lock(self, kind: int, deadline: float = math.inf) -> Iterator[None]:
        """Hold the lock for opening the file, or that for replacing it; a killed process holds none."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = self._open_private(f"{self.path}.lock", flags)
        try:
            # A lock by lockf, unlike one by flock, is not inherited by children.
            while not _is_locked(descriptor, kind):
                if time.monotonic() > deadline:
                    raise TimeoutError("another process keeps the file's lock")
                time.sleep(random.uniform(0, FILE_LOCK_RETRY_SECONDS))  # noqa: S311 - jitter
            yield
        finally:
            os.close(descriptor)

    def _check_folder(self) -> None:
        folder = self.path.parent
        with contextlib.suppress(FileExistsError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
            if self._mode & stat.S_IWGRP:
                # What is created in it belongs to its group, too.
                folder.chmod(0o2770)
        check_folder(folder, self._mode, may_be_link=not self._private)

    def _open_private(self, path: str, flags: int) -> int:
        descriptor = os.open(path, flags, PRIVATE_MODE)
        if self._mode != PRIVATE_MODE and os.fstat(descriptor).st_uid == os.geteuid():
            os.fchmod(descriptor, self._mode)
        return descriptor

    def _present_file(self) -> tuple[int, int]:
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return NO_FILE
        return found.st_dev, found.st_ino

    def _check_file(self) -> None:
        if self._present_file() != self._file_id:
            raise _ReplacedError

    def _quarantine(self, file_id: tuple[int, int]) -> None:
        """Rename a corrupt file, unless another process has done so."""
        if self._present_file() != file_id:
            return
        # The journal first: it must never be read as that of the new file.
        for part in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.path}{part}").replace(f"{self.path}.broken{part}")
        log.warning("The state file %s is corrupt: it is now %s.broken, a new one begins empty", self.path, self.path)


def _is_locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.lockf(descriptor, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    """Begin a transaction and commit it; after an error the connection is closed, which rolls it back."""
    connection.execute(begin)
    yield
    connection.execute("COMMIT")


def _before_fork() -> None:
    _process_lock.acquire()
    for file in list(_files):
        file.close()


os.register_at_fork(before=_before_fork, after_in_parent=_process_lock.release, after_in_child=_process_lock.release)
