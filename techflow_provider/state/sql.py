"""The store in a database: PostgreSQL, MySQL or SQLite, through the driver that a SQLAlchemy URL names.

Each operation is one statement with a transaction of its own, except where processes compete for an entry: then they
queue for its row. A session keeps nothing between transactions, so PgBouncer may share connections. A budget's commits
don't wait for the disk, since a budget that was lost begins anew, exhausted; all others do.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from techflow_provider.state.optimistic import (
    LostReplyError,
    OptimisticStore,
    Reply,
    Row,
    UnreachableError,
)
from techflow_provider.state.sql_statements import DATABASES, DRIVERS, NOT_DURABLE, OPTIONS, STATEMENTS, TERMS, Database
from techflow_provider.state.store import BUDGET_NAME, Entry, StateUrlError, StoreError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

T = TypeVar("T")

TABLE = "techflow_state"
# Longer names, which don't fit into an index, are shortened.
MAX_NAME_LENGTH = 480
MAX_CONNECTIONS = 8
# One write in so many deletes what has expired.
WRITES_PER_PURGE = 200
HOUR_SECONDS = 3600.0
EXPECTED_DATABASE = "postgresql://…, mysql://… or another URL of SQLAlchemy for PostgreSQL, MySQL or SQLite"
INIT_COMMAND = "python -m techflow_provider state init"
MISSING_TABLE_CODES = ("42P01", "1146", "no such table")


class _Statement(NamedTuple):
    text: str
    # The names of its parameters in their order, where the driver doesn't take them by name.
    order: Sequence[str] | None


class _Pool(NamedTuple):
    idle: list[Any]
    places: threading.BoundedSemaphore


class SqlStore(OptimisticStore):
    """What processes on several hosts share in a database.

    :param url: a URL of SQLAlchemy
    :param schema: where the table is; empty for the database's default
    :param connect_args: further arguments for the driver
    :param clock: seconds to use in place of the database's clock, for tests
    :raises StateUrlError: the URL can't be read, or its driver isn't installed
    """

    def __init__(
        self,
        url: str,
        schema: str = "",
        connect_args: Mapping[str, Any] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.dialect: Any
        self._url, self.dialect = _parse(url)
        super().__init__(_location(self._url), clock)
        self.database: Database = DATABASES[self.dialect.name]
        prefix = f"{self.dialect.identifier_preparer.quote(schema)}." if schema else ""
        clock_term = self.database.clock if clock is None else ":clock"
        terms = {"table": f"{prefix}{TABLE}", "clock": clock_term, "on_conflict": self.database.on_conflict}
        self._terms = {**TERMS, **terms, "on_time": TERMS["on_time"].format(**terms)}
        self._options = {**OPTIONS.get(self.dialect.driver, {}), **(connect_args or {})}
        self._process_id = 0
        # Only the last one is this process's own; the connections of those it was forked from are never closed here.
        self._pools: list[_Pool] = []

    @property
    def ddl(self) -> tuple[str, ...]:
        """The statements that create the table."""
        return tuple(statement.format(**self._terms) for statement in self.database.ddl)

    def create(self) -> None:
        """Create the table unless it exists.

        :raises StoreError: it can't be created
        """
        try:
            with self._session() as session:
                for statement in (self.database.begin, self.database.lock_all, *self.ddl, "COMMIT"):
                    session.run(statement)
        except self._errors as error:
            remedy = f"as a user who may create it, run the statements that `{INIT_COMMAND}` prints"
            message = f"the table {TABLE} doesn't exist, and it can't be created ({_first_line(error)}): {remedy}"
            raise StoreError(f"{self.location}: {message}") from None

    def fetch(self, namespace: str, name: str) -> Reply:
        """Return what the table holds under a name."""
        return self._read(lambda session: session.fetch(namespace, name))

    def swap(self, namespace: str, name: str, found: Row | None, following: Row | None, now: float) -> Reply:
        """Write a row if the table still holds what was found."""
        try:
            with self._session() as session:
                reply = session.swap(namespace, name, found, following, now)
                if random.random() * WRITES_PER_PURGE < 1:  # noqa: S311 - spreads the work
                    session.purge(now)
                return reply
        except self._errors as error:
            self.release()
            raise self._error(error, LostReplyError) from error

    @contextlib.contextmanager
    def locked(self, namespace: str, name: str) -> Iterator[_Session]:  # noqa: ARG002 - the session's first fetch locks the row
        """Return a session that locks the entry's row when it fetches it."""
        try:
            with self._session(locks=True) as session:
                yield session
                session.commit()
        except self._errors as error:
            raise self._error(error, LostReplyError) from error

    def entries(self, namespace: str, prefix: str = "") -> list[Entry]:
        """Return the entries whose names begin with a prefix, by name."""
        return self._read(lambda session: session.entries(namespace, prefix))

    def release(self) -> None:
        """Close the connections that are idle."""
        pool = self._pool()
        while pool.idle:
            _close(pool.idle.pop())

    def close(self) -> None:
        """Close the connections of this process."""
        self.release()

    def make_row(self, value: str, written: float, expires: float) -> Row:
        """Return a row to write; where it is kept for long, its time is rounded, which spares the index an update."""
        if expires - written > 24 * HOUR_SECONDS:
            expires = math.ceil(expires / HOUR_SECONDS) * HOUR_SECONDS
        return super().make_row(value, written, expires)

    def set_clock(self, now: float, sent_at: float) -> None:
        """Leave it to the sessions, which know when a statement was sent, and what waited for a lock."""

    def learn_clock(self, now: float, sent_at: float) -> None:
        """Learn the database's clock from its reply to a statement."""
        super().set_clock(now, sent_at)

    @functools.cached_property
    def _errors(self) -> tuple[type[Exception], ...]:
        from sqlalchemy.exc import SQLAlchemyError

        return (self.dialect.dbapi.Error, SQLAlchemyError, OSError, ValueError)

    def _error(self, error: Exception, lost: type[StoreError]) -> StoreError:
        """Return the error for an operation that failed.

        :param lost: what it is when the connection broke
        """
        dbapi = self.dialect.dbapi
        kind = lost if isinstance(error, dbapi.OperationalError | dbapi.InterfaceError) else StoreError
        return kind(f"{self.location}: {_first_line(error)}")

    def _read(self, act: Callable[[_Session], T]) -> T:
        """Run an operation, and once more where the server has closed the connection, or there was no table yet."""
        try:
            with self._session() as session:
                return act(session)
        except self._errors as error:
            self.release()
            if any(
                code in f"{getattr(error, 'sqlstate', '')} {getattr(error, 'pgcode', '')} {error}"
                for code in MISSING_TABLE_CODES
            ):
                self.create()
        try:
            with self._session() as session:
                return act(session)
        except self._errors as error:
            raise self._error(error, UnreachableError) from error

    @contextlib.contextmanager
    def _session(self, *, locks: bool = False) -> Iterator[_Session]:
        self.touch()
        pool = self._pool()
        with pool.places:
            connection = pool.idle.pop() if pool.idle else self._connect()
            completed = False
            try:
                yield _Session(self, connection, locks=locks)
                completed = True
            finally:
                # Whatever interrupted it: a connection that is closed holds no lock.
                (pool.idle.append if completed else _close)(connection)

    def _pool(self) -> _Pool:
        if self._process_id != os.getpid():
            self._pools.append(_Pool([], threading.BoundedSemaphore(MAX_CONNECTIONS)))
            self._process_id = os.getpid()
        return self._pools[-1]

    def _connect(self) -> Any:
        args, options = self.dialect.create_connect_args(self._url)
        if self.dialect.driver == "psycopg":
            # Others send several statements at once only to the server, not to PgBouncer.
            options["cursor_factory"] = self.dialect.dbapi.ClientCursor
        connection = self.dialect.dbapi.connect(*args, **{**self._options, **options})
        self.dialect.set_isolation_level(connection, "AUTOCOMMIT")
        return connection

    @functools.cached_property
    def statements(self) -> Mapping[str, list[_Statement]]:
        """What is sent for each operation."""
        texts = {name: each.format(**self._terms) for name, each in STATEMENTS.items()}
        lock = self.database.lock.format(**self._terms)
        operations: dict[str, tuple[str, ...]] = {name: (each,) for name, each in texts.items()}
        operations |= {"lock": (self.database.begin, lock), "commit": ("COMMIT",)}
        for name in ("replace", "delete", "insert"):
            for suffix, not_durable in (("", ""), (f" {BUDGET_NAME}", NOT_DURABLE)):
                on_time = "" if name == "insert" else f" AND {self._terms['on_time']}"
                returning = f" RETURNING {self._terms['clock']}{not_durable}" if self.database.is_postgresql else ""
                operations[f"{name}{suffix}"] = (f"{texts[name]}{on_time}{returning}",)
                operations[f"{name} and commit{suffix}"] = (texts[name], "COMMIT")
        return {name: self._compile(each) for name, each in operations.items()}

    def _compile(self, statements: Sequence[str]) -> list[_Statement]:
        from sqlalchemy import text

        sent = ("; ".join(statements),) if self.database.is_postgresql else statements
        compiled = [text(each).compile(dialect=self.dialect) for each in sent]
        return [_Statement(str(each), each.positiontup) for each in compiled]


