"""Create a workflow unless one with this name exists, start it, and wait in the triggerer for its completion."""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG

from techflow_provider.operators.techflow import TechFlowCreateWorkflowOperator, TechFlowTriggerWorkflowOperator
from techflow_provider.sensors.techflow import TechFlowExecutionSensor

with DAG(
    "techflow_create_trigger_wait",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    default_args={"retries": 2},
    tags=["techflow"],
) as dag:
    create = TechFlowCreateWorkflowOperator(task_id="create", name="Nightly report", if_exists="return")
    trigger = TechFlowTriggerWorkflowOperator(task_id="trigger", workflow_id=create.output)
    TechFlowExecutionSensor(task_id="wait", execution_id=trigger.output, deferrable=True)
