"""A real Airflow and a sandbox for the code blocks of the documents, and a count of them at the end."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from techflow_provider.sandbox import Sandbox
from tests.documents.blocks import ROOT
from tests.integration.dag_runner import run_command, skip_real_time

KEY = "sandbox-key"
HOME = Path(os.environ["AIRFLOW_HOME"])
# Set before any test imports Airflow, which reads them once.
os.environ.update(
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    AIRFLOW__CORE__DAGS_FOLDER=str(HOME / "dags"),
    AIRFLOW__CORE__TEST_CONNECTION="Enabled",
    AIRFLOW__TECHFLOW__POLL_INTERVAL="0.2",
    PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
)
outcomes: Counter[str] = Counter()


@pytest.fixture(scope="session")
def airflow_home() -> Path:
    """Return Airflow's home, with a folder for DAGs and a database."""
    (HOME / "dags").mkdir()
    for path in (ROOT / "dags_examples").glob("*.json"):
        shutil.copy(path, HOME / "dags")
    assert run_command("db", "migrate") == {"returncode": 0}
    skip_real_time()
    return HOME


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch, airflow_home: Path) -> Iterator[Sandbox]:
    """Serve a sandbox with the workflows of the documents to the default connection."""
    workflows = {"wf_123": "Nightly report", "wf_456": "Repair", "wf_789": "Publish"}
    sandbox = Sandbox(api_keys=(KEY,), workflows_at_start=workflows, limit=10_000, execution_seconds=0.05)
    with sandbox.serve() as url:
        extra = {"requests_per_minute": 10_000, "burst": 1000}
        connection = {"conn_type": "techflow", "host": url, "password": KEY, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps(connection))
        yield sandbox


@pytest.fixture
def count() -> Counter[str]:
    """Return what has become of the blocks so far."""
    return outcomes


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what became of the blocks, and why some did not run."""
    reasons = Counter(each.longrepr[2] for each in terminalreporter.stats.get("skipped", []))
    shown = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
    terminalreporter.write_line(f"· {sum(outcomes.values()) + sum(reasons.values())} code blocks: {shown}")
    for reason, number in reasons.most_common():
        terminalreporter.write_line(f"·   {number} not run: {str(reason).removeprefix('Skipped: ')}")
