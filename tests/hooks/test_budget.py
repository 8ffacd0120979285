"""The budget that a connection gets: one for all processes that use its key."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from techflow_provider.client import Client, InvalidParameterError, Settings
from techflow_provider.hooks.budget import default_state_file, open_budget
from techflow_provider.hooks.connection import TechFlowConnection
from techflow_provider.sandbox import Sandbox
from techflow_provider.state.budget import SharedBudget

KEY = "key-of-the-budget-tests"
LIST_TWICE = """
from techflow_provider.hooks.techflow import TechFlowHook
hook = TechFlowHook()
hook.list_workflows(), hook.list_workflows()
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a state of its own."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    return tmp_path


def budget_of(base_url: str, key: str = KEY, conn_id: str = "techflow_default") -> SharedBudget:
    budget = open_budget(TechFlowConnection(conn_id, Settings(key, base_url)))
    assert isinstance(budget, SharedBudget)
    return budget


def send_with(budget: SharedBudget) -> None:
    with Client(KEY, budget=budget, transport=Sandbox(api_keys=(KEY,)).transport()) as client:
        client.workflows.list()


def used(budget: SharedBudget) -> int:
    return sum(budget.snapshot().used.values())


def test_two_processes_and_this_one_share_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(api_keys=(KEY,)).serve() as url:
        connection = {"conn_type": "techflow", "host": url, "password": KEY}
        monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps(connection))
        for _ in range(2):
            subprocess.run([sys.executable, "-c", LIST_TWICE], check=True, capture_output=True)
        assert used(budget_of(url)) == 4


def test_two_connections_with_one_key_and_base_url_share_one_budget() -> None:
    send_with(budget_of("http://a.example", conn_id="first"))
    assert used(budget_of("http://a.example/", conn_id="second")) == 1


@pytest.mark.parametrize(("url", "key"), [("http://b.example", KEY), ("http://a.example", "another-key")])
def test_another_key_or_base_url_has_another_budget(url: str, key: str) -> None:
    send_with(budget_of("http://a.example"))
    assert used(budget_of(url, key)) == 0


def test_the_state_is_a_private_file_in_airflows_home_without_the_key(home: Path) -> None:
    send_with(budget_of("http://a.example"))
    file = default_state_file()
    assert file == home / "techflow" / "state.db"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert KEY.encode() not in b"".join(path.read_bytes() for path in file.parent.iterdir())


def test_a_state_url_that_names_no_store_is_refused_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_URL", "ftp://user:secret@host/1")
    with pytest.raises(InvalidParameterError) as caught:
        budget_of("http://a.example")
    assert "[techflow] state_url: expected" in str(caught.value)
    assert "secret" not in str(caught.value)
