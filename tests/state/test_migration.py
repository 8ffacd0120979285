"""Records in a file are copied to a store for several hosts once, however many processes find them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from techflow_provider.state.budget import RequestClass, SharedBudget
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.migration import migrate
from techflow_provider.state.sqlite import SqliteStore
from techflow_provider.state.store import BUDGET_NAME, StoreError, Write, read_only


def write(store: SqliteStore | MemoryStore, namespace: str, name: str, value: str | None) -> None:
    store.update(namespace, name, lambda *_: (Write(value, 60.0), None))


@pytest.fixture
def file(sqlite_path: Path) -> SqliteStore:
    """A file with a record and a claim of one account, its budget, and a record of another account."""
    store = SqliteStore(sqlite_path)
    for namespace, name in (("one/attempts", "task"), ("one/claims", "exec_1"), ("two/attempts", "task")):
        write(store, namespace, name, namespace)
    SharedBudget(store, "one").reserve(RequestClass.COMMAND, 1.0)
    return store


def test_an_accounts_records_are_copied_and_its_budget_is_not(file, store):
    assert migrate(file, store, "one") == 2
    assert [entry.value for entry in store.entries("one/attempts") + store.entries("one/claims")] == [
        "one/attempts",
        "one/claims",
    ]
    assert store.entries("two/attempts") == []
    assert store.update("one", BUDGET_NAME, read_only)[0] is None


def test_what_is_deleted_later_does_not_come_back(file, store):
    migrate(file, store, "one")
    write(store, "one/attempts", "task", None)
    assert migrate(file, store, "one") == 0
    assert store.entries("one/attempts") == []


def test_what_is_there_already_is_kept(file, store):
    write(store, "one/attempts", "task", "newer")
    migrate(file, store, "one")
    assert [entry.value for entry in store.entries("one/attempts")] == ["newer"]


def test_it_begins_anew_where_the_store_fails_in_between(file, store):
    failing: Any = MemoryStore()
    failing.update = Mock(side_effect=StoreError("gone"))
    with pytest.raises(StoreError):
        migrate(file, failing, "one")
    assert migrate(file, store, "one") == 2


def test_a_file_without_records_is_left_alone(sqlite_path, store):
    file = SqliteStore(sqlite_path)
    assert migrate(file, store, "one") == 0
    assert file.entries("migrated") == []


def test_nothing_is_copied_to_a_store_that_is_the_same_file(file, sqlite_path):
    # An API server on this host opens the file for itself.
    served = SqliteStore(sqlite_path, timeout_seconds=1.0)
    assert migrate(file, served, "one") == 0
    assert [entry.value for entry in served.entries("one/attempts")] == ["one/attempts"]
