"""What processes record for each other: deliveries, cursors and wake-ups."""

from __future__ import annotations

from collections import Counter

import pytest

from techflow_provider.state.records import Records
from techflow_provider.state.sqlite import SqliteStore
from techflow_provider.state.store import Entry, Write, read_only

entries = SqliteStore.entries


@pytest.fixture
def records(store, key) -> Records:
    return Records(store, key)


def test_a_delivery_is_new_once(records, clock):
    assert [records.see_delivery("d", 60.0) for _ in range(3)] == [True, False, False]
    clock.advance(60)
    assert records.see_delivery("d", 60.0)


def test_the_wake_up_counter_is_one_for_all_that_share_the_key(store, key, records):
    assert records.wakeups() == 0
    assert [Records(store, key).notify(), records.notify()] == [1, 2]
    assert (records.wakeups(), Records(store, f"{key}2").wakeups()) == (2, 0)


def test_a_wake_up_counter_that_can_not_be_read_begins_anew(store, key, records):
    store.update("wakeups", key, lambda *_: (Write("many", 60.0), None))
    assert (records.wakeups(), records.notify()) == (0, 1)


def test_a_process_reads_all_wake_up_counters_at_most_once_a_second(sqlite_path, monkeypatch):
    stores = [SqliteStore(sqlite_path) for _ in range(3)]
    now: list[float] = [1000.0]
    reads: Counter[str] = Counter()
    monkeypatch.setattr("techflow_provider.state.records.time.monotonic", lambda: now[0])

    def count(*arguments):
        reads["entries"] += 1
        return entries(*arguments)

    monkeypatch.setattr(SqliteStore, "entries", count)
    pollers = [Records(store, f"key {number}") for number, store in enumerate(stores)]
    assert [poller.wakeups() for _ in range(10) for poller in pollers] == [0] * 30
    assert reads.total() == 1
    for number in range(3):
        # As another process does it.
        stores[0].update("wakeups", f"key {number}", lambda *_, number=number: (Write(f"{number + 1}", 60.0), None))
    now[0] += 1.0
    assert [poller.wakeups() for poller in pollers] == [1, 2, 3]
    assert reads.total() == 2


def test_the_ages_of_deliveries_are_listed(records, clock):
    records.see_delivery("d")
    clock.advance(5)
    records.see_delivery("e")
    assert records.delivery_ages() == [5.0, 0.0]


def test_a_cursor_is_changed_from_what_is_stored(records):
    assert records.update_cursor("trigger", read_only)[0] is None
    for text in "ab":

        def append(entry: Entry | None, _: float, text: str = text) -> tuple[Write, None]:
            return Write((entry.value if entry else "") + text, 60.0), None

        records.update_cursor("trigger", append)
    assert records.update_cursor("trigger", read_only)[0].value == "ab"
