"""Exactly one execution in a real Airflow: tasks that are killed with SIGKILL, fail, and are cleared."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from techflow_provider.sandbox import Fault, Sandbox
from techflow_provider.sandbox.state import Execution
from tests.deployment.airflow_deployment import KEY, Deployment, deployment
from tests.servers import until

pytestmark = pytest.mark.airflow
HERE = Path(__file__).parent
SLOW_KEY = "key-whose-budget-has-no-slot-at-once"
KILLED = ("killed_before_the_request", "killed_before_the_response", "killed_while_waiting", "killed_when_resuming")
DAGS = (*KILLED, "failed", "cleared_when_finished", "cleared_when_finished_waiting", "cleared_while_running")


@pytest.fixture(scope="module")
def running() -> Iterator[Deployment]:
    """An Airflow in which all DAGs have been triggered."""
    sandbox = Sandbox(api_keys=(KEY, SLOW_KEY), limit=100_000, execution_seconds=8.0)
    for name in DAGS:
        sandbox.add_workflow(name, id=name)
    sandbox.plan("killed_while_waiting", seconds=40.0)
    sandbox.plan("cleared_while_running", seconds=3600.0)
    sandbox.plan("failed", seconds=10.0, outcome="failed", error="disk full")
    sandbox.faults.add(Fault("hang", path="/workflows/killed_before_the_response/execute", when="after", times=1))
    python = os.environ.get("AIRFLOW_PYTHON", sys.executable)
    environment = {"AIRFLOW__TECHFLOW__HISTORY_LAG": "3"}
    extra = {"requests_per_minute": 10_000, "burst": 1000, "timeout": 10}
    # A budget begins empty, so that the first request waits for its slot.
    slow = {"password": SLOW_KEY, "extra": {"requests_per_minute": 8, "burst": 1, "timeout": 10}}
    dags = [HERE / "dags" / "starts.py"]
    with deployment(
        python, dags, sandbox=sandbox, extra=extra, others={"techflow_slow": slow}, environment=environment
    ) as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def triggered(running: Deployment) -> None:
    running.await_dags(*DAGS)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(running.trigger, DAGS))


def begin(running: Deployment, dag_id: str) -> None:
    """Let a task begin that waits for its test."""
    running.await_task(dag_id, "start", "running", seconds=240)
    (running.home / f"go-{dag_id}").touch()


def executions(running: Deployment, workflow_id: str) -> list[Execution]:
    return [each for each in running.sandbox.executions if each.workflow_id == workflow_id]


def decision(running: Deployment, dag_id: str) -> str:
    """Return how the task came to its execution, according to its XCom."""
    start = running.xcom(dag_id, "start", "techflow_start")
    assert start["execution_id"] == running.xcom(dag_id, "start") == executions(running, dag_id)[-1].id
    return str(start["decision"])


def second_try(running: Deployment, dag_id: str) -> str:
    """Check that a killed task succeeds in its second try with one execution, and return how it came to it."""
    assert running.await_task(dag_id, "start", "success").tries == 2
    assert len(executions(running, dag_id)) == 1
    return decision(running, dag_id)


def test_a_task_that_is_killed_before_its_request_starts_one(running: Deployment) -> None:
    dag_id = "killed_before_the_request"
    begin(running, dag_id)
    until(lambda: "for a slot" in running.log(dag_id, "start", 1), 600, "a wait for the budget")
    running.kill_task(dag_id, "start")
    assert not executions(running, dag_id)
    assert second_try(running, dag_id) == "started"


def test_a_task_that_is_killed_before_the_response_adopts_what_it_started(running: Deployment) -> None:
    dag_id = "killed_before_the_response"
    begin(running, dag_id)
    until(lambda: executions(running, dag_id), 600, "an execution")
    running.kill_task(dag_id, "start")
    assert second_try(running, dag_id) == "adopted after a lost answer"


def test_a_task_that_is_killed_while_it_waits_joins_what_it_started(running: Deployment) -> None:
    dag_id = "killed_while_waiting"
    begin(running, dag_id)
    until(lambda: " was started: " in running.log(dag_id, "start", 1), 600, "a log line about the execution")
    running.kill_task(dag_id, "start")
    assert second_try(running, dag_id) == "re-attached"


def test_a_task_that_is_killed_when_it_resumes_joins_what_it_started(running: Deployment) -> None:
    dag_id = "killed_when_resuming"
    begin(running, dag_id)
    until((running.home / "resumed").exists, 600, "the end of the deferral")
    running.kill_task(dag_id, "start")
    assert second_try(running, dag_id) == "re-attached"


def test_a_retry_after_a_failed_execution_starts_another(running: Deployment) -> None:
    begin(running, "failed")
    until(lambda: executions(running, "failed"), 600, "an execution")
    running.sandbox.plan("failed", seconds=8.0)
    # On a busy host Airflow may lose the event of a deferral and try once more, which joins the second execution.
    tries = running.await_task("failed", "start", "success").tries
    assert [each.status for each in executions(running, "failed")] == ["failed", "completed"]
    assert (tries, decision(running, "failed")) in ((2, "started"), (3, "re-attached"))


@pytest.mark.parametrize("dag_id", ["cleared_when_finished", "cleared_when_finished_waiting"])
def test_a_finished_task_that_is_cleared_starts_another(running: Deployment, dag_id: str) -> None:
    begin(running, dag_id)
    assert running.await_task(dag_id, "start", "success").tries == 1
    running.clear(dag_id, "start")
    until(lambda: running.task(dag_id, "start").tries == 2, 600, "a second try")
    running.await_task(dag_id, "start", "success")
    assert len(executions(running, dag_id)) == 2
    assert decision(running, dag_id) == "started"


def test_a_task_that_is_cleared_while_its_execution_runs_joins_it_again(running: Deployment) -> None:
    dag_id = "cleared_while_running"
    begin(running, dag_id)
    until(lambda: " was started: " in running.log(dag_id, "start", 1), 600, "a log line about the execution")
    running.clear(dag_id, "start")
    until(lambda: " was re-attached: " in running.log(dag_id, "start"), 600, "a second try")
    assert [each.status for each in executions(running, dag_id)] == ["running"]
    running.sandbox.finish(executions(running, dag_id)[0].id)
    running.await_task(dag_id, "start", "success")
    assert len(executions(running, dag_id)) == 1
    assert decision(running, dag_id) == "re-attached"
