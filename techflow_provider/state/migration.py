"""The records that an earlier version left in this host's file, when the state moves to a store for several hosts."""

from __future__ import annotations

from techflow_provider.state.identity import store_entry
from techflow_provider.state.sqlite import SqliteStore
from techflow_provider.state.store import BUDGET_NAME, Entry, Store, Write, read_only

# The mark in the file that says that an account's records have been copied.
NAMESPACE = "migrated"
MARK_TTL_SECONDS = 10 * 365 * 24 * 3600.0
# As long as a record of a start is kept; how old the records are is not known any more.
RECORD_TTL_SECONDS = 30 * 24 * 3600.0


def migrate(file: SqliteStore, store: Store, key: str) -> int:
    """Copy what a file holds for an account unless that has been done, and return how many records those are.

    Other processes of this host wait until it is done, so that none concludes anything from a record that is missing.

    :param key: the first part of the namespaces
    """
    namespaces = [each for each in file.namespaces() if each.partition("/")[0] == key]
    records = [(each, entry) for each in namespaces for entry in file.entries(each) if entry.name != BUDGET_NAME]
    # An API server may serve this very file, and would wait for this process's lock on it.
    if records and file.update(NAMESPACE, key, read_only)[0] is None and _is_same(file, store):
        return 0

    def copy(mark: Entry | None, _: float) -> tuple[Write | None, int]:
        if mark is not None:
            return None, 0
        for namespace, record in records:
            store.update(namespace, record.name, lambda present, _, record=record: _keep(present, record))  # type: ignore[misc]
        return Write(store.location, MARK_TTL_SECONDS), len(records)

    return file.update(NAMESPACE, key, copy) if records else 0


def _is_same(file: SqliteStore, store: Store) -> bool:
    return store_entry(file).value == store_entry(store).value


def _keep(present: Entry | None, record: Entry) -> tuple[Write | None, None]:
    return (Write(record.value, RECORD_TTL_SECONDS), None) if present is None else (None, None)
