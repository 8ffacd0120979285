"""Start every active workflow, one mapped task each, and wait for all of them with one poll in the triggerer."""

from datetime import UTC, datetime
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from techflow_provider.operators.techflow import TechFlowListWorkflowsOperator, TechFlowTriggerWorkflowOperator


@task
def ids_of(workflows: list[dict[str, Any]]) -> list[str]:
    """Return the ids of some workflows."""
    return [workflow["id"] for workflow in workflows]


with DAG(
    "techflow_mapped",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    tags=["techflow"],
) as dag:
    workflows = TechFlowListWorkflowsOperator(task_id="list_workflows", status="active")
    TechFlowTriggerWorkflowOperator.partial(
        task_id="trigger_and_wait",
        wait_for_completion=True,
        deferrable=True,
    ).expand(workflow_id=ids_of(workflows.output))
