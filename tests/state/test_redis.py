"""What is particular to Redis: a server that comes and goes, keys that expire, and a clock that can be set."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
import redis

from techflow_provider.state.budget import RequestClass, SharedBudget
from techflow_provider.state.gcra import Reason
from techflow_provider.state.optimistic import UnreachableError
from techflow_provider.state.records import Records
from techflow_provider.state.redis import RedisStore
from techflow_provider.state.store import Entry, StoreError, Write
from tests.servers import free_port

COMMAND = RequestClass.COMMAND


def notify(store, key: str) -> int:
    return Records(store, key).notify()


def test_a_server_that_stops_is_asked_again_for_half_a_minute_and_used_again_when_it_starts(own_redis, key, clock):
    budget = SharedBudget(RedisStore(own_redis.url), key, clock=clock)
    budget.reserve(COMMAND, 1e9)
    assert budget.snapshot().shared
    own_redis.stop()
    for _ in range(20):
        reservation = budget.reserve(COMMAND, 1e9)
        assert (reservation.granted, reservation.may_send, reservation.reason) == (True, False, Reason.STATE)
        clock.advance(reservation.wait_seconds / 2)
    clock.advance(30)
    assert budget.reserve(COMMAND, 1e9).reason is not Reason.STATE
    assert budget.snapshot().requests_per_minute == 25
    own_redis.start()
    clock.advance(2)
    # It has lost everything, so its budget begins without a burst.
    assert budget.reserve(COMMAND, 1e9).wait_seconds > 0
    assert budget.snapshot().shared


def test_no_slot_is_granted_to_a_caller_that_can_not_wait_until_the_server_is_asked_again(own_redis, key, clock):
    budget = SharedBudget(RedisStore(own_redis.url), key, clock=clock)
    own_redis.stop()
    assert not budget.reserve(COMMAND, 0.1).granted


def test_a_server_that_hangs_is_given_up_after_half_a_minute(own_redis, key, clock):
    store = RedisStore(f"{own_redis.url}?socket_timeout=0.1")
    budget = SharedBudget(store, key, clock=clock)
    own_redis.process.send_signal(signal.SIGSTOP)
    assert budget.reserve(COMMAND, 1e9).reason is Reason.STATE
    clock.advance(30)
    assert budget.reserve(COMMAND, 1e9).granted
    assert not budget.snapshot().shared
    own_redis.process.send_signal(signal.SIGCONT)
    store.close()


def test_a_server_without_memory_can_not_be_used(own_redis, key):
    client = redis.Redis.from_url(own_redis.url)
    client.config_set("maxmemory", "1")
    with pytest.raises(StoreError, match="OutOfMemory"):
        notify(RedisStore(own_redis.url), key)
    client.close()


def test_the_error_about_a_wrong_password_does_not_show_it(own_redis, key):
    store = RedisStore(own_redis.url.replace("unix://", "unix://user:secret@"))
    with pytest.raises(StoreError) as caught:
        notify(store, key)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("option", ["socket_timeout=secret", "no_such_option=secret", "ssl_cert_reqs=secret"])
def test_an_option_that_can_not_be_used_is_named(own_redis, key, option):
    with pytest.raises(StoreError, match=f"an option in its URL can't be used: {option.partition('=')[0]}$"):
        notify(RedisStore(f"{own_redis.url}?{option}"), key)


@pytest.mark.parametrize(
    "url", ["redis+cluster://127.0.0.1:{}", "redis+sentinel://127.0.0.1:{}/main?sentinel_password=secret"]
)
def test_servers_that_are_gone_are_waited_for(url, key, clock, redis_binary):
    store = RedisStore(url.format(free_port()))
    with pytest.raises(UnreachableError) as caught:
        store.entries(key)
    assert "secret" not in str(caught.value)
    assert "redis.client" not in str(caught.value)
    assert SharedBudget(store, key, clock=clock).reserve(COMMAND, 1e9).reason is Reason.STATE


def test_every_key_expires_and_all_keys_of_an_operation_lie_together(redis_server, key):
    store = RedisStore(redis_server.url)
    budget = SharedBudget(store, key)
    budget.cool_down(0.0, budget.reserve(COMMAND, 1e9))
    notify(store, key)
    store.update(f"{key}/space", "a", lambda *_: (Write("1", 60.0), None))
    client = redis.Redis.from_url(redis_server.url, decode_responses=True)
    names = client.keys(f"*{key}*")
    assert sorted(names) == sorted(
        f"techflow:{{{namespace}}}:{part}" for namespace in (key, f"{key}/space") for part in ("records", "ends")
    )
    assert all(client.ttl(name) > 0 for name in names)
    client.close()
    store.close()


def test_expired_entries_are_removed_with_the_next_write(redis_server, key, clock):
    store = RedisStore(redis_server.url, clock)
    for name in ("a", "b"):
        store.update(key, name, lambda *_: (Write("1", 10.0), None))
    clock.advance(10)
    store.update(key, "c", lambda *_: (Write("1", 10.0), None))
    client = redis.Redis.from_url(redis_server.url, decode_responses=True)
    assert (client.hkeys(f"techflow:{{{key}}}:records"), client.zcard(f"techflow:{{{key}}}:ends")) == (["c"], 1)
    client.close()
    store.close()


def test_scripts_are_loaded_again_when_the_server_has_lost_them(redis_server, key):
    store = RedisStore(redis_server.url)
    budget = SharedBudget(store, key)
    budget.reserve(COMMAND, 1e9)
    notify(store, key)
    client = redis.Redis.from_url(redis_server.url)
    client.script_flush()
    client.close()
    budget.reserve(COMMAND, 1e9)
    assert budget.snapshot().shared
    assert notify(store, key) == 2
    store.close()


def test_an_update_is_tried_again_when_another_process_was_faster(redis_server, key):
    store, other = RedisStore(redis_server.url), RedisStore(redis_server.url)
    seen = []

    def change(entry: Entry | None, _: float) -> tuple[Write, None]:
        seen.append(None if entry is None else entry.value)
        if len(seen) < 3:
            other.update(key, "a", lambda *_: (Write(str(len(seen)), 10.0), None))
        return Write("last", 10.0), None

    store.update(key, "a", change)
    assert seen == [None, "1", "2"]
    assert store.entries(key)[0].value == "last"


def test_an_update_that_is_always_too_late_is_given_up(redis_server, key, monkeypatch):
    monkeypatch.setattr("techflow_provider.state.optimistic.MAX_UPDATE_ATTEMPTS", 3)
    store, other = RedisStore(redis_server.url), RedisStore(redis_server.url)
    attempts: list[None] = []

    def change(*_: object) -> tuple[Write, None]:
        attempts.append(None)
        other.update(key, "a", lambda *_: (Write(str(len(attempts)), 10.0), None))
        return Write("last", 10.0), None

    with pytest.raises(StoreError, match="a changed during each of 3 attempts"):
        store.update(key, "a", change)
    assert len(attempts) == 3


def test_records_of_version_0_1_0_are_kept(redis_server, key):
    client = redis.Redis.from_url(redis_server.url)
    now = time.time()
    client.hset(f"techflow:{{{key}/claims}}:records", "exec_1", f"{now - 10:.17g} {now + 3600:.17g} a ticket")
    client.zadd(f"techflow:{{{key}/claims}}:ends", {"exec_1": now + 3600})
    client.hset(f"techflow:{{{key}}}:account", mapping={"seen": "1", "arrival": "1"})
    store = RedisStore(redis_server.url)
    (entry,) = store.entries(f"{key}/claims")
    assert (entry.name, entry.value) == ("exec_1", "a ticket")
    assert entry.age_seconds >= 10
    store.update(f"{key}/claims", "exec_1", lambda *_: (Write(None), None))
    assert store.entries(f"{key}/claims") == []
    assert SharedBudget(store, key).reserve(COMMAND, 1e9).wait_seconds > 0
    client.close()
    store.close()


@pytest.mark.parametrize("text", ["rubbish", "nan 1 value", "1 inf value"])
def test_an_entry_of_unknown_form_is_quoted(redis_server, key, text):
    client = redis.Redis.from_url(redis_server.url)
    client.hset(f"techflow:{{{key}}}:records", "a", text)
    client.close()
    store = RedisStore(redis_server.url)
    with pytest.raises(StoreError, match=f"expected an entry with its times, got '{text}'"):
        store.entries(key)
    store.close()


@pytest.mark.parametrize("step", [3600.0, -3600.0], ids=["ahead", "back"])
def test_a_server_whose_clock_is_set_grants_no_second_burst(redis_server, key, clock, step):
    server_clock = type(clock)(now=1e9)
    budget = SharedBudget(RedisStore(redis_server.url, server_clock), key, clock=clock)
    for _ in range(20):
        budget.reserve(COMMAND, 1e9)
    clock.advance(0.5)
    server_clock.advance(0.5 + step)
    reservation = budget.reserve(COMMAND, 1e9)
    assert 0 < reservation.wait_seconds < 10


def test_the_redis_package_is_imported_with_the_first_operation(redis_server):
    code = (
        "import sys; from techflow_provider.state.open import open_store; store = open_store(sys.argv[1]); "
        "assert 'redis' not in sys.modules; store.entries('a'); assert 'redis' in sys.modules; "
        "assert not {'httpx', 'airflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, redis_server.url], check=True, env={"PYTHONPATH": ":".join(sys.path)})
