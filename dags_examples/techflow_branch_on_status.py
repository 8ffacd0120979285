"""Go on either way when an execution has ended: accept both ends, and branch on the one that came."""

from datetime import UTC, datetime
from typing import Any

from airflow.providers.common.compat.sdk import DAG, chain, task

from techflow_provider.client import Execution, ExecutionState
from techflow_provider.operators.techflow import TechFlowTriggerWorkflowOperator
from techflow_provider.sensors.techflow import TechFlowExecutionSensor


@task.branch
def choose(execution: dict[str, Any]) -> str:
    """Return the task to go on with; the state is the same whatever word TechFlow uses for it."""
    return "publish" if Execution.read(execution).state is ExecutionState.COMPLETED else "repair"


@task
def publish() -> None:
    """Stand for what follows a success."""


@task
def repair() -> None:
    """Stand for what follows a failure."""


with DAG(
    "techflow_branch_on_status",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    tags=["techflow"],
) as dag:
    trigger = TechFlowTriggerWorkflowOperator(task_id="trigger", workflow_id="wf_123")
    wait = TechFlowExecutionSensor(
        task_id="wait", execution_id=trigger.output, allowed_statuses=("completed", "failed"), deferrable=True
    )
    chain(choose(wait.output), [publish(), repair()])
