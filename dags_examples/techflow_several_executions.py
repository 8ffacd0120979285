"""Start a workflow for each of two regions, wait for both executions, and continue with their results."""

from datetime import UTC, datetime
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from techflow_provider.operators.techflow import TechFlowTriggerWorkflowOperator
from techflow_provider.sensors.techflow import TechFlowExecutionSensor


@task
def report(executions: Any) -> list[str]:
    """Return what ran, and when it finished."""
    return [f"{each['id']} finished at {each['finished_at']}" for each in executions]


with DAG(
    "techflow_several_executions",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    default_args={"owner": "reports", "retries": 2},
    owner_links={"reports": "https://dashboard.techflow.com"},
    tags=["techflow"],
) as dag:
    start = TechFlowTriggerWorkflowOperator.partial(task_id="start", workflow_id="wf_123").expand(
        payload=[{"region": "eu"}, {"region": "us"}]
    )
    wait = TechFlowExecutionSensor.partial(task_id="wait", deferrable=True).expand(execution_id=start.output)
    report(wait.output)
