"""What every store does with its two operations, and which store a URL names."""

from __future__ import annotations

import re

import pytest

from techflow_provider.state.open import open_store
from techflow_provider.state.sqlite import SqliteStore
from techflow_provider.state.store import Entry, StateUrlError, Write, budget_key, read_only
from tests.state.conftest import in_threads


def write(store, namespace: str, name: str, value: str | None, ttl_seconds: float = 10.0) -> None:
    store.update(namespace, name, lambda *_: (Write(value, ttl_seconds), None))


def read(store, namespace: str, name: str) -> Entry | None:
    entry: Entry | None = store.update(namespace, name, read_only)[0]
    return entry


class TestUpdate:
    """An entry is read, decided on and written in one step."""

    def test_it_finds_the_entry_with_its_age_and_the_stores_clock(self, each_store, key, clock):
        write(each_store, key, "a b", "text\nwith lines")
        clock.advance(3)
        found = each_store.update(key, "a b", lambda *arguments: (None, arguments))
        assert found == (Entry("a b", "text\nwith lines", 3.0), clock.now)

    def test_it_finds_none_where_none_is_written(self, each_store, key, clock):
        assert each_store.update(key, "a", read_only) == (None, clock.now)
        write(each_store, f"{key}2", "a", "1")
        write(each_store, key, "b", "1")
        assert read(each_store, key, "a") is None

    def test_it_returns_the_changes_result(self, each_store, key):
        assert each_store.update(key, "a", lambda *_: (Write("1", 10.0), "result")) == "result"

    def test_it_writes_nothing_where_the_change_does_not(self, each_store, key, clock):
        write(each_store, key, "a", "1")
        clock.advance(4)
        each_store.update(key, "a", lambda *_: (None, None))
        assert read(each_store, key, "a") == Entry("a", "1", 4.0)

    def test_it_can_delete(self, each_store, key):
        write(each_store, key, "a", "1")
        for _ in range(2):
            write(each_store, key, "a", None)
            assert read(each_store, key, "a") is None

    def test_an_empty_text_is_a_text(self, each_store, key):
        write(each_store, key, "a", "")
        assert read(each_store, key, "a") == Entry("a", "", 0.0)

    def test_an_entry_is_gone_when_its_time_is_over(self, each_store, key, clock):
        write(each_store, key, "a", "1", 10.0)
        clock.advance(9)
        assert read(each_store, key, "a") is not None
        clock.advance(1)
        assert read(each_store, key, "a") is None
        assert each_store.entries(key) == []

    def test_an_entry_can_be_written_again_when_its_time_is_over(self, each_store, key, clock):
        write(each_store, key, "a", "1", 10.0)
        clock.advance(10)
        write(each_store, key, "a", "2", 10.0)
        assert read(each_store, key, "a") == Entry("a", "2", 0.0)

    def test_writing_begins_its_time_anew(self, each_store, key, clock):
        write(each_store, key, "a", "1", 10.0)
        clock.advance(8)
        write(each_store, key, "a", "2", 10.0)
        clock.advance(8)
        assert read(each_store, key, "a") == Entry("a", "2", 8.0)

    def test_a_change_that_fails_writes_nothing_and_leaves_the_store_usable(self, each_store, key):
        write(each_store, key, "a", "1")
        with pytest.raises(ZeroDivisionError):
            each_store.update(key, "a", lambda *_: (None, 1 / 0))
        write(each_store, key, "b", "2")
        assert [entry.value for entry in each_store.entries(key)] == ["1", "2"]

    def test_no_update_of_many_threads_is_lost(self, each_store, key):
        def change(entry: Entry | None, _: float) -> tuple[Write, None]:
            return Write(str(1 if entry is None else int(entry.value) + 1), 10.0), None

        in_threads(lambda: [each_store.update(key, "count", change) for _ in range(10)], 4)
        assert read(each_store, key, "count") == Entry("count", "40", 0.0)


class TestSeveralUpdates:
    """Several entries are updated in one round trip, each in one step."""

    def test_each_returns_its_result_and_sees_what_others_wrote(self, each_store, key, clock):
        write(each_store, key, "kept", "1")
        write(each_store, f"{key}/deep", "deleted", "2")
        clock.advance(1)
        updates = (
            (key, "kept", read_only),
            (f"{key}/deep", "deleted", lambda entry, _: (Write(None), entry.value)),
            (f"{key}/deep", "new", lambda entry, _: (Write("3", 10.0), entry)),
            (key, "absent", lambda entry, _: (None, entry)),
        )
        results = each_store.update_many(updates)
        assert results == [(Entry("kept", "1", 1.0), clock.now), "2", None, None]
        assert [each.name for each in each_store.entries(f"{key}/deep")] == ["new"]
        assert each_store.update_many([]) == []

    def test_there_may_be_any_number_of_them(self, each_store, key):
        names = [f"{number:02}" for number in range(45)]
        count = [(key, name, lambda entry, _: (Write("1", 10.0), entry and entry.value)) for name in names]
        assert each_store.update_many(count) == [None] * 45
        assert each_store.update_many(count) == ["1"] * 45
        assert [each.name for each in each_store.entries(key)] == names


