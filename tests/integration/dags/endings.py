"""Executions that fail, and waits that time out, in every mode and with soft_fail."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG

from techflow_provider.operators.techflow import TechFlowCreateWorkflowOperator, TechFlowTriggerWorkflowOperator
from techflow_provider.sensors.techflow import TechFlowExecutionSensor

START = datetime(2026, 1, 1, tzinfo=UTC)
FAILING = {"sandbox": {"outcome": "failed", "error": "table orders is locked"}}
MODES: dict[str, dict[str, Any]] = {
    "poke": {"deferrable": False, "poke_interval": 0.2},
    "reschedule": {"deferrable": False, "mode": "reschedule", "poke_interval": 0.2},
    "deferrable": {"deferrable": True},
}

with DAG("failed_execution", start_date=START, schedule=None):
    workflow = TechFlowCreateWorkflowOperator(task_id="create", name="failing")
    failing = TechFlowTriggerWorkflowOperator(task_id="start", workflow_id=workflow.output, payload=FAILING)
    for mode, options in MODES.items():
        TechFlowExecutionSensor(task_id=mode, execution_id=failing.output, **options)
        TechFlowExecutionSensor(task_id=f"{mode}_soft", execution_id=failing.output, soft_fail=True, **options)
        TechFlowExecutionSensor(
            task_id=f"{mode}_allowed", execution_id=failing.output, allowed_statuses=("completed", "failed"), **options
        )
    for deferrable in (False, True):
        TechFlowTriggerWorkflowOperator(
            task_id="defer" if deferrable else "wait",
            workflow_id=workflow.output,
            payload=FAILING,
            wait_for_completion=True,
            deferrable=deferrable,
            poll_interval=0.2,
        )

with DAG("endless_execution", start_date=START, schedule=None):
    workflow = TechFlowCreateWorkflowOperator(task_id="create", name="endless")
    endless = TechFlowTriggerWorkflowOperator(task_id="start", workflow_id=workflow.output)
    for mode, options in MODES.items():
        TechFlowExecutionSensor(task_id=mode, execution_id=endless.output, timeout=0.5, **options)
        TechFlowExecutionSensor(
            task_id=f"{mode}_soft", execution_id=endless.output, timeout=0.5, soft_fail=True, **options
        )
    for deferrable in (False, True):
        TechFlowTriggerWorkflowOperator(
            task_id="defer" if deferrable else "wait",
            workflow_id=workflow.output,
            wait_for_completion=True,
            deferrable=deferrable,
            poll_interval=0.2,
            timeout=timedelta(seconds=0.5),
        )

with DAG("execution_timeout", start_date=START, schedule=None):
    workflow = TechFlowCreateWorkflowOperator(task_id="create", name="endless")
    endless = TechFlowTriggerWorkflowOperator(task_id="start", workflow_id=workflow.output)
    TechFlowExecutionSensor(
        task_id="execution_timeout",
        execution_id=endless.output,
        deferrable=True,
        # Long enough for the task to defer on any machine; the triggerer's time is made to pass faster.
        execution_timeout=timedelta(minutes=10),
    )
