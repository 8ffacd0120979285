"""The installed Airflow runs the operators, the sensor and the examples in DAGs, and its commands know the package."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from airflow.plugins_manager import AirflowPlugin

from techflow_provider import __version__
from techflow_provider.cli import main
from techflow_provider.sandbox import Record, Sandbox
from tests.integration.conftest import HOME, AirflowProcess, Finished, finish_running

pytestmark = [
    pytest.mark.airflow,
    # Airflow warns about itself when it is imported; ours would still fail the test.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:::techflow_provider"),
]
RunDag = Callable[..., Any]
Command = Callable[..., Finished]


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
    # Airflow 3.0's own sensor fails with a TypeError when a rescheduled wait times out, before it considers soft_fail,
    # unless the time was over when it poked first.
    soft = {"skipped", "failed"} if version("apache-airflow").startswith("3.0.") else {"skipped"}
    assert run.tasks.pop("reschedule_soft") in soft
    assert run.tasks == {
        "create": "success",
        "start": "success",
        **dict.fromkeys(("poke", "reschedule", "deferrable", "wait", "defer"), "failed"),
        **{f"{mode}_soft": "skipped" for mode in ("poke", "deferrable")},
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
    assert "Waiting in the triggerer for a slot in the rate budget, not in this worker: others are waiting" in run.log
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


@pytest.mark.skipif(not hasattr(AirflowPlugin, "external_views"), reason="this Airflow has no external views")
def test_the_page_shows_the_executions_of_visible_dags(
    served: Sandbox, run_dag: RunDag, open_page: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        served.add_workflow(f"Workflow {number}", id=f"wf_{number}")
    run = run_dag("links")
    html = open_page("admin").text
    assert run.returned["both"] in html
    assert ">start [1]</a>" in html
    assert "completed" in html
    from airflow.api_fastapi.app import get_auth_manager

    # Airflow's own API would show neither XComs nor task instances to such a user.
    manager: Any = get_auth_manager()
    monkeypatch.setattr(manager, "is_authorized_dag", lambda *, access_entity=None, **_: access_entity is None)
    denied = open_page("admin").text
    assert run.returned["both"] not in denied
    assert "start [1]" not in denied


@pytest.mark.parametrize(
    ("dag_id", "started"),
    [
        ("techflow_create_trigger_wait", 1),
        ("techflow_trigger_and_wait", 1),
        ("techflow_mapped", 2),
        ("techflow_branch_on_status", 1),
        ("techflow_hook_in_python", 0),
        ("techflow_clean_up", 0),
        ("techflow_payload", 4),
        ("techflow_several_executions", 2),
        ("techflow_retries", 1),
        ("techflow_callbacks", 2),
        ("techflow_on_event", 0),
    ],
)
def test_an_example_succeeds_and_starts_as_many_executions_as_it_should(
    dag_id: str, started: int, served: Sandbox, run_dag: RunDag
) -> None:
    served.add_workflow("first", id="wf_123")
    served.add_workflow("second", id="wf_124")
    run = run_dag(dag_id)
    assert run.state == "success", run.log[-6000:]
    assert "failed" not in run.tasks.values()
    assert len(served.executions) == started


def test_the_example_that_waits_for_the_next_execution_finds_one_started_elsewhere(
    served: Sandbox, run_dag: RunDag
) -> None:
    served.add_workflow("first", id="wf_123")
    earlier = served.start("wf_123")
    served.finish(earlier.id)

    def start_and_finish(_: Record) -> None:
        # After the response to the first poll, and in the second.
        if len(served.executions) == 1:
            served.start("wf_123")
        else:
            finish_running(served)

    served.on_request = start_and_finish
    run = run_dag("techflow_next_execution")
    assert run.state == "success"
    assert run.returned["wait_for_next"]["id"] in {each.id for each in served.executions} - {earlier.id}


@pytest.fixture
def airflow(airflow_home: Path, airflow_process: AirflowProcess) -> Command:
    """Run Airflow's command line."""
    return airflow_process.command


