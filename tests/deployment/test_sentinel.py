"""A Redis that Sentinels watch: the server that takes over is found. Sentinels need more than ten seconds for that."""

from __future__ import annotations

from pathlib import Path

from techflow_provider.state.records import Records
from techflow_provider.state.redis import RedisStore
from tests.servers import Program, Redis, free_port, until

READY_SECONDS = 120.0


def test_sentinels_name_the_server_that_takes_over(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with Redis.running(tmp_path / "a") as primary, Redis.running(tmp_path / "b") as replica:
        replica.command("replicaof", "127.0.0.1", str(primary.port))
        until(lambda: "master_link_status:up" in replica.command("info", "replication"), READY_SECONDS, "a replica")
        port, config = free_port(), tmp_path / "sentinel.conf"
        config.write_text(f"port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {primary.port} 1\n")
        sentinel = Program("sentinel", ["redis-server", str(config), "--sentinel"], {}, tmp_path / "sentinel.log")
        sentinel.start()
        watching = Redis(sentinel, port)
        try:
            until(
                lambda: str(replica.port) in watching.command("sentinel", "replicas", "main"), READY_SECONDS, "replica"
            )
            store = RedisStore(f"redis+sentinel://127.0.0.1:{port}/main/0")
            assert Records(store, "key").notify() == 1
            until(lambda: "wakeups" in replica.command("keys", "*"), READY_SECONDS, "what was replicated")
            until(lambda: "OK" in watching.command("sentinel", "failover", "main"), READY_SECONDS, "a failover")
            address = ("sentinel", "get-master-addr-by-name", "main")
            until(lambda: str(replica.port) in watching.command(*address), READY_SECONDS, "the new primary")
            until(lambda: "role:slave" in primary.command("info", "replication"), READY_SECONDS, "the old primary")
            assert Records(store, "key").notify() == 2
            store.close()
        finally:
            sentinel.stop()
