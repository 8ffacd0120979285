"""What the next attempt of a start does in a real Airflow, as docs/concepts/exactly-once.md says."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from techflow_provider.sandbox import Sandbox
from techflow_provider.sandbox.state import Execution
from tests.deployment.actions import Actions
from tests.deployment.airflow_deployment import KEY, Deployment, deployment
from tests.servers import until

pytestmark = pytest.mark.airflow
HERE = Path(__file__).parent
OTHER_KEY = "the-key-after-the-rotation"
LONG = (
    *("running_without_waiting", "deferred", "payload_corrected", "list_reordered", "key_rotated", "marked_failed"),
    "run_deleted_early",
)
SHORT = ("failed", "run_deleted", "two_operators")
SECONDS = 240.0


class Clears:
    """The deployment, and what a test does there."""

    def __init__(self, running: Deployment, folder: Path) -> None:
        self.running = running
        self.folder = folder
        self.actions = Actions(running)

    def give(self, dag_id: str, value: Any) -> None:
        """Write what a DAG's tasks are given."""
        (self.folder / f"{dag_id}.json").write_text(json.dumps(value))

    def executions(self, dag_id: str) -> list[Execution]:
        """Return the executions that a DAG has started."""
        return [each for each in self.running.sandbox.executions if each.workflow_id == dag_id]

    def await_executions(self, dag_id: str, count: int) -> list[Execution]:
        """Wait until a DAG has started so many executions, and knows of the last one."""
        return until(
            lambda: found if len(found := self.executions(dag_id)) >= count else None,
            SECONDS,
            f"{count} executions of {dag_id}",
        )

    def await_log(self, dag_id: str, text: str) -> None:
        """Wait until a task has logged something."""
        until(lambda: text in self.running.log(dag_id, "task"), SECONDS, f"{text!r} in the log of {dag_id}")

    def await_state(self, dag_id: str, *states: str) -> None:
        """Wait until a task is in one of some states."""
        self.running.await_task(dag_id, "task", *states, seconds=SECONDS)

    def finish(self, dag_id: str) -> None:
        """End what runs, and wait until the task has succeeded."""
        for each in self.executions(dag_id):
            if each.status == "running":
                self.running.sandbox.finish(each.id)
        self.await_state(dag_id, "success")

    def clear_and_join(self, dag_id: str) -> None:
        """Clear a task whose execution runs, and show that the next attempt waits for the same one."""
        self.actions.clear(dag_id)
        self.await_log(dag_id, " was re-attached: ")
        self.finish(dag_id)
        assert len(self.executions(dag_id)) == 1
        self.show(dag_id)

    def show(self, dag_id: str) -> None:
        """Print what became of a DAG's task."""
        start = self.running.xcom(dag_id, "task", "techflow_start") or {}
        count = len(self.executions(dag_id))
        print(f"\n  {dag_id}: {count} executions, the last attempt's: {start.get('decision')}")  # noqa: T201


@pytest.fixture(scope="module")
def clears(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clears]:
    """An Airflow in which all DAGs have been triggered."""
    folder = tmp_path_factory.mktemp("clears")
    sandbox = Sandbox(api_keys=(KEY, OTHER_KEY), limit=100_000, execution_seconds=3.0)
    for name in (*LONG, *SHORT):
        sandbox.add_workflow(name, id=name)
        sandbox.plan(name, seconds=3600.0 if name in LONG else 3.0)
    sandbox.plan("failed", seconds=3.0, outcome="failed", error="disk full")
    environment = {"AIRFLOW__TECHFLOW__HISTORY_LAG": "3", "CLEARS_FOLDER": str(folder)}
    python = os.environ.get("AIRFLOW_PYTHON", sys.executable)
    extra = {"requests_per_minute": 10_000, "burst": 1000, "timeout": 10}
    with deployment(
        python,
        [HERE / "dags" / "clears.py"],
        sandbox=sandbox,
        extra=extra,
        others={"techflow_rotated": {"password": OTHER_KEY, "extra": extra}},
        environment=environment,
    ) as running:
        made = Clears(running, folder)
        made.give("payload_corrected", {"part": "wrong"})
        made.give("list_reordered", [{"part": "a"}, {"part": "b"}])
        made.give("key_rotated", "techflow_default")
        running.await_dags(*LONG, *SHORT)
        running.trigger_all(*LONG, *SHORT)
        yield made
        made.actions.close()


def test_a_failed_task_that_is_cleared_starts_another(clears: Clears) -> None:
    clears.await_state("failed", "failed")
    clears.running.sandbox.plan("failed", seconds=3.0)
    clears.actions.clear("failed")
    clears.await_state("failed", "success")
    assert [each.status for each in clears.executions("failed")] == ["failed", "completed"]
    clears.show("failed")


def test_a_deferred_task_that_is_cleared_joins_its_execution(clears: Clears) -> None:
    clears.await_log("deferred", " was started: ")
    clears.await_state("deferred", "deferred")
    clears.clear_and_join("deferred")


