"""Values as templates and other tasks hand them over."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from techflow_provider.operators.techflow import (
    TechFlowGetWorkflowOperator,
    TechFlowListExecutionsOperator,
    TechFlowTriggerWorkflowOperator,
)
from techflow_provider.sensors.techflow import TechFlowExecutionSensor

START = datetime(2026, 1, 1, tzinfo=UTC)
MODES: dict[str, dict[str, Any]] = {
    "poke": {"deferrable": False, "poke_interval": 0.2},
    "reschedule": {"deferrable": False, "mode": "reschedule", "poke_interval": 0.2},
    "deferrable": {"deferrable": True},
}


@task
def part(number: int) -> int:
    """Return a part of a payload."""
    return number


for native in (False, True):
    with DAG(
        f"values_{'native' if native else 'text'}",
        schedule=None,
        start_date=START,
        render_template_as_native_obj=native,
        params={"id": 12346, "parts": {"day": "2026-01-01", "n": 1}},
        template_searchpath=[str(__file__).rsplit("/", 1)[0]],
    ):
        TechFlowGetWorkflowOperator(task_id="get", workflow_id="{{ params.id }}")
        mapped = part.expand(number=[1, 2])
        payloads: dict[str, Any] = {
            "lazy": {"parts": mapped, 1: "a", "b": 2},
            "text": '{"day": "{{ ds }}"}',
            "rendered": "{{ params.parts }}",
            "conf": "{{ dag_run.conf }}",
            "inside": {"path": "data.json"},
            "file": "payload.json",
        }
        started = [
            TechFlowTriggerWorkflowOperator(task_id=name, workflow_id="{{ params.id }}", payload=payload)
            for name, payload in payloads.items()
        ]
        listed = TechFlowListExecutionsOperator(task_id="list", workflow_id="{{ params.id }}")
        wait = TechFlowExecutionSensor(
            task_id="wait", execution_id=started[0].output, allowed_statuses="completed", poke_interval=0.2
        )
        started >> listed
        wait >> listed

with DAG("no_xcoms", schedule=None, start_date=START):
    for mode, options in MODES.items():
        start = TechFlowTriggerWorkflowOperator(
            task_id=f"start_{mode}",
            workflow_id="12346",
            do_xcom_push=False,
            wait_for_completion=mode != "reschedule",
            deferrable=mode == "deferrable",
            poll_interval=0.2,
        )
        start >> TechFlowExecutionSensor(
            task_id=f"wait_{mode}", workflow_id="12346", started_after=START, do_xcom_push=False, **options
        )

with DAG("refused_key", schedule=None, start_date=START):
    for mode, options in MODES.items():
        for policy in ("never_fail", "soft_fail"):
            policies: dict[str, Any] = {policy: True}
            TechFlowExecutionSensor(task_id=f"{mode}_{policy}", execution_id="exec_1", **policies, **options)
