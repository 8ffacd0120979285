"""The stores that the tests run on: memory, a SQLite file, and a real Redis server on a private socket."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis

from techflow_provider.state.http import HttpStore
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.redis import RedisStore
from techflow_provider.state.sql import SqlStore
from techflow_provider.state.sqlite import SqliteStore
from techflow_provider.state.store import Store
from tests.servers import Postgres
from tests.state.state_api import DEPLOYMENT_SIGNER, URL, serve

WORKER = Path(__file__).with_name("worker.py")
# Bounds a hang; no machine is this slow.
STARTED_SECONDS = 120.0


@dataclass
class Clock:
    """A clock that stands still until it is advanced."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class RedisServer:
    """A server of the tests' own, on a socket in a folder of its own."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None
    options: tuple[str, ...] = field(default=())

    @property
    def url(self) -> str:
        """The server's URL."""
        return f"unix://{self.folder}/redis.sock"

    def start(self) -> None:
        """Start it and wait until it responds."""
        command = ["redis-server", "--port", "0", "--unixsocket", "redis.sock", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen([*command, *self.options], cwd=self.folder, stdout=subprocess.DEVNULL)
        client = redis.Redis.from_url(self.url)
        deadline = time.monotonic() + STARTED_SECONDS
        while True:
            try:
                client.ping()
            except redis.RedisError:
                assert time.monotonic() < deadline, "redis-server does not respond"
                time.sleep(0.01)
            else:
                client.close()
                return

    def stop(self) -> None:
        """End it, with all that it held."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            self.process.wait(timeout=STARTED_SECONDS)
            self.process = None


def in_threads(act: Callable[[], object], count: int) -> None:
    """Run a function in threads at once."""
    threads = [threading.Thread(target=act) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def in_fork(act: Callable[[], object]) -> Any:
    """Return the result of a function in a forked child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, json.dumps(act()).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        return json.loads(pipe.read())


@pytest.fixture(scope="session")
def redis_binary() -> None:
    if shutil.which("redis-server") is None:
        pytest.fail("these tests need a redis-server: apt-get install redis-server (and stop the service it starts)")


@pytest.fixture(scope="session")
def redis_server(redis_binary: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that all tests share, each with names of its own."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_redis(redis_binary: None, tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may stop and start."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL that all tests share, each with names of its own."""
    pytest.importorskip("psycopg2", reason="the tests that use PostgreSQL need psycopg2-binary")
    if not any(Path("/usr/lib/postgresql").glob("*/bin/initdb")) and shutil.which("initdb") is None:
        pytest.skip("no PostgreSQL is installed (apt-get install postgresql, and stop the service it starts)")
    # Its own user can't look into the tests' folder.
    folder = Path(tempfile.mkdtemp(prefix="techflow-postgres-"))
    folder.chmod(stat.S_IRWXU | stat.S_IXGRP | stat.S_IXOTH)
    try:
        with Postgres(folder / "server") as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def clock() -> Clock:
    """The stores' clock; it stands still."""
    return Clock()


@pytest.fixture
def key() -> str:
    """The name of a budget that no other test uses."""
    return uuid4().hex


@pytest.fixture
def sqlite_path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "state.sqlite"


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    """The simplest store, on the test's clock, for what is written once above all stores."""
    return MemoryStore(clock)


@pytest.fixture(params=["memory", "sqlite", "redis", "sql", "postgresql", "http"])
def each_store(request: pytest.FixtureRequest, clock: Clock) -> Iterator[Store]:
    """Each store in turn, on the test's clock."""
    made = _make(request, clock)
    yield made
    made.close()


def _make(request: pytest.FixtureRequest, clock: Clock) -> Store:
    if request.param == "memory":
        return MemoryStore(clock)
    if request.param == "sqlite":
        return SqliteStore(request.getfixturevalue("sqlite_path"), clock=clock)
    if request.param in ("sql", "postgresql"):
        return SqlStore(_sql_url(request), clock=clock)
    if request.param == "http":
        return HttpStore(
            URL, DEPLOYMENT_SIGNER, lambda: DEPLOYMENT_SIGNER, transport=serve(MemoryStore(clock)), clock=clock
        )
    return RedisStore(request.getfixturevalue("redis_server").url, clock)


def _sql_url(request: pytest.FixtureRequest) -> str:
    if request.param == "sql":
        return f"sqlite:///{request.getfixturevalue('tmp_path')}/database.sqlite"
    return f"postgresql://airflow@127.0.0.1:{request.getfixturevalue('postgres').port}/airflow"


@pytest.fixture(params=["sqlite", "redis", "postgresql"])
def state_url(request: pytest.FixtureRequest) -> str:
    """The URL of each store that processes can share, on its own clock."""
    if request.param == "postgresql":
        return _sql_url(request)
    if request.param == "sqlite":
        return f"sqlite:///{request.getfixturevalue('sqlite_path')}"
    return str(request.getfixturevalue("redis_server").url)


@pytest.fixture
def worker() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that runs one task of `worker.py`; killed at the end of the test."""
    import sys

    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(WORKER), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(WORKER.parents[2])},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
