"""Every example DAG runs to completion against the sandbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from techflow_provider.sandbox import Record, Sandbox
from tests.integration.conftest import finish_running

pytestmark = pytest.mark.airflow
RunDag = Callable[..., Any]


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
    assert run.state == "success", run.log[-6000:]
    assert "failed" not in run.tasks.values()
    assert len(served.executions) == started


def test_the_example_that_waits_for_the_next_execution_takes_one_that_somebody_else_starts(
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
