"""The stores that benchmarks compare, each with its servers: a file, Redis, PostgreSQL, the API server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

# The benchmarks' package is the installed one, so the checkout comes last.
sys.path.append(str(Path(__file__).parents[2]))

from techflow_provider.state.open import open_store
from techflow_provider.state.store import Store, budget_key
from tests.servers import READY_SECONDS, Postgres, Program, Proxy, Redis, free_port, until

CONN_ID, BASE_URL, KEY = "techflow_default", "http://techflow.example/v2", "key-of-the-benchmark"
ACCOUNT = budget_key(BASE_URL, KEY)
PLACES = ("file", "redis", "postgresql", "api-server")


@dataclass
class Place:
    """A store's servers.

    :param name: one of `PLACES`
    :param url: what `open_place` is given
    :param stop: ends what the store needs first of all, as a crash does
    :param start: starts it again
    """

    name: str
    url: str
    stop: Callable[[], None]
    start: Callable[[], None]
    ports: list[int] = field(default_factory=list)

    def through(self, proxy: Proxy) -> str:
        """Return the URL by which the store is reached through a proxy of its ports."""
        return self.url.replace(f":{self.ports[0]}/", f":{proxy.port}/")


def open_place(url: str) -> Store:
    """Return a store with connections of its own."""
    if url.startswith("http"):
        from techflow_provider.state.http import HttpStore
        from techflow_provider.state.signing import Signer, derive_key

        signer = Signer(CONN_ID, derive_key(KEY, ACCOUNT))
        return HttpStore(url, signer, lambda: signer)
    if url.startswith("postgresql"):
        from techflow_provider.state.sql import SqlStore

        return SqlStore(url)
    open_store.cache_clear()
    return open_store(url)


@contextmanager
def place(name: str, folder: Path, *, servers: int = 1, settings: tuple[str, ...] = ()) -> Iterator[Place]:
    """Run a store's servers while the context lasts.

    :param servers: how many API servers there are
    :param settings: of PostgreSQL, such as `fsync=on`; or words of Redis's command line
    """
    # The server of the database runs as another user and must get through.
    folder.chmod(0o755)
    with ExitStack() as stack:
        if name == "file":
            yield Place(name, str(folder / "state.db"), lambda: None, lambda: None)
        elif name == "redis":
            redis = stack.enter_context(Redis.running(folder, *settings))
            yield Place(name, redis.url(), redis.program.kill, redis.start, [redis.port])
        else:
            postgres = stack.enter_context(Postgres(folder / "postgres", *settings))
            if name == "postgresql":
                yield Place(name, postgres.url, postgres.stop, postgres.start, [postgres.port])
            else:
                yield stack.enter_context(_api_servers(folder, postgres.url, servers))


@contextmanager
def _api_servers(folder: Path, database: str, servers: int) -> Iterator[Place]:
    environment = _environment(folder, database)
    migrate = [sys.executable, "-m", "airflow", "db", "migrate"]
    subprocess.run(migrate, env=environment, check=True, capture_output=True)
    programs = [_api_server(folder, environment, free_port()) for _ in range(servers)]

    def stop() -> None:
        programs[0].kill()

    def start() -> None:
        programs[0].start()
        _await(ports[0])

    ports = [int(program.name.rpartition("-")[2]) for program in programs]
    try:
        for program, port in zip(programs, ports, strict=True):
            program.start()
            _await(port)
        yield Place("api-server", f"http://127.0.0.1:{ports[0]}/techflow/state", stop, start, ports)
    finally:
        for program in programs:
            program.stop()


def _environment(folder: Path, database: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    return {
        **kept,
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": database.replace("psycopg2", "asyncpg"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__API_AUTH__JWT_SECRET": "a secret of the benchmarks that is of no use anywhere else",
        f"AIRFLOW_CONN_{CONN_ID.upper()}": json.dumps({"conn_type": "techflow", "host": BASE_URL, "password": KEY}),
    }


def _api_server(folder: Path, environment: Mapping[str, str], port: int) -> Program:
    words = ["api-server", "--host", "127.0.0.1", "-p", str(port), "-w", "1"]
    name = f"api-server-{port}"
    return Program(name, [sys.executable, "-m", "airflow", *words], environment, folder / f"{name}.log")


def _await(port: int) -> None:
    until(lambda: _responds(port), READY_SECONDS, "the API server")


def _responds(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/api/v2/version", timeout=5).is_success
    except httpx.TransportError:
        return False
