"""The operators and the sensor in the installed Airflow, against the sandbox over a socket."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from techflow_provider.client import Settings
from techflow_provider.sandbox import Sandbox
from techflow_provider.state.budget import RequestClass
from tests.integration.conftest import KEY, connection_to

pytestmark = pytest.mark.airflow
RunDag = Callable[[str], Any]


def said(log: Path) -> str:
    """Return a log on one line, since some versions of Airflow wrap their tracebacks."""
    return " ".join(log.read_text().split())


def test_every_operator_and_every_mode_of_the_sensor_does_its_work(served: Sandbox, run_dag: RunDag) -> None:
    run = run_dag("every_operator")
    assert run.state == "success"
    assert set(run.tasks.values()) == {"success"}
    workflow_id, execution_id = run.returned["create"], run.returned["start"]
    assert run.returned["again"] == workflow_id
    assert run.returned["update"] == workflow_id
    assert run.returned["get"]["description"] == "changed"
    assert [workflow["id"] for workflow in run.returned["list_workflows"]] == [workflow_id]
    ends = [run.returned[mode] for mode in ("poke", "reschedule", "deferrable", "from_trigger")]
    assert ends == [ends[0]] * 4
    assert ends[0]["id"] == execution_id
    assert ends[0]["status"] == "completed"
    assert run.returned["first_since"]["id"] == execution_id
    started = [execution_id, run.returned["start_and_wait"], run.returned["start_and_defer"]]
    assert sorted(each["id"] for each in run.returned["list_executions"]) == sorted(started)
    assert served.count(method="POST", path="/workflows/*/execute") == len(started)
    assert not served.workflows


def test_a_failed_execution_fails_or_skips_its_task_alike_in_every_mode(
    served: Sandbox, run_dag: RunDag, tmp_path: Path
) -> None:
    run = run_dag("failed_execution")
    assert run.state == "failed"
    assert run.tasks == {
        "create": "success",
        "start": "success",
        **dict.fromkeys(("poke", "reschedule", "deferrable", "wait", "defer"), "failed"),
        **{f"{mode}_soft": "skipped" for mode in ("poke", "reschedule", "deferrable")},
        **{f"{mode}_allowed": "success" for mode in ("poke", "reschedule", "deferrable")},
    }
    log = said(tmp_path / "failed_execution.log")
    seen = f"execution {run.returned['start']} of workflow {run.returned['create']} ended with status 'failed'"
    assert f"{seen}: table orders is locked" in log


def test_a_wait_that_takes_too_long_ends_alike_in_every_mode(served: Sandbox, run_dag: RunDag, tmp_path: Path) -> None:
    run = run_dag("endless_execution")
    # Airflow 3.0's own sensor fails with a TypeError when a rescheduled wait times out, before it looks at soft_fail.
    rescheduled = "failed" if version("apache-airflow").startswith("3.0.") else "skipped"
    assert run.tasks == {
        "create": "success",
        "start": "success",
        **dict.fromkeys(("poke", "reschedule", "deferrable", "wait", "defer"), "failed"),
        **{f"{mode}_soft": "skipped" for mode in ("poke", "deferrable")},
        "reschedule_soft": rescheduled,
    }
    log = said(tmp_path / "endless_execution.log")
    assert "AirflowSensorTimeout" in log
    assert "ExecutionTimeoutError" in log
    assert "it keeps running in TechFlow, which has no call to cancel it" in log


def test_execution_timeout_ends_a_deferred_wait(served: Sandbox, run_dag: RunDag, tmp_path: Path) -> None:
    run = run_dag("execution_timeout")
    assert run.state == "failed"
    log = said(tmp_path / "execution_timeout.log")
    assert "AirflowTaskTimeout: execution_timeout of 1 s passed while waiting for execution" in log


def test_a_deferrable_task_waits_for_its_slot_in_the_triggerer(
    served: Sandbox, run_dag: RunDag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from techflow_provider.hooks.budget import open_budget
    from techflow_provider.hooks.connection import TechFlowConnection

    served.add_workflow("report", id="wf_1")
    extra: dict[str, Any] = {"requests_per_minute": 30, "burst": 1}
    monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", connection_to(served.base_url, **extra))
    budget = open_budget(TechFlowConnection("techflow_default", Settings(KEY, served.base_url), **extra))
    for _ in range(12):
        budget.reserve(RequestClass.COMMAND, math.inf)
    assert run_dag("admission").state == "success"
    log = said(tmp_path / "admission.log")
    assert "Waiting in the triggerer for a slot in the rate budget, not in this worker: POST" in log
    assert served.count(method="POST") == len(served.executions) == 1