class _Session:
    """A connection; with a lock, in a transaction that begins with the first fetch."""

    def __init__(self, store: SqlStore, connection: Any, *, locks: bool) -> None:
        self._store = store
        self._cursor = connection.cursor()
        self._locks = locks
        self._sent_at = 0.0

    def run(self, statement: str) -> None:
        """Run a statement that has no parameters."""
        self._cursor.execute(statement)

    def fetch(self, namespace: str, name: str) -> Reply:
        """Return what the table holds under a name, and lock it."""
        rows = self._rows("lock", namespace=namespace, name=_fit(name)) if self._locks else []
        if not rows:
            rows = self._rows("fetch", namespace=namespace, name=_fit(name))
            self._store.learn_clock(float(rows[0][0]), self._sent_at)
        clock, *row = rows[0]
        return Reply(_row(row), float(clock))

    def swap(self, namespace: str, name: str, found: Row | None, following: Row | None, now: float) -> Reply:
        """Write a row if the table still holds what was found."""
        operation = "delete" if following is None else "insert" if found is None else "replace"
        suffix = f" {BUDGET_NAME}" if name == BUDGET_NAME else ""
        parameters: dict[str, object] = {"namespace": namespace, "name": _fit(name), "now": now}
        parameters |= {} if found is None else {"found": found.version}
        parameters |= {} if following is None else following.to_dict()
        if self._locks and found is not None:
            # The row is locked, so it is still there.
            self._execute(f"{operation} and commit{suffix}", parameters)
            self._locks = False
            return Reply(None, now, done=True)
        with contextlib.suppress(self._store.dialect.dbapi.IntegrityError):
            self._execute(f"{operation}{suffix}", parameters)
            if self._cursor.rowcount == 1:
                if self._store.database.is_postgresql:
                    self._store.learn_clock(float(self._cursor.fetchone()[0]), self._sent_at)
                return Reply(None, now, done=True)
        return self.fetch(namespace, name)

    def commit(self) -> None:
        """End the transaction, unless a write has."""
        if self._locks:
            self._execute("commit", {})

    def entries(self, namespace: str, prefix: str) -> list[Entry]:
        """Return the entries whose names begin with a prefix, by name."""
        end = prefix and prefix[:-1] + chr(ord(prefix[-1]) + 1)
        rows = self._rows("list", namespace=namespace, prefix=prefix, end=end)
        found = [kept.entry(name, float(clock)) for clock, *row, name in rows if (kept := _row(row)) is not None]
        return [entry for entry in found if entry is not None]

    def purge(self, now: float) -> None:
        """Delete what has expired."""
        self._execute("purge", {"now": now})

    def _rows(self, operation: str, **parameters: object) -> list[Any]:
        self._execute(operation, parameters)
        return list(self._cursor.fetchall())

    def _execute(self, operation: str, parameters: Mapping[str, object]) -> None:
        # Only tests set a clock.
        values = {"clock": self._store.now(), **parameters}
        for text, order in self._store.statements[operation]:
            self._sent_at = time.monotonic()
            self._cursor.execute(text, values if order is None else [values[each] for each in order])
        if self._store.dialect.driver == "psycopg":
            # It shows the result of the first of several statements, other drivers that of the last one.
            while self._cursor.nextset():
                pass


