"""A real Airflow of the installed version in a home of its own, and the sandbox over a socket."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from techflow_provider.sandbox import Sandbox

ROOT = Path(__file__).parents[2]
DAG_FOLDERS = (ROOT / "tests" / "integration" / "dags", ROOT / "dags_examples")
# Made by the conftest above, for these tests alone.
HOME = Path(os.environ["AIRFLOW_HOME"])
KEY = "key-of-the-integration-tests"
# Set before any test imports Airflow, which reads them once.
os.environ.update(
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    AIRFLOW__CORE__DAGS_FOLDER=str(HOME / "dags"),
    AIRFLOW__CORE__TEST_CONNECTION="Enabled",
    AIRFLOW__TECHFLOW__POLL_INTERVAL="0.2",
)


@dataclass(frozen=True)
class Run:
    """What a DAG run left: its state, and by task the state, what it returned and its link."""

    state: str
    tasks: dict[str, str] = field(default_factory=dict)
    returned: dict[str, Any] = field(default_factory=dict)
    links: dict[str, str | None] = field(default_factory=dict)


@pytest.fixture(scope="session")
def airflow_home() -> Iterator[Path]:
    """Create Airflow's database and its folder of DAGs, once."""
    dags = HOME / "dags"
    dags.mkdir()
    for folder in DAG_FOLDERS:
        for path in folder.glob("*.py"):
            shutil.copy(path, dags)
    done = airflow("db", "migrate")
    assert done.returncode == 0, done.stdout + done.stderr
    yield HOME
    shutil.rmtree(HOME, ignore_errors=True)


def airflow(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Airflow's command line."""
    command = [sys.executable, "-m", "airflow", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Serve a sandbox whose executions take half a second, and point the default connection at it."""
    sandbox = Sandbox(api_keys=(KEY,), limit=10_000, execution_seconds=0.5)
    with sandbox.serve() as url:
        monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", connection_to(url, requests_per_minute=10_000, burst=1000))
        yield sandbox


def connection_to(base_url: str, **extra: int) -> str:
    """Return a connection as Airflow reads it from the environment."""
    return json.dumps({"conn_type": "techflow", "host": base_url, "password": KEY, "extra": extra})


@pytest.fixture
def run_dag(airflow_home: Path, tmp_path: Path) -> Callable[[str], Run]:
    """Run a DAG through `dag.test()` in a process of its own, as its author would."""

    def run(dag_id: str) -> Run:
        result = tmp_path / f"{dag_id}.json"
        command = [sys.executable, str(Path(__file__).parent / "dag_runner.py"), dag_id, str(result)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, cwd=airflow_home)
        (tmp_path / f"{dag_id}.log").write_text(done.stdout + done.stderr)
        assert result.exists(), done.stdout[-6000:] + done.stderr[-6000:]
        lines = (done.stdout + done.stderr).splitlines()
        # Airflow 3.0 itself logs, at DEBUG, that it was told to mask the key, with the key.
        assert not [line for line in lines if KEY in line and "MaskSecret" not in line]
        return Run(**json.loads(result.read_text()))

    return run
