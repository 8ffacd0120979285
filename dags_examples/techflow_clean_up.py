"""Retire a workflow: mark it in its description, and delete it if none of its executions is running."""

from datetime import UTC, datetime
from typing import Any

from airflow.providers.common.compat.sdk import DAG, chain, task

from techflow_provider.operators.techflow import (
    TechFlowDeleteWorkflowOperator,
    TechFlowListExecutionsOperator,
    TechFlowUpdateWorkflowOperator,
)


@task.short_circuit
def nothing_runs(executions: Any) -> bool:
    """Whether the list is empty; otherwise, the downstream tasks are skipped."""
    return not executions


with DAG(
    "techflow_clean_up",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    default_args={"owner": "reports", "retries": 2},
    owner_links={"reports": "https://dashboard.techflow.com"},
    tags=["techflow"],
    params={"workflow_id": "wf_123"},
) as dag:
    workflow_id = "{{ params.workflow_id }}"
    retire = TechFlowUpdateWorkflowOperator(task_id="retire", workflow_id=workflow_id, description="To be deleted")
    running = TechFlowListExecutionsOperator(task_id="list_running", workflow_id=workflow_id, status="running")
    delete = TechFlowDeleteWorkflowOperator(task_id="delete", workflow_id=workflow_id)
    chain(retire, running, nothing_runs(running.output), delete)
