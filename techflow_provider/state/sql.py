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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from techflow_provider.state.optimistic import (
    LostReplyError,
    Operation,
    OptimisticStore,
    PendingUpdate,
    Reply,
    Row,
    UnreachableError,
)
from techflow_provider.state.sql_statements import DATABASES, DRIVERS, OPTIONS, STATEMENTS, TERMS
from techflow_provider.state.store import BUDGET_NAME, Entry, StateUrlError, StoreError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL
    from sqlalchemy.pool import QueuePool

T = TypeVar("T")
Parameters = Mapping[str, object]

TABLE = "techflow_state"
# Longer names, which don't fit into an index, are shortened.
MAX_NAME_LENGTH = 480
MAX_CONNECTIONS = 8
# One write in so many deletes what has expired.
WRITES_PER_PURGE = 200
HOUR_SECONDS = 3600.0
EXPECTED_DATABASE = "postgresql://…, mysql://… or another URL of SQLAlchemy for PostgreSQL, MySQL or SQLite"
INIT_COMMAND = "python -m techflow_provider state init"
MISSING_TABLE = ("UndefinedTable", "1146", "no such table")


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
        self._dialect: Any
        self._url, self._dialect = _parse(url)
        super().__init__(_location(self._url), clock)
        self._database = DATABASES[self._dialect.name]
        prefix = f"{self._dialect.identifier_preparer.quote(schema)}." if schema else ""
        self._terms = {**TERMS, **self._database.terms, "table": f"{prefix}{TABLE}"}
        if clock is not None:
            self._terms["clock"] = ":clock"
        self._options = {**OPTIONS.get(self._dialect.driver, {}), **(connect_args or {})}

    @property
    def ddl(self) -> tuple[str, ...]:
        """The statements that create the table."""
        return tuple(each.format_map(self._terms) for each in self._database.ddl)

    def create(self) -> None:
        """Create the table unless it exists.

        :raises StoreError: it can't be created
        """
        try:
            with self._cursor() as cursor:
                for statement in (self._database.begin, self._database.lock_all, *self.ddl, "COMMIT"):
                    cursor.execute(statement)
        except self._errors as error:
            remedy = f"as a user who may create it, run the statements that `{INIT_COMMAND}` prints"
            message = f"the table {TABLE} doesn't exist, and it can't be created ({_first_line(error)}): {remedy}"
            raise StoreError(f"{self.location}: {message}") from None

    def exchange(self, operations: Sequence[Operation]) -> list[Reply]:
        """Carry out operations, one after the other."""
        writes = any(each.now is not None for each in operations)
        return self._run(lambda cursor: [self._carry_out(cursor, each) for each in operations], writes=writes)

    def compete(self, update: PendingUpdate) -> None:
        """Attempt an update while others that want its entry wait for its row."""

        def act(cursor: Any) -> Reply | None:
            cursor.execute(self._database.begin)
            found, reply = self._select(cursor, "lock", Operation(*update.key)), None
            if found.row is not None:
                update.forget()
                update.receive(found)
                operation = None if update.is_done else update.next()
                reply = None if operation is None else self._carry_out(cursor, operation)
            cursor.execute("COMMIT")
            return reply

        reply = self._run(act, writes=True)
        if reply is not None:
            update.receive(reply)

    def entries(self, namespace: str, prefix: str = "") -> list[Entry]:
        """Return the entries whose names begin with a prefix, by name."""
        end = prefix and prefix[:-1] + chr(ord(prefix[-1]) + 1)
        parameters = {"namespace": namespace, "prefix": prefix, "end": end}

        def act(cursor: Any) -> list[Entry | None]:
            self._execute(cursor, "list", parameters)
            return [Row(*row).entry(name, float(clock)) for clock, *row, name in cursor.fetchall()]

        return [entry for entry in self._run(act, writes=False) if entry is not None]

    def connect(self) -> QueuePool:
        """Return a pool of connections, which connects when it is used."""
        from sqlalchemy.pool import QueuePool

        return QueuePool(self._connect, pool_size=MAX_CONNECTIONS, max_overflow=0, reset_on_return=None)

    def close(self) -> None:
        """Close the connections of this process."""
        pool = self._clients.pop(os.getpid(), None)
        if pool is not None:
            pool.dispose()

    def make_row(self, value: str, written: float, expires: float) -> Row:
        """Return a row to write; where it is kept for long, its time is rounded, which spares the index an update."""
        if expires - written > 24 * HOUR_SECONDS:
            expires = math.ceil(expires / HOUR_SECONDS) * HOUR_SECONDS
        return super().make_row(value, written, expires)

    def _carry_out(self, cursor: Any, operation: Operation) -> Reply:
        found, following, now = operation.found, operation.following, operation.now
        if now is None:
            return self._select(cursor, "fetch", operation)
        name = "delete" if following is None else "insert" if found is None else "replace"
        parameters = {"namespace": operation.namespace, "name": _fit(operation.name), "now": now}
        parameters |= {} if found is None else {"found": found.version}
        row = following or Row("", "", 0.0, 0.0)
        parameters |= {"value": row.value, "version": row.version, "written": row.written, "expires": row.expires}
        with contextlib.suppress(self._dialect.dbapi.IntegrityError):
            self._execute(cursor, f"{name} {BUDGET_NAME}" if operation.name == BUDGET_NAME else name, parameters)
            if cursor.rowcount == 1:
                if random.random() * WRITES_PER_PURGE < 1:  # noqa: S311 - spreads the work
                    self._execute(cursor, "purge", parameters)
                return Reply(None, now, done=True)
        return self._select(cursor, "fetch", operation)

    def _select(self, cursor: Any, statement: str, operation: Operation) -> Reply:
        """Return what the table holds, and learn the database's clock unless others were waited for."""
        sent_at = time.monotonic()
        self._execute(cursor, statement, {"namespace": operation.namespace, "name": _fit(operation.name)})
        clock, *row = cursor.fetchone() or (0.0, None, None, 0.0, 0.0)
        if statement == "fetch":
            self.set_clock(float(clock), sent_at)
        return Reply(None if row[1] is None else Row(*row), float(clock))

    def _execute(self, cursor: Any, statement: str, parameters: Parameters) -> None:
        text, order = self._statements[statement]
        # Only tests set a clock.
        values = {"clock": self.now(), **parameters}
        cursor.execute(text, values if order is None else [values[each] for each in order])

    @functools.cached_property
    def _statements(self) -> Mapping[str, tuple[str, Sequence[str] | None]]:
        """What is sent for each operation, and the order of its parameters where the driver doesn't take names."""
        from sqlalchemy import text

        texts = {**STATEMENTS, "lock": self._database.lock}
        for name in ("insert", "replace", "delete"):
            texts[f"{name} {BUDGET_NAME}"] = texts[name] + self._database.not_durable
        statements = {name: text(each.format_map(self._terms)) for name, each in texts.items()}
        compiled = {name: each.compile(dialect=self._dialect) for name, each in statements.items()}
        return {name: (str(each), each.positiontup) for name, each in compiled.items()}

    @functools.cached_property
    def _errors(self) -> tuple[type[Exception], ...]:
        from sqlalchemy.exc import SQLAlchemyError

        return (self._dialect.dbapi.Error, SQLAlchemyError, OSError, ValueError)

    def _run(self, act: Callable[[Any], T], *, writes: bool) -> T:
        """Run an operation, and once more where there was no table, or where it only reads and a connection broke."""
        for is_last in (False, True):
            try:
                with self._cursor() as cursor:
                    return act(cursor)
            except self._errors as error:
                self.close()
                if any(each in f"{type(error).__name__} {error}" for each in MISSING_TABLE):
                    self.create()
                elif writes or is_last:
                    dbapi = self._dialect.dbapi
                    is_broken = isinstance(error, dbapi.OperationalError | dbapi.InterfaceError)
                    kind = StoreError if not is_broken else LostReplyError if writes else UnreachableError
                    raise kind(f"{self.location}: {_first_line(error)}") from error
        raise StoreError(f"{self.location}: the table {TABLE} was deleted")

    @contextlib.contextmanager
    def _cursor(self) -> Iterator[Any]:
        connection, is_over = self.client().connect(), False
        try:
            yield connection.cursor()
            is_over = True
        finally:
            if not is_over:
                # Whatever interrupted it: a connection that is closed holds no lock.
                connection.invalidate()
            connection.close()

    def _connect(self) -> Any:
        args, options = self._dialect.create_connect_args(self._url)
        connection = self._dialect.dbapi.connect(*args, **{**self._options, **options})
        self._dialect.set_isolation_level(connection, "AUTOCOMMIT")
        return connection


def _fit(name: str) -> str:
    """Return a name that fits into an index."""
    if len(name) <= MAX_NAME_LENGTH:
        return name
    return f"{name[: MAX_NAME_LENGTH - 40]}~{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}"


def _first_line(error: Exception) -> str:
    """Return a driver's message without details, which may quote a row."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


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
    if parsed.host and "@" in f"{parsed.host}{parsed.database}":
        # What follows the first @ is a part of the password, which must not be shown.
        raise StateUrlError(
            f"{scheme}://…, which can't be read", f"{EXPECTED_DATABASE}, with %40 for @ in the password"
        )
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