def test_airflow_knows_the_provider(airflow: Command) -> None:
    done = airflow("providers", "get", "airflow-provider-techflow", "--full", "--output", "json")
    assert done.returncode == 0, done.stderr
    assert __version__ in done.stdout
    assert "techflow_provider.hooks.techflow.TechFlowHook" in done.stdout


def test_the_connections_test_succeeds_with_the_right_key(served: Sandbox, airflow: Command) -> None:
    done = airflow("connections", "test", "techflow_default")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Connection success!" in done.stdout


def test_the_connections_test_says_that_the_key_is_wrong_and_does_not_show_it(
    served: Sandbox, airflow: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"conn_type": "techflow", "host": served.base_url, "password": "wrong-key-4711"}
    monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps(wrong))
    done = airflow("connections", "test", "techflow_default")
    assert "copy it again from TechFlow" in done.stdout + done.stderr
    assert "wrong-key-4711" not in done.stdout + done.stderr


def test_all_dags_are_imported_without_an_error(airflow: Command) -> None:
    done = airflow("dags", "list-import-errors", "--output", "json")
    assert "Traceback" not in done.stdout + done.stderr
    assert "techflow" not in done.stdout.lower(), done.stdout


def test_doctor_knows_whether_a_triggerer_runs(
    served: Sandbox, airflow_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from airflow.jobs.job import Job
    from airflow.utils.session import create_session

    assert main(["doctor"]) == 0
    assert "no triggerer is running" in capsys.readouterr().out
    with create_session() as session:
        session.add(Job(job_type="TriggererJob", state="running"))  # type: ignore[no-untyped-call]
    try:
        assert main(["doctor"]) == 0
        assert "a triggerer is running" in capsys.readouterr().out
    finally:
        # Airflow 2.11's `dag.test()` leaves deferred tasks to a triggerer that seems to run.
        with create_session() as session:
            session.query(Job).filter_by(job_type="TriggererJob").delete()


@pytest.mark.parametrize("rendering", ["text", "native"])
def test_values_of_templates_and_of_mapped_tasks_arrive(rendering: str, served: Sandbox, run_dag: RunDag) -> None:
    served.add_workflow("numbered", id="12346")
    run = run_dag(f"values_{rendering}")
    assert run.state == "success", run.log[-6000:]
    assert run.returned["get"]["id"] == "12346"
    assert len(run.returned["list"]) == len(served.executions) == 6
    payloads = {each.id: each.payload for each in served.executions}
    sent = {name: payloads[run.returned[name]] for name in ("lazy", "text", "rendered", "conf", "inside", "file")}
    day = (sent["text"] or {})["day"]
    assert sent == {
        "lazy": {"parts": [1, 2], "1": "a", "b": 2},
        "text": {"day": day},
        "rendered": {"day": "2026-01-01", "n": 1},
        "conf": {},
        "inside": {"path": "data.json"},
        "file": {"day": day, "from": "a file"},
    }


def test_a_task_that_pushes_no_result_pushes_nothing_at_all(served: Sandbox, run_dag: RunDag) -> None:
    served.add_workflow("numbered", id="12346")
    run = run_dag("no_xcoms")
    assert run.state == "success", run.log[-6000:]
    with closing(sqlite3.connect(HOME / "airflow.db")) as database:
        assert database.execute("select task_id, key from xcom where dag_id = 'no_xcoms'").fetchall() == []


def test_a_refused_key_skips_or_fails_alike_in_every_mode(
    served: Sandbox, run_dag: RunDag, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = json.loads(os.environ["AIRFLOW_CONN_TECHFLOW_DEFAULT"])
    monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps(connection | {"password": "wrong-key"}))
    run = run_dag("refused_key")
    modes = ("poke", "reschedule", "deferrable")
    skipped, failed = ({f"{mode}_{policy}" for mode in modes} for policy in ("never_fail", "soft_fail"))
    assert {name for name, state in run.tasks.items() if state == "skipped"} == skipped
    assert {name for name, state in run.tasks.items() if state == "failed"} == failed
