"""Run the command line against a sandbox, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from techflow_provider.cli import main
from techflow_provider.hooks import state
from techflow_provider.sandbox import Sandbox

KEY = "key-of-the-command-tests"
# No test waits for this budget.
WIDE = {"requests_per_minute": 10_000, "burst": 1000}


@dataclass(frozen=True)
class Result:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give each test its own state, and let it choose where."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    state._choice.cache_clear()
    yield tmp_path
    state._choice.cache_clear()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Define the default connection."""

    def define(host: str, password: str = KEY, conn_type: str = "techflow", **extra: Any) -> None:
        connection = {"conn_type": conn_type, "host": host, "password": password, "extra": {**WIDE, **extra}}
        monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps(connection))

    return define


@pytest.fixture
def served(connect: Callable[..., None]) -> Iterator[Sandbox]:
    """A sandbox with one workflow, and the default connection pointing to it."""
    sandbox = Sandbox(api_keys=(KEY,), limit=10_000, workflows_at_start={"wf_1": "Nightly"}, execution_seconds=0.05)
    with sandbox.serve() as url:
        connect(url)
        yield sandbox


@pytest.fixture
def techflow(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command."""

    def run(*arguments: str) -> Result:
        try:
            code = main(arguments)
        except SystemExit as error:
            code = int(error.code or 0)
        captured = capsys.readouterr()
        assert KEY not in captured.out + captured.err
        return Result(code, captured.out, captured.err)

    return run
