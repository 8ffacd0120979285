"""Tasks that show what holds in a deployment: starts that are killed, waits, a wake-up, and calls without end."""

from __future__ import annotations

import json
import logging
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from techflow_provider.operators.techflow import TechFlowTriggerWorkflowOperator
from techflow_provider.sensors.techflow import TechFlowExecutionSensor

FOLDER = Path(os.environ["DEPLOYMENT_FOLDER"])
IDS: dict[str, list[str]] = json.loads(os.environ["DEPLOYMENT_EXECUTIONS"])
CALLERS, CALLS = int(os.environ["DEPLOYMENT_CALLERS"]), int(os.environ["DEPLOYMENT_CALLS"])
# No scenario is to last as long, on any machine.
LONG = timedelta(hours=1)
OPTIONS: dict[str, Any] = {
    "start_date": datetime(2026, 1, 1, tzinfo=UTC),
    "default_args": {"retries": 8, "retry_delay": timedelta(seconds=1)},
}


def hold(context: Any) -> None:
    """Wait until the file of the task's DAG is there."""
    while not (FOLDER / f"go-{context['ti'].dag_id}").exists():
        time.sleep(0.1)


for name, deferrable in {"killed_after_the_request": True, "killed_while_waiting": False}.items():
    with DAG(name, schedule=None, **OPTIONS):
        TechFlowTriggerWorkflowOperator(
            task_id="start", workflow_id=name, wait_for_completion=True, deferrable=deferrable
        )

for name in ("one_of_two", "other_of_two"):
    with DAG(name, schedule=None, **OPTIONS):
        TechFlowTriggerWorkflowOperator(task_id="start", workflow_id="two_tasks", pre_execute=hold)

with DAG("woken", schedule=None, **OPTIONS):
    TechFlowExecutionSensor.partial(
        task_id="wait", techflow_conn_id="techflow_woken", deferrable=True, poke_interval=600.0, timeout=LONG
    ).expand(execution_id=IDS["woken"])

with DAG("one_poll", schedule=None, **OPTIONS):
    for way, execution_id in zip(("deferred", "deferred_too", "poking", "poking_too"), IDS["one_poll"], strict=False):
        TechFlowExecutionSensor(
            task_id=way,
            execution_id=execution_id,
            deferrable=way.startswith("deferred"),
            poke_interval=5.0,
            timeout=LONG,
        )
    TechFlowTriggerWorkflowOperator(
        task_id="operator", workflow_id="one_poll", wait_for_completion=True, deferrable=False, timeout=LONG
    )

with DAG("budget", schedule=None, **OPTIONS):

    @task
    def call(number: int) -> None:
        """Call without end, and log where the state is."""
        from techflow_provider.hooks.state import open_state
        from techflow_provider.hooks.techflow import TechFlowHook

        hook = TechFlowHook("techflow_busy")
        for _ in range(CALLS):
            hook.get_workflow("busy")
        store = open_state(hook.connection).store
        logging.getLogger(__name__).info("the state of caller %d is in %s", number, store.location)

    call.expand(number=list(range(CALLERS)))