def _row(fields: Sequence[Any]) -> Row | None:
    value, version, written, expires = fields
    return None if version is None else Row(value, version, float(written), float(expires))


def _fit(name: str) -> str:
    """Return a name that fits into an index."""
    if len(name) <= MAX_NAME_LENGTH:
        return name
    return f"{name[: MAX_NAME_LENGTH - 40]}~{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}"


def _first_line(error: Exception) -> str:
    """Return a driver's message without details, which may quote a row."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def _close(connection: Any) -> None:
    # It may be broken already, in whatever way its driver reports that.
    with contextlib.suppress(Exception):
        connection.close()


def _parse(url: str) -> tuple[URL, Any]:
    """Read a URL of SQLAlchemy, and return it with what SQLAlchemy knows about its database and driver."""
    from sqlalchemy import create_engine
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    scheme, _, rest = url.partition("://")
    scheme = _with_driver(scheme.lower())
    try:
        parsed = make_url(f"{scheme}://{rest}")
        dialect: Any = create_engine(parsed).dialect
    except ImportError as error:
        raise StateUrlError(f"{scheme}://…", f"its driver to be installed ({error})") from None
    except (SQLAlchemyError, ValueError):
        raise StateUrlError(f"{scheme}://…, which can't be read", EXPECTED_DATABASE) from None
    if dialect.name not in DATABASES or dialect.is_async:
        raise StateUrlError(f"{scheme}://…", f"{EXPECTED_DATABASE}, with a driver that isn't asynchronous")
    return parsed, dialect


def _with_driver(scheme: str) -> str:
    """Return a scheme with the first driver that is installed: SQLAlchemy's versions differ in which they assume."""
    name = {"postgres": "postgresql"}.get(scheme, scheme)
    installed = (driver for module, driver in DRIVERS.get(name, ()) if importlib.util.find_spec(module))
    return next((f"{name}+{driver}" for driver in installed), name)


def _location(url: URL) -> str:
    port = f":{url.port}" if url.port else ""
    return f"{url.get_backend_name()}://{url.host or ''}{port}/{url.database or ''}"
