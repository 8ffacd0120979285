"""What every store does, and that the Lua in Redis says the same as the Python elsewhere."""

from __future__ import annotations

import math
from random import Random

import pytest

from techflow_provider.state.gcra import Policy, RequestClass, Reservation, ReservationRequest
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.redis import RedisStore
from techflow_provider.state.sqlite import SqliteStore
from techflow_provider.state.store import StateUrlError, budget_key, open_store

POLICY = Policy.of(100, 6)
COMMAND = RequestClass.COMMAND


class TestBudget:
    """The account is kept from one operation to the next."""

    def test_an_account_begins_without_a_burst(self, store, key):
        assert store.take(key, POLICY, ReservationRequest(COMMAND)).wait_seconds > 0

    def test_a_whole_burst_may_leave_after_a_pause(self, store, key, clock):
        store.take(key, POLICY, ReservationRequest(COMMAND))
        clock.advance(60)
        answers = [store.take(key, POLICY, ReservationRequest(COMMAND)).may_send for _ in range(8)]
        assert answers == [True] * 6 + [False] * 2

    def test_accounts_of_different_keys_are_independent(self, store, key):
        first = store.take(key, POLICY, ReservationRequest(COMMAND))
        assert store.take(f"{key}2", POLICY, ReservationRequest(COMMAND)).wait_seconds == first.wait_seconds

    def test_a_pause_is_kept_and_its_rest_told(self, store, key, clock):
        answer = store.take(key, POLICY, ReservationRequest(COMMAND))
        assert store.cool(key, POLICY, 20.0, answer.epoch) == 20.0
        clock.advance(5)
        assert store.take(key, POLICY, ReservationRequest(COMMAND)).wait_seconds == 15.0

    def test_a_probe_that_was_taken_ends_the_probing(self, store, key, clock):
        store.cool(key, POLICY, 1.0, store.take(key, POLICY, ReservationRequest(COMMAND)).epoch)
        clock.advance(30)
        probe = store.take(key, POLICY, ReservationRequest(COMMAND))
        store.settle(key, probe.epoch)
        assert (probe.probe, store.take(key, POLICY, ReservationRequest(COMMAND)).may_send) == (True, True)

    def test_a_look_shows_what_was_let_go_and_changes_nothing(self, store, key, clock):
        store.take(key, POLICY, ReservationRequest(COMMAND))
        clock.advance(60)
        store.take(key, POLICY, ReservationRequest(RequestClass.POLL))
        first, second = store.read_budget(key), store.read_budget(key)
        assert first == second
        assert [(grant.at, grant.request_class) for grant in first.grants] == [(clock.now, RequestClass.POLL)]

    def test_grants_are_forgotten_after_ten_minutes(self, store, key, clock):
        for _ in range(3):
            clock.advance(400)
            store.take(key, POLICY, ReservationRequest(COMMAND))
        assert len(store.read_budget(key).grants) == 2

    def test_a_look_at_an_unknown_key_finds_no_account(self, store, key):
        assert store.read_budget(key).account is None


@pytest.mark.parametrize("step", [3600.0, -3600.0], ids=["ahead", "back"])
def test_a_clock_that_is_set_neither_adds_to_the_budget_nor_stops_it(store, key, clock, step):
    for _ in range(20):
        held = store.take(key, POLICY, ReservationRequest(COMMAND))
        clock.advance(0.1)
    expected = clock.now
    clock.advance(step)
    answers = [store.take(key, POLICY, ReservationRequest(COMMAND, expected=expected)) for _ in range(5)]
    assert not any(answer.may_send for answer in answers)
    assert answers[-1].wait_seconds < 6 * POLICY.rate.interval_seconds
    assert not store.take(key, POLICY, ReservationRequest(COMMAND, earlier=held, expected=clock.now)).may_send


def test_a_clock_that_is_set_ends_no_pause_early_and_none_late(store, key, clock):
    store.cool(key, POLICY, 30.0, store.take(key, POLICY, ReservationRequest(COMMAND)).epoch)
    expected = clock.now
    clock.advance(3600)
    assert store.take(key, POLICY, ReservationRequest(COMMAND, expected=expected)).wait_seconds == 30.0
    clock.advance(-3600)
    assert store.take(key, POLICY, ReservationRequest(COMMAND)).wait_seconds == 30.0


