"""Several Redis servers: a cluster, an address that passes to another one; and one that is full or busy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from techflow_provider.state import optimistic
from techflow_provider.state.budget import RequestClass, SharedBudget
from techflow_provider.state.optimistic import UnreachableError
from techflow_provider.state.records import Records
from techflow_provider.state.redis import RedisStore
from techflow_provider.state.store import Entry, StoreError, Write
from tests.servers import Proxy, Redis, free_port, until

COMMAND = RequestClass.COMMAND
# Only bounds a hang.
READY_SECONDS = 120.0
SLOTS = ((0, 5460), (5461, 10922), (10923, 16383))

pytestmark = pytest.mark.usefixtures("redis_binary")


def count(store: RedisStore, key: str) -> int:
    """Increment a counter and return it."""

    def change(entry: Entry | None, _: float) -> tuple[Write, int]:
        value = 1 if entry is None else int(entry.value) + 1
        return Write(str(value), 60.0), value

    return store.update(f"{key}/records", "count", change)


def folder(parent: Path, name: str) -> Path:
    made = parent / name
    made.mkdir()
    return made


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Redis]]:
    """Three servers that share the slots of a cluster."""
    parent = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        options = ("--cluster-enabled", "yes", "--appendonly", "no", "--cluster-port")
        buses = [str(free_port()) for _ in SLOTS]
        nodes = [stack.enter_context(Redis.running(folder(parent, bus), *options, bus)) for bus in buses]
        for node, (first, last) in zip(nodes, SLOTS, strict=True):
            node.command("cluster", "addslotsrange", str(first), str(last))
            node.command("cluster", "meet", "127.0.0.1", str(nodes[0].port), buses[0])
        until(lambda: all("cluster_state:ok" in each.command("cluster", "info") for each in nodes), READY_SECONDS, "ok")
        # Each has to know all others before it redirects to them.
        everybody = "cluster_known_nodes:3"
        until(lambda: all(everybody in each.command("cluster", "info") for each in nodes), READY_SECONDS, everybody)
        yield nodes


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Redis, Redis]]:
    """A server and its replica."""
    at_once = ("--repl-diskless-sync-delay", "0")
    with (
        Redis.running(folder(tmp_path, "a"), *at_once) as primary,
        Redis.running(folder(tmp_path, "b"), *at_once) as replica,
    ):
        replica.command("replicaof", "127.0.0.1", str(primary.port))
        until(lambda: "master_link_status:up" in replica.command("info", "replication"), READY_SECONDS, "a replica")
        yield primary, replica


class TestCluster:
    """Every account works, wherever its slot is."""

    @pytest.fixture
    def store(self, cluster: list[Redis]) -> Iterator[RedisStore]:
        store = RedisStore(f"redis+cluster://127.0.0.1:{cluster[0].port},127.0.0.1:{cluster[1].port}")
        yield store
        store.close()

    def test_each_of_many_accounts_has_a_budget_and_records(self, store, key):
        accounts = [f"{key}{number}" for number in range(12)]
        budgets = [SharedBudget(store, account) for account in accounts]
        assert all(budget.reserve(COMMAND, 1e9).granted and budget.snapshot().shared for budget in budgets)
        assert [count(store, account) for account in accounts] == [1] * 12
        assert all(Records(store, account).see_delivery("one") for account in accounts)

    def test_all_that_belongs_to_an_account_has_one_hash_tag(self, store, cluster, key):
        SharedBudget(store, key).reserve(COMMAND, 1e9)
        Records(store, key).see_delivery("one")
        names = [name for node in cluster for name in node.command("keys", f"*{key}*").split()]
        assert len(names) == 4
        assert all(f"{{{key}}}" in name for name in names)

    def test_a_slot_that_moves_is_followed(self, store, cluster, key):
        count(store, key)
        client = redis.Redis(port=cluster[0].port, decode_responses=True)
        slot = client.cluster("keyslot", key)
        ids = [node.command("cluster", "myid").strip() for node in cluster]
        following = next(i for i, (first, last) in enumerate(SLOTS) if not first <= slot <= last)
        for node in cluster:
            node.command("eval", "return redis.call('flushall')", "0")
            node.command("cluster", "setslot", str(slot), "node", ids[following])
        client.close()
        assert count(store, key) == 1

    def test_the_url_of_a_single_server_is_refused_with_the_remedy(self, cluster):
        store = RedisStore(cluster[0].url())
        with pytest.raises(StoreError, match=r"redis\+cluster://"):
            [store.entries(f"account {number}") for number in range(12)]
        store.close()


class TestFailover:
    """A server that becomes a replica is left for the one that takes its place."""

    def test_an_address_that_passes_to_another_server_is_connected_to_again(self, pair, key):
        primary, replica = pair
        with Proxy(primary.port) as address:
            store = RedisStore(f"redis://127.0.0.1:{address.port}")
            budget = SharedBudget(store, key)
            assert budget.reserve(COMMAND, 1e9).granted
            assert count(store, key) == 1
            until(lambda: key in replica.command("keys", f"*{key}*"), READY_SECONDS, "what was replicated")
            replica.command("replicaof", "no", "one")
            primary.command("replicaof", "127.0.0.1", str(replica.port))
            address.ports = [replica.port]
            assert budget.reserve(COMMAND, 1e9).granted
            assert budget.snapshot().shared
            assert count(store, key) == 2
            store.close()


class TestDanger:
    """What endangers the records is reported, and what is temporary is waited for."""

    def test_eviction_and_missing_persistence_are_warned_of(self, own_redis, key):
        store = RedisStore(own_redis.url)
        client = redis.Redis.from_url(own_redis.url)
        (warning,) = store.warnings()
        assert "saves nothing" in warning
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "volatile-lru")
        client.config_set("save", "60 1")
        (warning,) = store.warnings()
        assert "maxmemory-policy is volatile-lru" in warning
        client.config_set("maxmemory-policy", "noeviction")
        assert store.warnings() == []
        client.close()
        store.close()

    def test_a_server_with_too_many_clients_is_waited_for(self, own_redis, key):
        client = redis.Redis.from_url(own_redis.url)
        client.config_set("maxclients", "1")
        store = RedisStore(own_redis.url)
        with pytest.raises(UnreachableError):
            count(store, key)
        client.close()
        until(lambda: _counts(store, key), READY_SECONDS, "a place")
        store.close()

    def test_a_flushed_server_grants_no_second_burst(self, own_redis, key, clock):
        budget = SharedBudget(RedisStore(own_redis.url), key, clock=clock)
        for _ in range(5):
            budget.reserve(COMMAND, 1e9)
        client = redis.Redis.from_url(own_redis.url)
        client.flushall()
        client.close()
        assert budget.reserve(COMMAND, 1e9).wait_seconds > 0

    def test_idle_connections_are_closed(self, own_redis, key, monkeypatch):
        monkeypatch.setattr(optimistic, "IDLE_SECONDS", 0.01)
        store = RedisStore(own_redis.url)
        count(store, key)
        client = redis.Redis.from_url(own_redis.url)
        until(lambda: len(client.client_list()) == 1, READY_SECONDS, "no connection but this one")
        assert count(store, key) == 2
        client.close()
        store.close()


def _counts(store: RedisStore, key: str) -> bool:
    try:
        return count(store, key) > 0
    except StoreError:
        return False
