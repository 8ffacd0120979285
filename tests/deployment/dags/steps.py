"""Many steps: create a workflow, start it, wait for its end; and one that TechFlow refuses."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

from airflow.providers.common.compat.sdk import DAG

from techflow_provider.operators.techflow import TechFlowCreateWorkflowOperator, TechFlowTriggerWorkflowOperator
from techflow_provider.sensors.techflow import TechFlowExecutionSensor

with DAG(
    "steps",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    schedule=None,
    max_active_tasks=500,
    default_args={"retries": int(os.environ.get("STEP_RETRIES", "0")), "retry_delay": timedelta(seconds=2)},
):
    names = [f"step {number}" for number in range(int(os.environ["STEPS"]))]
    create = TechFlowCreateWorkflowOperator.partial(task_id="create", if_exists="return").expand(name=names)
    start = TechFlowTriggerWorkflowOperator.partial(task_id="start", deferrable=True).expand(workflow_id=create.output)
    TechFlowExecutionSensor.partial(task_id="wait", deferrable=True).expand(execution_id=start.output)

with DAG("refused", start_date=datetime(2026, 1, 1, tzinfo=UTC), schedule=None):
    TechFlowCreateWorkflowOperator(task_id="create", name="never made", techflow_conn_id="techflow_wrong")
