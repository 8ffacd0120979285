"""One DAG for each scenario of scenarios.py, which starts the workflow of the DAG's own name."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import DAG

from techflow_provider.operators.techflow import (
    TechFlowCreateWorkflowOperator,
    TechFlowDeleteWorkflowOperator,
    TechFlowTriggerWorkflowOperator,
)
from techflow_provider.sensors.techflow import TechFlowExecutionSensor

FOLDER = Path(os.environ["SCENARIOS_FOLDER"])
START = datetime(2026, 1, 1, tzinfo=UTC)
DEFER: dict[str, Any] = {"wait_for_completion": True, "deferrable": True}
POKE: dict[str, Any] = {"wait_for_completion": True, "deferrable": False}
SOON: dict[str, Any] = {"retries": 2, "retry_delay": timedelta(seconds=1)}
TIMEOUT = timedelta(seconds=20)


def note(word: str) -> Any:
    """Return a callback that adds a word to the scenario's file."""

    def callback(context: Any) -> None:
        with (FOLDER / f"{context['ti'].dag_id}.words").open("a") as file:
            file.write(f"{word} ")

    return callback


def note_optimization(context: Any) -> None:
    """Note whether Python leaves out assertions."""
    note(f"optimize={sys.flags.optimize}")(context)


CALLBACKS = {f"on_{word}_callback": note(word) for word in ("success", "failure", "retry")}
# What is particular to the task of each; the others are a pattern below.
TASKS: dict[str, dict[str, Any]] = {
    "paused_dag": DEFER,
    "sigterm": {**POKE, **SOON},
    "restart": DEFER,
    "two_triggerers": DEFER,
    "upgrade": DEFER,
    "callbacks_success": {**DEFER, **CALLBACKS},
    "callbacks_failure": {**DEFER, **CALLBACKS, "retries": 0},
    "callbacks_retry": {**DEFER, **CALLBACKS, **SOON},
    "execution_timeout": {**DEFER, "execution_timeout": TIMEOUT},
    "dagrun_timeout": DEFER,
    "tasks_test": {},
    "dags_test": DEFER,
    "dag_changed": DEFER,
    "python_optimized": {**DEFER, "on_success_callback": note_optimization},
    **dict.fromkeys(("home_with_spaces", "json_logs", "openlineage"), DEFER),
    **{kind: {**DEFER, "techflow_conn_id": "techflow_paced"} for kind in ("statsd", "opentelemetry")},
    "connection_changed": {**DEFER, "techflow_conn_id": "techflow_file"},
    "secrets_file": {**DEFER, "techflow_conn_id": "techflow_file"},
    "secrets_custom": {**DEFER, "techflow_conn_id": "techflow_custom"},
    **{f"deferred_{way}": DEFER for way in ("cleared", "success", "failed")},
    # Airflow 2 retries a running task that is cleared, after the delay.
    **{f"poking_{way}": {**POKE, "retry_delay": SOON["retry_delay"]} for way in ("cleared", "success", "failed")},
    **{
        f"admission_{way}": {"deferrable": True, "techflow_conn_id": f"techflow_slow_{way}"}
        for way in ("cleared", "success", "failed")
    },
}
# A run begins in time on any machine.
RUN_TIMEOUTS = {"dagrun_timeout": timedelta(minutes=2)}

for name, options in TASKS.items():
    # Airflow's scheduler would run what `airflow dags test` runs.
    by_hand = name.endswith("_test")
    with DAG(
        name,
        start_date=START,
        schedule=None,
        dagrun_timeout=RUN_TIMEOUTS.get(name),
        is_paused_upon_creation=by_hand,
    ):
        TechFlowTriggerWorkflowOperator(task_id="task", workflow_id=name, **options)

MAPPED: dict[str, dict[str, Any]] = {
    "pool": {"pool": "one_slot"},
    "pool_with_deferred": {"pool": "one_slot_with_deferred"},
    "max_active_tis": {"max_active_tis_per_dag": 1},
}
for name, options in MAPPED.items():
    with DAG(name, start_date=START, schedule=None):
        TechFlowTriggerWorkflowOperator.partial(task_id="task", workflow_id=name, **DEFER, **options).expand(
            payload=[{"number": number} for number in range(3)]
        )

for name, depends in {"catch_up": False, "depends_on_past": True}.items():
    with DAG(
        name,
        start_date=START,
        end_date=START + timedelta(days=9 if name == "catch_up" else 2),
        schedule="@daily",
        catchup=True,
        max_active_runs=10,
        is_paused_upon_creation=True,
    ):
        TechFlowTriggerWorkflowOperator(task_id="task", workflow_id=name, depends_on_past=depends, **DEFER)

with DAG("backfill", start_date=START, schedule="@daily", catchup=False, is_paused_upon_creation=True):
    TechFlowTriggerWorkflowOperator(task_id="task", workflow_id="backfill", **DEFER)

with DAG("setup_teardown", start_date=START, schedule=None):
    made = TechFlowCreateWorkflowOperator(task_id="create", name="setup_teardown").as_setup()  # type: ignore[no-untyped-call]
    task = TechFlowTriggerWorkflowOperator(task_id="task", workflow_id=made.output, **DEFER)
    gone = TechFlowDeleteWorkflowOperator(task_id="delete", workflow_id=made.output).as_teardown(setups=made)
    made >> task >> gone

with DAG("sensor_modes", start_date=START, schedule=None):
    started = TechFlowTriggerWorkflowOperator(task_id="task", workflow_id="sensor_modes")
    for mode in ("poke", "reschedule"):
        TechFlowExecutionSensor(task_id=mode, execution_id=started.output, deferrable=False, mode=mode, poke_interval=2)
    TechFlowExecutionSensor(task_id="deferrable", execution_id=started.output, deferrable=True)
