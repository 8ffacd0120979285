"""Continue after a success or a failure: accept both final statuses, and branch on the actual one."""

from datetime import UTC, datetime
from typing import Any

from airflow.providers.common.compat.sdk import DAG, chain, task

from techflow_provider.client import Execution, ExecutionState
from techflow_provider.operators.techflow import TechFlowTriggerWorkflowOperator
from techflow_provider.sensors.techflow import TechFlowExecutionSensor


@task.branch
def choose(execution: Any) -> str:
    """Return the task to run next; the state doesn't depend on the status word that TechFlow uses."""
    return "publish" if Execution.read(execution).state is ExecutionState.COMPLETED else "repair"


@task
def publish() -> None:
    """Placeholder for the tasks after a success."""


@task
def repair() -> None:
    """Placeholder for the tasks after a failure."""


with DAG(
    "techflow_branch_on_status",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    default_args={"owner": "reports", "retries": 2},
    owner_links={"reports": "https://dashboard.techflow.com"},
    tags=["techflow"],
) as dag:
    trigger = TechFlowTriggerWorkflowOperator(task_id="trigger", workflow_id="wf_123")
    wait = TechFlowExecutionSensor(
        task_id="wait", execution_id=trigger.output, allowed_statuses=("completed", "failed"), deferrable=True
    )
    chain(choose(wait.output), [publish(), repair()])
