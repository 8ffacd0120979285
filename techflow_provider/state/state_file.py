"""A SQLite file that is safe to open: private to its owner, reopened when replaced, quarantined when corrupt.

A process has one connection to it, which one thread at a time uses for one transaction, and which is closed before a
fork: SQLite's record of its own locks would be wrong in the child.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from techflow_provider.state.store import STORE_TIMEOUT_SECONDS, StoreError

log: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")
Prepare = Callable[[sqlite3.Connection], None]

FILE_LOCK_RETRY_SECONDS = 0.005
CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
# A file may be replaced, and the new one be found corrupt, during one operation; more often isn't an accident.
MAX_OPENINGS = 3

# Held during each transaction, and by a thread that forks.
_process_lock = threading.RLock()
_files: weakref.WeakSet[StateFile] = weakref.WeakSet()


class _ReplacedError(Exception):
    """The file at the path isn't the one that the connection has open."""


class StateFile:
    """A file of shared state.

    :param path: an absolute path
    :param timeout_seconds: how long to wait for other processes
    :param private: whether the folder must belong to this user, as below a folder that everybody may write to
    """

    def __init__(self, path: Path, timeout_seconds: float = STORE_TIMEOUT_SECONDS, *, private: bool = False) -> None:
        self.path = path
        self._timeout_seconds = timeout_seconds
        self._private = private
        self._connection: sqlite3.Connection | None = None
        self._file_id = (0, 0)
        _files.add(self)

    def __del__(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def run(self, act: Callable[[sqlite3.Connection], T], prepare: Prepare, begin: str) -> T:
        """Run `act` in a transaction.

        :param prepare: creates the tables when a connection is new, in a transaction of its own
        :param begin: the statement that begins the transaction
        :raises StoreError: the file can't be used
        """
        with _process_lock:
            for _ in range(MAX_OPENINGS):
                try:
                    return self._run(act, prepare, begin)
                except _ReplacedError:
                    continue
                except (sqlite3.Error, OSError) as error:
                    raise StoreError(f"{self.path}: {error}") from error
        raise StoreError(f"{self.path}: the file keeps being replaced")

    def _run(self, act: Callable[[sqlite3.Connection], T], prepare: Prepare, begin: str) -> T:
        completed = False
        try:
            connection = self._connection or self._open(prepare)
            with _transaction(connection, begin):
                self._check_file()
                result = act(connection)
            completed = True
        except sqlite3.Error as error:
            self.close()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in CORRUPT:
                with self._file_lock():
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

    def _open(self, prepare: Prepare) -> sqlite3.Connection:
        with self._file_lock():
            self._create()
            self._file_id = self._present_file()
            self._connection = connection = sqlite3.connect(
                f"file:{quote(str(self.path))}?mode=rw",
                uri=True,
                timeout=self._timeout_seconds,
                isolation_level=None,
                check_same_thread=False,
            )
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            with _transaction(connection, "BEGIN IMMEDIATE"):
                prepare(connection)
        return connection

    @contextlib.contextmanager
    def _file_lock(self) -> Iterator[None]:
        """Let one process at a time open or replace the file; a killed one holds no lock."""
        self._check_folder()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(f"{self.path}.lock", flags, 0o600)
        try:
            deadline = time.monotonic() + self._timeout_seconds
            # A lock by lockf, unlike one by flock, is not inherited by children.
            while not _is_locked(descriptor):
                if time.monotonic() > deadline:
                    raise TimeoutError("another process keeps the file's lock")
                time.sleep(FILE_LOCK_RETRY_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def _check_folder(self) -> None:
        folder = self.path.parent
        with contextlib.suppress(FileExistsError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
        found = folder.lstat() if self._private else folder.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(f"{folder} isn't a folder")
        if found.st_mode & stat.S_IWOTH or (self._private and found.st_uid != os.geteuid()):
            raise PermissionError(f"others may write in the folder {folder}; choose a folder of your own")

    def _create(self) -> None:
        # SQLite would create a file that the umask may let others read.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        # An existing file is not opened here: closing it would drop the locks that SQLite has on it in this process.
        if not stat.S_ISREG(self.path.lstat().st_mode):
            raise PermissionError("it isn't a regular file, perhaps a symbolic link")

    def _present_file(self) -> tuple[int, int]:
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return (0, 0)
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


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
