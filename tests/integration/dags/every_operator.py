"""Every operator, and the sensor in its three modes, one after the other."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG, chain

from techflow_provider.operators.techflow import (
    TechFlowCreateWorkflowOperator,
    TechFlowDeleteWorkflowOperator,
    TechFlowGetWorkflowOperator,
    TechFlowListExecutionsOperator,
    TechFlowListWorkflowsOperator,
    TechFlowTriggerWorkflowOperator,
    TechFlowUpdateWorkflowOperator,
)
from techflow_provider.sensors.techflow import TechFlowExecutionSensor

with DAG("every_operator", start_date=datetime(2026, 1, 1, tzinfo=UTC), schedule=None):
    create = TechFlowCreateWorkflowOperator(task_id="create", name="report of {{ ds }}", triggers=["manual"])
    again = TechFlowCreateWorkflowOperator(task_id="again", name="report of {{ ds }}", if_exists="return")
    update = TechFlowUpdateWorkflowOperator(task_id="update", workflow_id=create.output, description="changed")
    get = TechFlowGetWorkflowOperator(task_id="get", workflow_id=create.output)
    list_workflows = TechFlowListWorkflowsOperator(task_id="list_workflows", name="report of {{ ds }}")
    start = TechFlowTriggerWorkflowOperator(
        task_id="start",
        workflow_id=create.output,
        payload={"day": "{{ ds }}", "region": "eu"},
    )
    sensors = [
        TechFlowExecutionSensor(
            task_id="from_trigger", execution_id=start.output, deferrable=True, end_from_trigger=True
        ),
        TechFlowExecutionSensor(task_id="poke", execution_id=start.output, deferrable=False, poke_interval=0.2),
        TechFlowExecutionSensor(
            task_id="reschedule", execution_id=start.output, deferrable=False, mode="reschedule", poke_interval=0.2
        ),
        TechFlowExecutionSensor(task_id="deferrable", execution_id=start.output, deferrable=True),
    ]
    waiting = TechFlowTriggerWorkflowOperator(
        task_id="start_and_wait",
        workflow_id=create.output,
        wait_for_completion=True,
        deferrable=False,
        poll_interval=0.2,
    )
    deferring = TechFlowTriggerWorkflowOperator(
        task_id="start_and_defer", workflow_id=create.output, wait_for_completion=True, deferrable=True
    )
    next_one = TechFlowExecutionSensor(
        task_id="first_since",
        workflow_id=create.output,
        started_after="{{ dag_run.start_date }}",
        deferrable=True,
    )
    list_executions = TechFlowListExecutionsOperator(
        task_id="list_executions", workflow_id=create.output, status="completed"
    )
    delete = TechFlowDeleteWorkflowOperator(task_id="delete", workflow_id=create.output)
    delete_again = TechFlowDeleteWorkflowOperator(task_id="delete_again", workflow_id=create.output)
    chain(create, again, update, get, list_workflows, start, *sensors, waiting, deferring, next_one)
    chain(next_one, list_executions, delete, delete_again)
