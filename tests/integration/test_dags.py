"""The operators and the sensor in the installed Airflow, against the sandbox over a socket."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest

from techflow_provider.sandbox import Sandbox

pytestmark = pytest.mark.airflow
RunDag = Callable[..., Any]


def change_connection(monkeypatch: pytest.MonkeyPatch, **extra: object) -> None:
    """Change the extra fields of the default connection."""
    connection = json.loads(os.environ["AIRFLOW_CONN_TECHFLOW_DEFAULT"])
    monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps(connection | {"extra": connection["extra"] | extra}))


def never_finish(sandbox: Sandbox) -> None:
    """Let the executions run on."""
    sandbox.on_request = lambda _: None


def test_every_operator_and_every_mode_of_the_sensor_does_its_work(served: Sandbox, run_dag: RunDag) -> None:
    run = run_dag("every_operator")
    assert run.state == "success", run.log[-6000:]
    assert set(run.tasks.values()) == {"success"}
    workflow_id, execution_id = run.returned["create"], run.returned["start"]
    assert run.returned["again"] == workflow_id
    assert run.returned["update"] == workflow_id
    assert run.returned["get"]["description"] == "changed"
    assert [workflow["id"] for workflow in run.returned["list_workflows"]] == [workflow_id]
    ended = [run.returned[mode] for mode in ("poke", "reschedule", "deferrable", "from_trigger")]
    assert ended == [ended[0]] * 4
    assert ended[0]["id"] == execution_id
    assert ended[0]["status"] == "completed"
    assert run.returned["first_since"]["id"] == execution_id
    started = [execution_id, run.returned["start_and_wait"], run.returned["start_and_defer"]]
    assert sorted(each["id"] for each in run.returned["list_executions"]) == sorted(started)
    assert served.count(method="POST", path="/workflows/*/execute") == len(started)
    assert not served.workflows


def test_a_failed_execution_fails_or_skips_its_task_alike_in_every_mode(served: Sandbox, run_dag: RunDag) -> None:
    run = run_dag("failed_execution")
    assert run.state == "failed"
    assert run.tasks == {
        "create": "success",
        "start": "success",
        **dict.fromkeys(("poke", "reschedule", "deferrable", "wait", "defer"), "failed"),
        **{f"{mode}_soft": "skipped" for mode in ("poke", "reschedule", "deferrable")},
        **{f"{mode}_allowed": "success" for mode in ("poke", "reschedule", "deferrable")},
    }
    failure = f"execution {run.returned['start']} of workflow {run.returned['create']} ended with status 'failed'"
    assert f"{failure}: table orders is locked" in run.log


def test_a_wait_that_times_out_ends_alike_in_every_mode(served: Sandbox, run_dag: RunDag) -> None:
    never_finish(served)
    run = run_dag("endless_execution")
    # Airflow 3.0's own sensor fails with a TypeError when a rescheduled wait times out, before it considers soft_fail.
    rescheduled = "failed" if version("apache-airflow").startswith("3.0.") else "skipped"
    assert run.tasks == {
        "create": "success",
        "start": "success",
        **dict.fromkeys(("poke", "reschedule", "deferrable", "wait", "defer"), "failed"),
        **{f"{mode}_soft": "skipped" for mode in ("poke", "deferrable")},
        "reschedule_soft": rescheduled,
    }
    assert "AirflowSensorTimeout" in run.log
    assert "ExecutionTimeoutError" in run.log
    assert "it keeps running in TechFlow, which has no call to cancel it" in run.log


def test_execution_timeout_ends_a_deferred_wait(served: Sandbox, run_dag: RunDag) -> None:
    never_finish(served)
    run = run_dag("execution_timeout", triggerer_speed=600)
    assert run.state == "failed"
    assert "AirflowTaskTimeout: execution_timeout of 600 s passed while waiting for execution" in run.log


def test_a_deferrable_task_waits_for_its_slot_in_the_triggerer(
    served: Sandbox, run_dag: RunDag, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.add_workflow("report", id="wf_1")
    change_connection(monkeypatch, requests_per_minute=200, burst=1)
    run = run_dag("admission")
    assert run.state == "success"
    assert "Waiting in the triggerer for a slot in the rate budget, not in this worker: POST" in run.log
    assert served.count(method="POST") == len(served.executions) == 1


def test_each_task_links_to_its_own_execution_by_the_connections_template(
    served: Sandbox, run_dag: RunDag, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        served.add_workflow(f"Workflow {number}", id=f"wf_{number}")
    change_connection(monkeypatch, dashboard_url="https://dash.test/{workflow_id}/{execution_id}")
    run = run_dag("links")
    assert run.state == "success"
    ids = {name: run.returned[name] for name in ("start[0]", "start[1]", "both")}
    assert run.links == {
        "start[0]": f"https://dash.test/wf_1/{ids['start[0]']}",
        "start[1]": f"https://dash.test/wf_2/{ids['start[1]']}",
        "both": f"https://dash.test/wf_1/{ids['both']}",
        "wait[0]": f"https://dash.test/wf_1/{ids['start[0]']}",
        "wait[1]": f"https://dash.test/wf_2/{ids['start[1]']}",
    }


def test_a_task_that_fails_starts_the_workflow_of_its_callback_once(served: Sandbox, run_dag: RunDag) -> None:
    served.add_workflow("alarm", id="wf_alarm")
    assert run_dag("notifier").state == "failed"
    (execution,) = served.executions
    assert str((execution.payload or {})["run"]).startswith("manual__")
