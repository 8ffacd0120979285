"""Tasks with a link to TechFlow: one that waits in the triggerer, and mapped ones."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG

from techflow_provider.operators.techflow import TechFlowTriggerWorkflowOperator
from techflow_provider.sensors.techflow import TechFlowExecutionSensor

with DAG("links", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC), catchup=False) as dag:
    start = TechFlowTriggerWorkflowOperator.partial(task_id="start").expand(workflow_id=["wf_1", "wf_2"])
    TechFlowExecutionSensor.partial(task_id="wait", poke_interval=0.2).expand(execution_id=start.output)
    TechFlowTriggerWorkflowOperator(task_id="both", workflow_id="wf_1", wait_for_completion=True, deferrable=True)
