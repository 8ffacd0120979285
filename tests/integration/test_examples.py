"""Every example DAG runs to its end against the sandbox."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest

from techflow_provider.sandbox import Record, Sandbox

pytestmark = pytest.mark.airflow
RunDag = Callable[[str], Any]


@pytest.mark.parametrize(
    ("dag_id", "started"),
    [
        ("techflow_create_trigger_wait", 1),
        ("techflow_trigger_and_wait", 1),
        ("techflow_mapped", 2),
        ("techflow_branch_on_status", 1),
        ("techflow_hook_in_python", 0),
        ("techflow_clean_up", 0),
    ],
)
def test_an_example_succeeds_and_starts_as_many_executions_as_it_should(
    dag_id: str, started: int, served: Sandbox, run_dag: RunDag
) -> None:
    served.add_workflow("first", id="wf_123")
    served.add_workflow("second", id="wf_124")
    run = run_dag(dag_id)
    assert run.state == "success"
    assert "failed" not in run.tasks.values()
    assert len(served.executions) == started


def test_the_example_that_waits_for_the_next_execution_takes_one_that_somebody_else_starts(
    served: Sandbox, run_dag: RunDag
) -> None:
    served.add_workflow("first", id="wf_123")
    earlier = served.start("wf_123")
    somebody_else = iter([Thread(target=served.start, args=("wf_123",))])

    def start_at_the_first_look(_: Record) -> None:
        for thread in somebody_else:
            thread.start()

    served.on_request = start_at_the_first_look
    run = run_dag("techflow_next_execution")
    assert run.state == "success"
    assert run.returned["wait_for_next"]["id"] in {each.id for each in served.executions} - {earlier.id}