def test_entries_are_listed_by_name_with_a_prefix_and_a_namespace(each_store, key):
    for name in ("b/2", "a/1", "b/1", "%/1", "B/1"):
        write(each_store, key, name, name)
    write(each_store, f"{key}2", "b/3", "")
    assert each_store.entries(key, "b/") == [Entry(name, name, 0.0) for name in ("b/1", "b/2")]
    assert [entry.name for entry in each_store.entries(key, "%")] == ["%/1"]
    assert [entry.name for entry in each_store.entries(key)] == ["%/1", "B/1", "a/1", "b/1", "b/2"]


def test_a_closed_store_opens_again_with_the_next_operation(each_store, key):
    write(each_store, key, "a", "1")
    each_store.close()
    assert read(each_store, key, "a") == Entry("a", "1", 0.0)


class TestStateUrl:
    """A URL names a store, or an error says what is expected, without a password."""

    @pytest.mark.parametrize("url", ["sqlite:////var/state.sqlite", "/var/state.sqlite"])
    def test_a_path_names_a_file(self, url):
        store = open_store(url)
        assert isinstance(store, SqliteStore)
        assert store.location == "/var/state.sqlite"

    @pytest.mark.parametrize(
        ("url", "location"),
        [
            ("redis://user:secret@host:7000/2?socket_timeout=3", "redis://host:7000/2"),
            ("rediss://:secret@host", "rediss://host:6379"),
            ("unix://:secret@/run/redis.sock?db=1", "unix:///run/redis.sock"),
            ("REDIS://:secret@Host", "redis://host:6379"),
            ("valkey://user:secret@host/3", "valkey://host:6379/3"),
            ("valkeys://:secret@[::1]:7000", "valkeys://[::1]:7000"),
            ("redis+sentinel://:secret@a,b:7000/main/1?sentinel_password=s3", "redis+sentinel://a:26379,b:7000/main/1"),
            ("rediss+sentinel://a/main", "rediss+sentinel://a:26379/main"),
            ("redis+sentinel://a/1?master_name=main", "redis+sentinel://a:26379/main/1"),
            ("redis://:se%23c%2Fr%40et@[fe80::1%25eth0]/2", "redis://[fe80::1%25eth0]:6379/2"),
            ("redis://host/1?db=3", "redis://host:6379/3"),
            ("redis+socket://:secret@/run/redis.sock?virtual_host=1", "unix:///run/redis.sock"),
            ("redis-socket:///run/redis.sock", "unix:///run/redis.sock"),
            ("redis+cluster://:secret@a:7000,b:7001", "redis+cluster://a:7000,b:7001"),
            ("postgresql://user:secret@host/db", "postgresql://host/db"),
            ("POSTGRES://user:secret@host:5433/db", "postgresql://host:5433/db"),
            ("postgresql+psycopg2://:secret@host/db?sslmode=require", "postgresql://host/db"),
        ],
    )
    def test_the_location_of_a_server_has_no_password(self, url, location):
        assert open_store(url).location == location

    def test_all_that_name_a_store_get_the_same_one(self):
        assert open_store("/var/one.sqlite") is open_store("/var/one.sqlite")

    @pytest.mark.parametrize(
        "url",
        [
            "oracle://user:secret@host/db",
            "postgresql://user:secret@host:port/db",
            "postgresql+asyncpg://user:secret@host/db",
            "redis+sentinel://user:secret@a,b",
            "redis+other://user:secret@host",
            "redis://user:secret@a,b",
            "redis://user:secret@host:port/0",
            "redis://user:secret@host/secret",
            "redis://user:4711/secret@host/0",
            "redis://user:some#secret@host/0",
            "redis://user:some?secret@host/0",
            "redis://user:secret@host name/0",
            "redis://user:secret@${HOST}/0",
            "redis://user:secret@host/0?db=one",
            "unix://user:secret@/run/redis.sock?db=one",
            "redis+sentinel://user:secret@a/0",
            "redis+cluster://user:secret@a/1",
            "postgresql://user:some@secret@host/db",
            "postgresql://user:some@4711/secret@host/db",
            "'redis://user:secret@host/0'",
            "user:secret@host",
            "sqlite:///relative:secret@path",
            "relative/path",
            "",
        ],
    )
    def test_anything_else_is_refused_with_what_is_expected(self, url):
        with pytest.raises(StateUrlError, match=r"state_url: expected .+, got .+") as caught:
            open_store(url)
        assert not re.search("user|some#|4711|secret@", caught.value.received)

    def test_a_missing_redis_package_is_named(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(StateUrlError, match=r"pip install 'airflow-provider-techflow\[redis\]'"):
            open_store("redis://nowhere")


class TestBudgetKey:
    """The budget's name is the same for the same key and server, and does not reveal the key."""

    @pytest.mark.parametrize(
        "url", ["https://API.techflow.com/v2", "https://api.techflow.com:443/v2/", " HTTPS://api.techflow.com/v2"]
    )
    def test_spelling_of_the_url_does_not_matter(self, url):
        assert budget_key(url, "key") == budget_key("https://api.techflow.com/v2", "key")

    def test_another_key_or_server_is_another_budget(self):
        names = {budget_key(url, key) for url in ("https://a/v2", "https://a/v3", "http://a/v2") for key in ("k", "l")}
        assert len(names) == 6
        assert all(len(name) == 32 for name in names)
