"""Start two workflows in parallel, wait for both executions in mapped sensors, and continue with their results."""

from datetime import UTC, datetime
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from techflow_provider.operators.techflow import TechFlowTriggerWorkflowOperator
from techflow_provider.sensors.techflow import TechFlowExecutionSensor


@task
def report(executions: Any) -> list[str]:
    """Return what ran, and when it finished."""
    return [f"{each['workflow_id']} finished at {each['finished_at']}" for each in executions]


with DAG(
    "techflow_several_executions",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    default_args={"owner": "reports", "retries": 2},
    owner_links={"reports": "https://dashboard.techflow.com"},
    tags=["techflow"],
) as dag:
    start = TechFlowTriggerWorkflowOperator.partial(task_id="start").expand(workflow_id=["wf_123", "wf_456"])
    wait = TechFlowExecutionSensor.partial(task_id="wait", deferrable=True).expand(execution_id=start.output)
    report(wait.output)
