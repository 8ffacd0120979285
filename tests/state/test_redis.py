"""What is particular to Redis: a server that goes and comes, keys that end, and a clock that can be set."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
import redis

from techflow_provider.state.budget import SharedBudget
from techflow_provider.state.gcra import Policy, RequestClass, ReservationRequest
from techflow_provider.state.redis import RedisStore
from techflow_provider.state.store import StoreError

COMMAND = RequestClass.COMMAND
POLICY = Policy.of(100, 6)


def test_a_server_that_stops_and_starts_is_left_and_used_again(own_redis, key, clock):
    budget = SharedBudget(RedisStore(own_redis.url), key, clock=clock)
    budget.reserve(COMMAND, 1e9)
    assert budget.snapshot().shared
    own_redis.stop()
    assert budget.reserve(COMMAND, 1e9).granted
    assert budget.snapshot().requests_per_minute == 25
    own_redis.start()
    clock.advance(2)
    # It has lost everything, so its budget begins without a burst.
    assert budget.reserve(COMMAND, 1e9).wait_seconds > 0
    assert budget.snapshot().shared


def test_a_server_that_hangs_is_not_waited_for_long(own_redis, key, clock):
    store = RedisStore(f"{own_redis.url}?socket_timeout=0.1")
    budget = SharedBudget(store, key, clock=clock)
    budget.reserve(COMMAND, 1e9)
    own_redis.process.send_signal(signal.SIGSTOP)
    assert budget.reserve(COMMAND, 1e9).granted
    assert not budget.snapshot().shared
    own_redis.process.send_signal(signal.SIGCONT)
    store.close()


def test_a_server_without_memory_is_one_that_can_not_be_used(own_redis, key):
    client = redis.Redis.from_url(own_redis.url)
    client.config_set("maxmemory", "1")
    with pytest.raises(StoreError, match="OutOfMemory"):
        RedisStore(own_redis.url).take(key, POLICY, ReservationRequest(COMMAND))
    client.close()


def test_a_wrong_password_is_told_without_it(own_redis, key):
    store = RedisStore(own_redis.url.replace("unix://", "unix://user:secret@"))
    with pytest.raises(StoreError) as caught:
        store.ring(key)
    assert "secret" not in str(caught.value)


def test_every_key_ends_some_time_and_all_keys_of_an_operation_lie_together(redis_server, key):
    store = RedisStore(redis_server.url)
    store.take(key, Policy.of(100, 6), ReservationRequest(COMMAND))
    store.cool(key, POLICY, 0.0, 0.0)
    store.put(key, "a", "1", 60.0)
    store.ring(key)
    client = redis.Redis.from_url(redis_server.url, decode_responses=True)
    names = client.keys(f"*{key}*")
    assert len(names) == 4
    assert all(str(name).startswith(f"techflow:{{{key}}}:") and client.ttl(name) > 0 for name in names)
    client.close()
    store.close()


def test_scripts_are_loaded_again_where_the_server_forgot_them(redis_server, key):
    store = RedisStore(redis_server.url)
    store.ring(key)
    client = redis.Redis.from_url(redis_server.url)
    client.script_flush()
    client.close()
    assert store.ring(key) == 2


@pytest.mark.parametrize("step", [3600.0, -3600.0], ids=["ahead", "back"])
def test_a_server_whose_clock_is_set_grants_no_second_burst(redis_server, key, clock, step):
    server_clock = type(clock)(now=1e9)
    budget = SharedBudget(RedisStore(redis_server.url, server_clock), key, clock=clock)
    for _ in range(20):
        budget.reserve(COMMAND, 1e9)
    clock.advance(0.5)
    server_clock.advance(0.5 + step)
    answer = budget.reserve(COMMAND, 1e9)
    assert 0 < answer.wait_seconds < 10


def test_the_redis_package_is_loaded_with_the_first_operation(redis_server):
    code = (
        "import sys; from techflow_provider.state.store import open_store; store = open_store(sys.argv[1]); "
        "assert 'redis' not in sys.modules; store.bell('a'); assert 'redis' in sys.modules; "
        "assert not {'httpx', 'airflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, redis_server.url], check=True, env={"PYTHONPATH": ":".join(sys.path)})
