"""A real Airflow of the installed version in a home of its own, and the sandbox over a socket."""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from techflow_provider.sandbox import Record, Sandbox

ROOT = Path(__file__).parents[2]
DAG_FOLDERS = (ROOT / "tests" / "integration" / "dags", ROOT / "dags_examples")
# Made by the conftest above, for these tests alone.
HOME = Path(os.environ["AIRFLOW_HOME"])
KEY = "key-of-the-integration-tests"
# Bounds a hang only.
HANG_SECONDS = 1800.0
# Executions end when they have been polled, not after a time.
NEVER = 86_400.0
# Set before any test imports Airflow, which reads them once.
os.environ.update(
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    AIRFLOW__CORE__DAGS_FOLDER=str(HOME / "dags"),
    AIRFLOW__CORE__TEST_CONNECTION="Enabled",
    AIRFLOW__TECHFLOW__POLL_INTERVAL="0.2",
)


@dataclass(frozen=True)
class Run:
    """A finished DAG run: its state and log, and by task the state, what it returned and its link."""

    log: str
    state: str
    tasks: dict[str, str] = field(default_factory=dict)
    returned: dict[str, Any] = field(default_factory=dict)
    links: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """A finished command."""

    returncode: int
    stdout: str
    stderr: str


class AirflowProcess:
    """One process that runs DAGs and commands one after the other, because each start of Airflow takes seconds."""

    def __init__(self, home: Path, logs: Path) -> None:
        self._home = home
        self._logs = logs
        self._requests = 0
        self._process: subprocess.Popen[str] | None = None

    def command(self, *arguments: str) -> Finished:
        """Run Airflow's command line."""
        response, stdout, stderr = self._send({"arguments": arguments})
        return Finished(response["returncode"], stdout, stderr)

    def run_dag(self, dag_id: str, triggerer_speed: float = 1.0) -> Run:
        """Run a DAG through `dag.test()`, as its author would.

        :param triggerer_speed: how many times as fast the deadlines of triggers come
        """
        response, stdout, stderr = self._send({"dag_id": dag_id, "triggerer_speed": triggerer_speed})
        assert response["state"] != "raised", stdout[-6000:] + stderr[-6000:]
        # Airflow 3.0 itself logs, at DEBUG, its request to mask the key, with the key.
        assert not [line for line in (stdout + stderr).splitlines() if KEY in line and "MaskSecret" not in line]
        # On one line, since some versions of Airflow wrap their tracebacks.
        return Run(log=" ".join((stdout + stderr).split()), **response)

    def _send(self, request: dict[str, Any]) -> tuple[dict[str, Any], str, str]:
        self._requests += 1
        stdout, stderr = (self._logs / f"{self._requests}.{name}" for name in ("stdout", "stderr"))
        connections = {name: value for name, value in os.environ.items() if name.startswith("AIRFLOW_CONN_")}
        paths = {"stdout": str(stdout), "stderr": str(stderr)}
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(json.dumps({**request, **paths, "connections": connections}) + "\n")
        process.stdin.flush()
        response = self._read_line(process)
        printed = tuple(path.read_text() if path.exists() else "" for path in (stdout, stderr))
        assert response, f"the process ended: {''.join(printed)[-6000:]}"
        assert not [line for line in "".join(printed).splitlines() if "techflow_provider" in line and "Warning" in line]
        return json.loads(response), *printed

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "default", str(Path(__file__).parent / "dag_runner.py")]
        with (self._logs / "start").open("w") as log:
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=self._home
            )

    def _read_line(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(HANG_SECONDS):
                process.kill()
                pytest.fail(f"Airflow did not respond within {HANG_SECONDS:g} s")
        return process.stdout.readline()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()


@pytest.fixture(scope="session")
def airflow_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowProcess]:
    """Airflow in a process of its own, which starts with the first request."""
    process = AirflowProcess(HOME, tmp_path_factory.mktemp("airflow"))
    yield process
    process.close()
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def airflow_home(airflow_process: AirflowProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fill the folder of DAGs, and create Airflow's database; all workers of a test run copy the same one."""
    dags = HOME / "dags"
    dags.mkdir()
    for folder in DAG_FOLDERS:
        for path in (*folder.glob("*.py"), *folder.glob("*.json")):
            shutil.copy(path, dags)
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    database, template = HOME / "airflow.db", shared / "airflow.db"
    with locked(shared / "airflow.lock"):
        if not template.exists():
            done = airflow_process.command("db", "migrate")
            assert done.returncode == 0, done.stdout + done.stderr
            copy_database(database, template)
            return HOME
    copy_database(template, database)
    return HOME


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite database with what its log has not written back yet."""
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Serve a sandbox to the default connection; an execution ends once a poll has shown it running."""
    sandbox = Sandbox(api_keys=(KEY,), limit=10_000, execution_seconds=NEVER)

    def finish(request: Record) -> None:
        if (request.method, request.path) == ("GET", "/executions"):
            finish_running(sandbox)

    sandbox.on_request = finish
    with sandbox.serve() as url:
        monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", connection_to(url, requests_per_minute=10_000, burst=1000))
        yield sandbox


def finish_running(sandbox: Sandbox) -> None:
    """End every execution that is running, as it is planned."""
    for execution in sandbox.executions:
        if execution.finished_at is None:
            sandbox.finish(execution.id)


def connection_to(base_url: str, **extra: int) -> str:
    """Return a connection as Airflow reads it from the environment."""
    return json.dumps({"conn_type": "techflow", "host": base_url, "password": KEY, "extra": extra})


@pytest.fixture
def run_dag(airflow_home: Path, airflow_process: AirflowProcess) -> Callable[..., Run]:
    """Run a DAG in the real Airflow."""
    return airflow_process.run_dag


@pytest.fixture
def open_page(airflow_home: Path, served: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Request the page as a user with a role, or without one."""
    monkeypatch.setenv(
        "AIRFLOW__API_AUTH__JWT_SECRET", "secret-of-the-page-tests-0123456789-0123456789-0123456789-01234"
    )
    from airflow.api_fastapi.app import create_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from fastapi.testclient import TestClient

    from techflow_provider.plugin import TechFlowPlugin

    manager: Any = create_auth_manager()
    (mounted,) = (each for each in TechFlowPlugin().fastapi_apps if each["url_prefix"] == "/techflow-page")
    with TestClient(mounted["app"]) as client:

        def ask(role: str | None, path: str = "/") -> Any:
            if role is None:
                return client.get(path)
            token = manager.generate_jwt(SimpleAuthManagerUser(username="me", role=role))
            return client.get(path, headers={"authorization": f"Bearer {token}"})

        yield ask
