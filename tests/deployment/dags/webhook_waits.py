"""Tasks that wait for the executions whose ids the run is given."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from techflow_provider.sensors.techflow import TechFlowExecutionSensor

with DAG("webhook_waits", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC), catchup=False):

    @task
    def ids(**context: Any) -> list[str]:
        """Return the ids."""
        given: list[str] = context["dag_run"].conf["ids"]
        return given

    TechFlowExecutionSensor.partial(task_id="wait", deferrable=True).expand(execution_id=ids())
