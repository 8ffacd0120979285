"""Deferrable sensors: sixty mapped ones, and one for each way in which a wait can end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG

from techflow_provider.operators.techflow import TechFlowListExecutionsOperator
from techflow_provider.sensors.techflow import TechFlowExecutionSensor

START = datetime(2026, 1, 1, tzinfo=UTC)
SHORT = timedelta(seconds=20)
WAYS: dict[str, dict[str, Any]] = {
    "cleared": {},
    "marked_failed": {},
    "marked_success": {},
    "timed_out": {"timeout": SHORT},
    "timed_out_soft": {"timeout": SHORT, "soft_fail": True},
    "execution_timeout": {"execution_timeout": SHORT},
    "outage": {},
    "handed_over": {},
    "from_trigger": {"end_from_trigger": True},
}

with DAG("many_waits", start_date=START, schedule=None):
    listed = TechFlowListExecutionsOperator(
        task_id="list", workflow_id="wf_many", retries=3, retry_delay=timedelta(seconds=5)
    )
    TechFlowExecutionSensor.partial(task_id="wait", deferrable=True, poke_interval=3.0).expand(
        execution_id=listed.output.map(lambda execution: execution["id"])
    )

with DAG("ends_of_waits", start_date=START, schedule=None):
    for way, options in WAYS.items():
        TechFlowExecutionSensor(
            task_id=way,
            execution_id=f"{{{{ dag_run.conf['{way}'] }}}}",
            deferrable=True,
            poke_interval=3.0,
            retries=0,
            **options,
        )