class TestRecords:
    """Records are kept by name in a space, for a time."""

    def test_a_record_is_found_with_its_age(self, store, key, clock):
        store.put(key, "a b", "text\nwith lines", 10.0)
        clock.advance(3)
        entry = store.get(key, "a b")
        assert (entry.value, entry.age_seconds) == ("text\nwith lines", 3.0)

    def test_a_record_is_gone_when_its_time_is_over(self, store, key, clock):
        store.put(key, "a", "1", 10.0)
        clock.advance(10)
        assert store.get(key, "a") is None
        assert store.entries(key) == []
        assert store.swap(key, "a", None, "2", 10.0) is None

    def test_writing_begins_its_time_anew(self, store, key, clock):
        store.put(key, "a", "1", 10.0)
        clock.advance(8)
        store.put(key, "a", "2", 10.0)
        clock.advance(8)
        assert store.get(key, "a").value == "2"

    def test_a_swap_writes_only_where_the_present_text_is_as_expected(self, store, key):
        assert store.swap(key, "a", None, "1", 10.0) is None
        assert store.swap(key, "a", None, "2", 10.0) == "1"
        assert store.swap(key, "a", "2", "3", 10.0) == "1"
        assert store.swap(key, "a", "1", "3", 10.0) == "1"
        assert store.get(key, "a").value == "3"

    def test_a_swap_can_delete(self, store, key):
        store.put(key, "a", "1", 10.0)
        assert store.swap(key, "a", "2", None, 10.0) == "1"
        assert store.swap(key, "a", "1", None, 10.0) == "1"
        assert store.get(key, "a") is None

    def test_an_empty_text_is_a_text(self, store, key):
        store.put(key, "a", "", 10.0)
        assert store.swap(key, "a", None, "1", 10.0) == ""
        assert store.swap(key, "a", "", "1", 10.0) == ""
        assert store.get(key, "a").value == "1"

    def test_a_dropped_record_is_gone(self, store, key):
        store.put(key, "a", "1", 10.0)
        store.drop(key, "a")
        store.drop(key, "a")
        assert store.get(key, "a") is None

    def test_records_are_listed_by_prefix_and_space(self, store, key):
        for name in ("b/2", "a/1", "b/1", "%/1", "B/1"):
            store.put(key, name, name, 10.0)
        store.put(f"{key}2", "b/3", "", 10.0)
        assert [entry.name for entry in store.entries(key, "b/")] == ["b/1", "b/2"]
        assert [entry.name for entry in store.entries(key, "%")] == ["%/1"]
        assert len(store.entries(key)) == 5

    def test_a_bell_counts_its_rings(self, store, key):
        assert store.bell(key) == 0
        assert [store.ring(key), store.ring(key)] == [1, 2]
        assert (store.bell(key), store.bell(f"{key}2")) == (2, 0)


@pytest.mark.parametrize("seed", range(20))
def test_the_scripts_in_redis_say_the_same_as_the_arithmetic_here(redis_server, clock, key, seed):
    random, stores = Random(seed), (MemoryStore(clock), RedisStore(redis_server.url, clock))
    clock.now = 1.7e9 / 7
    held: list[Reservation | None] = [None] * 6
    for _ in range(80):
        clock.advance(random.choice([0, 0.1, 0.3, 0.7, random.random(), random.choice([3, 30, -0.5, -100])]))
        caller, roll = random.randrange(6), random.random()
        earlier = held[caller]
        if roll < 0.04:
            epoch, seconds = earlier.epoch if earlier else 0.0, random.choice([None, 0.0, 3.0])
            assert len({store.cool(key, POLICY, seconds, epoch) for store in stores}) == 1
        elif roll < 0.08 and earlier:
            for store in stores:
                store.settle(key, earlier.epoch)
        else:
            expected = random.choice([None, None, clock.now, clock.now - 100])
            within = random.choice([0.0, 2.0, math.inf])
            wish = ReservationRequest(
                random.choice(list(RequestClass)), within, earlier, random.random() < 0.02, expected
            )
            here, there = (store.take(key, POLICY, wish) for store in stores)
            assert here == there
            held[caller] = here
        first, second = (store.read_budget(key) for store in stores)
        assert first.account == second.account
        assert sorted(grant.at for grant in first.grants) == sorted(grant.at for grant in second.grants)


class TestStateUrl:
    """A URL names a store, or an error says what is expected, without a password."""

    @pytest.mark.parametrize("url", ["sqlite:////var/state.sqlite", "/var/state.sqlite"])
    def test_a_path_names_a_file(self, url):
        store = open_store(url)
        assert isinstance(store, SqliteStore)
        assert store.location == "/var/state.sqlite"

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("redis://user:secret@host:7000/2?socket_timeout=3", "redis://host:7000/2"),
            ("rediss://:secret@host", "rediss://host:6379"),
            ("unix://:secret@/run/redis.sock?db=1", "unix:///run/redis.sock"),
        ],
    )
    def test_a_redis_url_is_shown_without_its_password(self, url, shown):
        assert open_store(url).location == shown

    def test_one_store_serves_all_who_name_it(self):
        assert open_store("/var/one.sqlite") is open_store("/var/one.sqlite")

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://user:secret@host/db",
            "redis://user:secret@host:port/0",
            "redis://user:secret@host/secret",
            "user:secret@host",
            "sqlite:///relative:secret@path",
            "relative/path",
            "",
        ],
    )
    def test_anything_else_is_refused_in_words(self, url):
        with pytest.raises(StateUrlError, match=r"state_url: expected .+, got .+") as caught:
            open_store(url)
        assert "user:secret" not in str(caught.value)

    def test_a_missing_redis_package_is_named(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(StateUrlError, match=r"pip install 'airflow-provider-techflow\[redis\]'"):
            open_store("redis://nowhere")


class TestBudgetKey:
    """The budget's name is the same for the same key and server, and does not show the key."""

    @pytest.mark.parametrize(
        "url", ["https://API.techflow.com/v2", "https://api.techflow.com:443/v2/", " HTTPS://api.techflow.com/v2"]
    )
    def test_spelling_of_the_url_does_not_matter(self, url):
        assert budget_key(url, "key") == budget_key("https://api.techflow.com/v2", "key")

    def test_another_key_or_server_is_another_budget(self):
        names = {budget_key(url, key) for url in ("https://a/v2", "https://a/v3", "http://a/v2") for key in ("k", "l")}
        assert len(names) == 6
        assert all(len(name) == 32 for name in names)
