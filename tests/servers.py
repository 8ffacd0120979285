"""Servers that tests and benchmarks start for themselves: PostgreSQL, Redis, and a proxy that delays or drops bytes.

Each listens on the loopback alone, on a free port, in a folder of its own, and is ended by its process id.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

T = TypeVar("T")

READY_SECONDS = 120.0
ASK_SECONDS = 0.2


def free_port() -> int:
    """Return a port of the loopback that nothing listens on."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        return int(unheard.getsockname()[1])


def until(ask: Callable[[], T | None], seconds: float, wanted: str) -> T:
    """Ask again and again until there is a result.

    :raises TimeoutError: there was none in time
    """
    deadline = time.monotonic() + seconds
    while True:
        result = ask()
        if result:
            return result
        if time.monotonic() > deadline:
            raise TimeoutError(f"{wanted}: not within {seconds:g} s")
        time.sleep(ASK_SECONDS)


def listens(port: int) -> bool:
    """Whether a port of the loopback accepts connections."""
    with socket.socket() as caller:
        caller.settimeout(1)
        return caller.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Program:
    """A process with a group of its own and its output in a file.

    :param name: what it is called in the file's name
    :param command: its command line
    :param log: the file
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                env=dict(self.environment),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self.log.parent,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self.process is not None and self.process.poll() is not None

    def kill(self) -> None:
        """Kill it and its children at once, as the loss of a host does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end, and kill it when it does not."""
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        signal_group(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        # Its children may outlive it.
        signal_group(process.pid, signal.SIGKILL)
        process.wait(15)


def signal_group(group: int, number: int) -> None:
    """Send a signal to a group of processes, if it still exists."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)


class Postgres:
    """A private PostgreSQL on a free port, run as the user `postgres` when this is root's process.

    :param folder: where its files are; made here
    :param settings: further settings of the server, such as `fsync=on`
    """

    def __init__(self, folder: Path, *settings: str) -> None:
        self._folder = folder
        self._settings = ("fsync=off", "max_connections=200", *settings)
        self.port = free_port()

    def __enter__(self) -> Self:
        self._folder.mkdir()
        if os.geteuid() == 0:
            shutil.chown(self._folder, "postgres")
        self._run("initdb", "-D", str(self._folder / "data"), "-U", "airflow", "-A", "trust", "--no-sync")
        self.start()
        self.query("postgres", "CREATE DATABASE airflow")
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The URL of its database, for SQLAlchemy."""
        return f"postgresql+psycopg2://airflow@127.0.0.1:{self.port}/airflow"

    def start(self) -> None:
        """Start the server, and wait until it responds."""
        listen = f"-p {self.port} -k {shlex.quote(str(self._folder))} -c listen_addresses=127.0.0.1"
        options = " ".join([listen, *(f"-c {setting}" for setting in self._settings)])
        log = str(self._folder / "log")
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-l", log, "-o", options, "-w", "start")

    def stop(self) -> None:
        """End the server at once, as a crash does."""
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        path = _postgres_program(program)
        user: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []}
        with (self._folder.parent / "postgres.log").open("ab") as output:
            done = subprocess.run(
                [path, *arguments],
                cwd=self._folder,
                # The server keeps what it is given open, so a pipe would never end.
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=60,
                **(user if os.geteuid() == 0 else {}),
            )
        if done.returncode:
            raise RuntimeError(f"{program} failed; see {output.name}")

    def query(self, database: str, statement: str) -> list[list[str]]:
        """Run a statement and return its rows as text."""
        url = f"postgresql://airflow@127.0.0.1:{self.port}/{database}"
        program = [_postgres_program("psql"), url, *["-X", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-c"]]
        done = subprocess.run([*program, statement], capture_output=True, text=True, check=False, timeout=30)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return [line.split("\t") for line in done.stdout.splitlines()]


def _postgres_program(name: str) -> str:
    # Debian's programs on the path are scripts that search for these.
    found = next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None) or shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is missing (apt-get install postgresql)")
    return found


@dataclass(frozen=True)
class Redis:
    """A Redis on a free port of the loopback, which keeps all that it has acknowledged when it is killed.

    :param program: its process
    :param port: its port
    """

    program: Program
    port: int

    @classmethod
    def at(cls, folder: Path, *options: str) -> Redis:
        """Return one that is not running yet.

        :param options: further words of its command line, such as `--maxmemory 1mb`
        """
        port = free_port()
        kept = ["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--dir", str(folder)]
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", *kept, *options]
        return cls(Program("redis", command, {"PATH": os.environ["PATH"]}, folder / "redis.log"), port)

    def url(self, number: int = 0) -> str:
        """Return the URL of one of its databases."""
        return f"redis://127.0.0.1:{self.port}/{number}"

    @classmethod
    @contextmanager
    def running(cls, folder: Path, *options: str) -> Iterator[Redis]:
        """Run one while the context lasts, once it responds."""
        redis = cls.at(folder, *options)
        redis.start()
        try:
            yield redis
        finally:
            redis.program.stop()

    def start(self) -> None:
        """Start the server, and wait until it responds."""
        self.program.start()
        until(lambda: "PONG" in self.command("ping"), READY_SECONDS, "Redis")

    def command(self, *words: str) -> str:
        """Return what it responds to a command."""
        command = ["redis-cli", "-p", str(self.port), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout


class Proxy:
    """Forwards connections to one of several ports in turn, and can delay what passes, hold it back or refuse it.

    :param ports: the servers; one that doesn't listen is passed over
    """

    def __init__(self, *ports: int) -> None:
        self.ports = list(ports)
        self.delay_seconds = 0.0
        self.connections = 0
        self._flows = threading.Event()
        self._flows.set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.heal()
        # Wakes the thread that accepts, as closing alone would not.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def partition(self) -> None:
        """Let nothing pass, as a network does that drops packets; connections are still accepted."""
        self._flows.clear()

    def heal(self) -> None:
        """Let what was held back pass."""
        self._flows.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        self.connections += 1
        start = self.connections % len(self.ports)
        for port in self.ports[start:] + self.ports[:start]:
            with suppress(OSError):
                server = socket.create_connection(("127.0.0.1", port))
                threading.Thread(target=self._pump, args=(server, client), daemon=True).start()
                self._pump(client, server)
                return
        client.close()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(65536):
                time.sleep(self.delay_seconds)
                self._flows.wait()
                target.sendall(content)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
