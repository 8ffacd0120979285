"""What only a database does: its table, its locks, and what a connection that breaks leaves behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from uuid import uuid4

import pytest

from techflow_provider.state import sql
from techflow_provider.state.budget import RequestClass, SharedBudget
from techflow_provider.state.optimistic import LostReplyError, Operation, PendingUpdate, Reply
from techflow_provider.state.sql import SqlStore
from techflow_provider.state.store import BUDGET_NAME, Entry, StateUrlError, StoreError, Write, read_only
from tests.servers import Postgres, Proxy
from tests.state.conftest import in_threads


def increment(entry: Entry | None, _: float) -> tuple[Write, int]:
    value = 1 if entry is None else int(entry.value) + 1
    return Write(str(value), 60.0), value


def value(store: SqlStore, name: str) -> str | None:
    entry = store.update("a", name, read_only)[0]
    return None if entry is None else entry.value


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """The name of a database of the test's own."""
    name = f"test_{uuid4().hex}"
    postgres.query("postgres", f"CREATE DATABASE {name}")
    yield name
    postgres.query("postgres", f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def url(postgres: Postgres, database: str) -> str:
    return f"postgresql://airflow@127.0.0.1:{postgres.port}/{database}"


class CountingStore(SqlStore):
    """Counts what is sent, and loses replies on request."""

    round_trips = 0
    losses = 0

    def exchange(self, operations: Sequence[Operation]) -> list[Reply]:
        self.round_trips += len(operations)
        replies = super().exchange(operations)
        if self.losses and any(each.now is not None for each in operations):
            self.losses -= 1
            raise LostReplyError("the connection broke")
        return replies


class TestTheTable:
    """It is created with the first operation, by one process at a time."""

    def test_many_that_need_it_at_once_find_one(self, url):
        stores = [SqlStore(url) for _ in range(6)]
        waiting = iter(stores)
        in_threads(lambda: next(waiting).update("a", "count", increment), len(stores))
        assert value(stores[0], "count") == "6"

    def test_an_error_says_how_to_create_it_where_the_user_may_not(self, postgres, database, url):
        postgres.query(database, f"CREATE ROLE {database}_user LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        store = SqlStore(url.replace("airflow@", f"{database}_user@"))
        with pytest.raises(StoreError, match=r"techflow_state doesn't exist.+techflow_provider state init"):
            store.update("a", "b", increment)
        for statement in store.ddl:
            postgres.query(database, statement)
        postgres.query(database, f"GRANT SELECT, INSERT, UPDATE, DELETE ON techflow_state TO {database}_user")
        assert store.update("a", "b", increment) == 1
        postgres.query(database, f"DROP OWNED BY {database}_user; DROP ROLE {database}_user")

    def test_it_is_in_the_given_schema(self, postgres, database, url):
        postgres.query(database, "CREATE SCHEMA other")
        SqlStore(url, schema="other").update("a", "b", increment)
        assert postgres.query(database, "SELECT value FROM other.techflow_state") == [["1"]]

    def test_what_has_expired_is_deleted_by_later_writes(self, postgres, database, url, monkeypatch):
        store = SqlStore(url)
        store.update("a", "old", lambda *_: (Write("1", -1000.0), None))
        store.update("a", "kept", increment)
        monkeypatch.setattr(sql, "WRITES_PER_PURGE", 1)
        store.update("a", "new", increment)
        assert postgres.query(database, "SELECT name FROM techflow_state ORDER BY name") == [["kept"], ["new"]]


class TestRoundTrips:
    """One process that writes an entry alone needs one round trip each time."""

    def test_an_update_takes_one_where_nobody_else_writes(self, url):
        store = CountingStore(url)
        store.update("a", "count", increment)
        store.round_trips = 0
        assert [store.update("a", "count", increment) for _ in range(3)] == [2, 3, 4]
        store.update("a", "another", increment)
        assert store.round_trips == 4

    def test_an_update_takes_two_where_another_process_keeps_writing(self, url):
        store, other = CountingStore(url), SqlStore(url)
        for _ in range(3):
            store.update("a", "count", increment)
            other.update("a", "count", increment)
        store.round_trips = 0
        assert store.update("a", "count", increment) == 7
        assert store.round_trips == 2

    def test_a_change_that_writes_nothing_decides_on_what_is_there(self, url):
        store, other = SqlStore(url), SqlStore(url)
        store.update("a", "b", increment)
        other.update("a", "b", increment)
        assert store.update("a", "b", lambda entry, _: (None, entry and entry.value)) == "2"


class TestALostReply:
    """A write whose reply was lost is neither lost nor repeated."""

    @pytest.mark.parametrize("losses", [1, 2])
    def test_what_was_written_is_found(self, url, losses):
        store = CountingStore(url)
        store.update("a", "count", increment)
        store.losses = losses
        assert store.update("a", "count", increment) == 2
        assert value(store, "count") == "2"

    def test_a_server_that_closes_its_connections_is_connected_to_again(self, postgres, database, url):
        store = SqlStore(url)
        for expected in (1, 2, 3):
            assert store.update("a", "count", increment) == expected
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            postgres.query(database, f"{others} AND pid <> pg_backend_pid()")

    def test_a_connection_that_was_interrupted_in_a_transaction_is_closed(self, url):
        store, other = SqlStore(url), SqlStore(url)
        store.update("a", "count", increment)

        def interrupt(*_: object) -> tuple[None, None]:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.compete(PendingUpdate(store, "a", "count", interrupt))
        assert other.update("a", "count", increment) == 2


def test_a_slow_network_takes_no_more_round_trips(postgres, url):
    with Proxy(postgres.port) as proxy:
        proxy.delay_seconds = 0.15
        store = CountingStore(url.replace(str(postgres.port), str(proxy.port)))
        assert [store.update("a", "count", increment) for _ in range(3)] == [1, 2, 3]
        assert store.round_trips == 4


class TestCompetition:
    """Processes that want the same entry at once queue for its row."""

    def test_another_waits_while_the_row_is_locked(self, url):
        store, other = SqlStore(url), SqlStore(url)
        store.update("a", "count", increment)
        waiting = threading.Thread(target=lambda: other.update("a", "count", increment))

        def begin_another(entry: Entry | None, now: float) -> tuple[Write, int]:
            waiting.start()
            return increment(entry, now)

        store.compete(update := PendingUpdate(store, "a", "count", begin_another))
        waiting.join()
        assert (update.is_done, update.result) == (True, 2)
        assert value(store, "count") == "3"

    def test_no_update_of_many_threads_is_lost(self, url):
        stores = [SqlStore(url) for _ in range(4)]
        waiting = iter(stores * 2)
        in_threads(lambda: [next(waiting).update("a", "count", increment) for _ in range(1)], 8)
        budget = SharedBudget(stores[0], "a")
        assert budget.reserve(RequestClass.COMMAND, 1e6).granted
        assert value(stores[1], "count") == "8"


def test_a_budgets_commit_does_not_wait_for_the_disk_and_all_others_do(url):
    statements = SqlStore(url)._statements
    for operation in ("insert", "replace", "delete"):
        assert "synchronous_commit" not in statements[operation][0]
        assert "synchronous_commit" in statements[f"{operation} {BUDGET_NAME}"][0]


def test_a_name_that_is_too_long_for_an_index_is_kept_and_found(url):
    store, names = SqlStore(url), ["é" * 4000, "é" * 4001]
    for name in names:
        store.update("a", name, increment)
    assert [value(store, name) for name in names] == ["1", "1"]
    assert len(store.entries("a", "é")) == 2


def test_a_text_that_a_database_cannot_hold_is_an_error(url):
    with pytest.raises(StoreError):
        SqlStore(url).update("a", "b", lambda *_: (Write("\0", 10.0), None))


def test_the_location_has_no_password():
    store = SqlStore("PostgreSQL+psycopg2://user:secret@host:5433/airflow?sslmode=require")
    assert store.location == "postgresql://host:5433/airflow"
    assert "secret" not in repr(vars(store))


@pytest.mark.parametrize("url", ["oracle://user:secret@host/db", "postgresql://user:secret@host:port/db", "mssql://h"])
def test_a_url_that_names_no_database_is_refused_without_its_password(url):
    with pytest.raises(StateUrlError) as caught:
        SqlStore(url)
    assert "secret" not in str(caught.value)
