"""The budget that a connection gets: one for all processes that use its key."""

from __future__ import annotations

import json
import logging
import math
import stat
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from techflow_provider.client import Client, InvalidParameterError, Settings
from techflow_provider.hooks import budget as budgets
from techflow_provider.hooks import state
from techflow_provider.hooks.budget import open_budget
from techflow_provider.hooks.connection import TechFlowConnection
from techflow_provider.hooks.state import default_state_file, spreading_executors
from techflow_provider.sandbox import Sandbox
from techflow_provider.state.budget import RequestClass, SharedBudget
from techflow_provider.state.open import fallback_store

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


def budget_of(
    base_url: str, key: str = KEY, conn_id: str = "techflow_default", requests_per_minute: int = 100
) -> SharedBudget:
    connection = TechFlowConnection(conn_id, Settings(key, base_url), requests_per_minute=requests_per_minute)
    budget = open_budget(connection)
    assert isinstance(budget, SharedBudget)
    return budget


def send_with(budget: SharedBudget) -> None:
    with Client(KEY, budget=budget, transport=Sandbox(api_keys=(KEY,)).transport()) as client:
        client.workflows.list()


def sent(budget: SharedBudget) -> int:
    """Count the requests of the last ten minutes, which no machine is too slow for."""
    return sum(sum(each.requests.values()) for each in budget.snapshot().history)


def test_another_process_and_this_one_share_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(api_keys=(KEY,)).serve() as url:
        connection = {"conn_type": "techflow", "host": url, "password": KEY}
        monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps(connection))
        subprocess.run([sys.executable, "-c", LIST_TWICE], check=True, capture_output=True)
        budget = budget_of(url)
        send_with(budget)
        assert sent(budget) == 3


def test_two_connections_with_one_key_and_base_url_share_one_budget() -> None:
    send_with(budget_of("http://a.example", conn_id="first"))
    assert sent(budget_of("http://a.example/", conn_id="second")) == 1


@pytest.mark.parametrize(("url", "key"), [("http://b.example", KEY), ("http://a.example", "another-key")])
def test_another_key_or_base_url_has_another_budget(url: str, key: str) -> None:
    send_with(budget_of("http://a.example"))
    assert sent(budget_of(url, key)) == 0


def test_the_state_is_a_private_file_in_airflows_home_without_the_key(home: Path) -> None:
    send_with(budget_of("http://a.example"))
    file = default_state_file()
    assert file == home / "techflow" / "state.db"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert KEY.encode() not in b"".join(path.read_bytes() for path in file.parent.iterdir())


def test_the_error_about_a_state_url_that_names_no_store_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_URL", "ftp://user:secret@host/1")
    with pytest.raises(InvalidParameterError) as caught:
        budget_of("http://a.example")
    assert "[techflow] state_url: expected" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_processes_whose_state_can_not_be_used_share_a_part_of_the_limit(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "techflow").write_text("a file where the folder belongs")
    monkeypatch.setenv("TMPDIR", str(home))
    monkeypatch.setattr("tempfile.tempdir", str(home))
    fallback_store.cache_clear()
    with Sandbox(api_keys=(KEY,)).serve() as url:
        extra = {"requests_per_minute": 10_000}
        connection = {"conn_type": "techflow", "host": url, "password": KEY, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps(connection))
        subprocess.run([sys.executable, "-c", LIST_TWICE], check=True, capture_output=True)
        budget = budget_of(url, requests_per_minute=10_000)
        send_with(budget)
    fallback_store.cache_clear()
    assert (sent(budget), budget.snapshot().requests_per_minute) == (3, 2_500)
    assert "The rate budget's state can't be used" in caplog.text


class Metrics:
    """What was reported to Airflow's metrics."""

    def __init__(self) -> None:
        self.reported: list[tuple[str, dict[str, str]]] = []
        self.waits: list[timedelta] = []

    def incr(self, name: str, tags: dict[str, str]) -> None:
        self.reported.append((name, tags))

    def timing(self, name: str, value: timedelta, tags: dict[str, str]) -> None:
        self.reported.append((name, tags))
        self.waits.append(value)


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Metrics:
    """Replace Airflow's metrics."""
    metrics = Metrics()
    monkeypatch.setattr(budgets, "Stats", metrics)
    return metrics


def test_metrics_count_waits_and_rejections_by_connection(metrics: Metrics) -> None:
    connection = TechFlowConnection("reports", Settings(KEY, "http://c.example"), requests_per_minute=60, burst=1)
    budget = open_budget(connection)
    waited = budget.reserve(RequestClass.COMMAND, math.inf)
    assert not budget.reserve(RequestClass.COMMAND, 0.0).granted
    budget.cool_down(1.0, waited)
    command: dict[str, Any] = {"conn_id": "reports", "request_class": "command"}
    assert metrics.reported == [
        ("techflow.budget.wait", command),
        ("techflow.budget.rejected", {**command, "by": "budget"}),
        ("techflow.budget.rejected", {"conn_id": "reports", "by": "server"}),
    ]
    assert metrics.waits == [timedelta(seconds=waited.wait_seconds)]


def test_metrics_count_every_request_once(metrics: Metrics) -> None:
    budget = budget_of("http://d.example", conn_id="reports")
    send_with(budget)
    send_with(budget)
    counted = [tags for name, tags in metrics.reported if name == "techflow.requests"]
    assert counted == [{"conn_id": "reports", "request_class": "command"}] * 2


@pytest.mark.parametrize(
    ("executor", "spreading"),
    [
        ("LocalExecutor", []),
        ("CeleryExecutor", ["CeleryExecutor"]),
        ("LocalExecutor,k8s:airflow.providers.cncf.kubernetes.executors.x.KubernetesExecutor", ["KubernetesExecutor"]),
        ("LocalExecutor;team1=CeleryExecutor,LocalExecutor", ["CeleryExecutor"]),
    ],
)
def test_executors_that_spread_tasks_over_hosts_are_known(
    executor: str, spreading: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", executor)
    assert spreading_executors() == spreading


@pytest.mark.parametrize(("state_url", "warnings"), [("", 1), ("redis://localhost:1/0", 0)])
def test_a_file_that_hosts_can_not_share_is_warned_of_once_a_process(
    state_url: str, warnings: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_URL", state_url)
    state.warn_of_hosts.cache_clear()
    with caplog.at_level(logging.WARNING, state.__name__):
        budget_of("http://e.example")
        budget_of("http://f.example")
    assert len(caplog.messages) == warnings
    assert all("[techflow] state_url" in message and "may be repeated" in message for message in caplog.messages)