def test_a_task_that_did_not_wait_and_is_cleared_starts_another(clears: Clears) -> None:
    dag_id = "running_without_waiting"
    clears.await_state(dag_id, "success")
    clears.actions.clear(dag_id)
    clears.await_executions(dag_id, 2)
    clears.await_state(dag_id, "success")
    assert [each.status for each in clears.executions(dag_id)] == ["running"] * 2
    clears.show(dag_id)


def test_a_task_that_is_cleared_with_another_payload_starts_another(clears: Clears) -> None:
    dag_id = "payload_corrected"
    clears.await_log(dag_id, " was started: ")
    clears.await_state(dag_id, "deferred")
    clears.give(dag_id, {"part": "right"})
    clears.actions.clear(dag_id)
    clears.await_executions(dag_id, 2)
    clears.finish(dag_id)
    assert [each.payload for each in clears.executions(dag_id)] == [{"part": "wrong"}, {"part": "right"}]
    clears.show(dag_id)


def test_mapped_tasks_whose_list_is_reordered_start_others(clears: Clears) -> None:
    dag_id = "list_reordered"
    clears.await_executions(dag_id, 2)
    until(lambda: states(clears) == {"deferred"}, SECONDS, "two deferred tasks")
    clears.give(dag_id, [{"part": "b"}, {"part": "a"}])
    clears.running.clear(dag_id, "list_payloads")
    until(lambda: clears.running.task(dag_id, "list_payloads").tries == 2, SECONDS, "another list")
    clears.running.await_task(dag_id, "list_payloads", "success", seconds=SECONDS)
    clears.actions.clear(dag_id)
    found = clears.await_executions(dag_id, 4)
    assert sorted(str(each.payload) for each in found) == sorted(2 * [str({"part": "a"}), str({"part": "b"})])
    until(lambda: states(clears) == {"deferred"}, SECONDS, "two deferred tasks")
    for each in found:
        clears.running.sandbox.finish(each.id)
    until(lambda: states(clears) == {"success"}, SECONDS, "two successful tasks")
    assert len(clears.executions(dag_id)) == 4
    print(f"\n  {dag_id}: {len(clears.executions(dag_id))} executions of 2 tasks")  # noqa: T201


def states(clears: Clears) -> set[str]:
    return {clears.running.task("list_reordered", "task", map_index=index).state for index in (0, 1)}


def test_a_task_that_is_cleared_after_the_key_was_rotated_joins_its_execution(clears: Clears) -> None:
    clears.await_log("key_rotated", " was started: ")
    clears.await_state("key_rotated", "deferred")
    clears.give("key_rotated", "techflow_rotated")
    clears.clear_and_join("key_rotated")


def test_a_task_that_is_marked_failed_and_cleared_joins_its_execution(clears: Clears) -> None:
    clears.await_log("marked_failed", " was started: ")
    clears.actions.mark("marked_failed", "failed")
    clears.await_state("marked_failed", "failed")
    # The scheduler could write the run's end over what a clear has just written.
    ended = "SELECT state FROM dag_run WHERE dag_id = 'marked_failed'"
    until(lambda: clears.running.query(ended) == [["failed"]], SECONDS, "the end of the run")
    clears.clear_and_join("marked_failed")


def test_a_run_that_is_deleted_and_run_again_starts_another(clears: Clears) -> None:
    clears.await_state("run_deleted", "success")
    clears.actions.delete_run("run_deleted")
    until(lambda: not clears.running.task("run_deleted", "task").state, SECONDS, "no task any more")
    clears.running.trigger("run_deleted")
    clears.await_executions("run_deleted", 2)
    clears.finish("run_deleted")
    assert len(clears.executions("run_deleted")) == 2
    clears.show("run_deleted")


def test_a_run_that_is_deleted_while_its_execution_runs_joins_it(clears: Clears) -> None:
    dag_id = "run_deleted_early"
    clears.await_log(dag_id, " was started: ")
    clears.await_state(dag_id, "deferred")
    if clears.running.version >= (3, 1):
        with pytest.raises(RuntimeError, match="409"):
            clears.actions.delete_run(dag_id)
    else:
        clears.actions.delete_run(dag_id)
        clears.running.trigger(dag_id)
        clears.await_log(dag_id, " was re-attached: ")
    clears.finish(dag_id)
    assert len(clears.executions(dag_id)) == 1
    clears.show(dag_id)


def test_two_operators_in_one_task_start_one_execution_each_and_a_retry_starts_none(clears: Clears) -> None:
    clears.await_state("two_operators", "success")
    assert clears.running.task("two_operators", "task").tries == 2
    found = [each.id for each in clears.executions("two_operators")]
    assert clears.running.xcom("two_operators", "task") == found
    assert len(found) == 2
    print("\n  two_operators: 2 executions after 2 tries")  # noqa: T201
