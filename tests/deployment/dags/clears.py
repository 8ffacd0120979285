"""Tasks that start the workflow of their DAG's name, with what they are given in the files of a folder."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import DAG, get_current_context, task

from techflow_provider.operators.techflow import TechFlowTriggerWorkflowOperator

FOLDER = Path(os.environ["CLEARS_FOLDER"])
WAIT: dict[str, Any] = {"wait_for_completion": True, "deferrable": False}
DEFER: dict[str, Any] = {"wait_for_completion": True, "deferrable": True}


def given(name: str) -> Any:
    """Return what a test has written for a DAG."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def payload_of(context: Any, jinja_env: Any) -> Any:
    """Return a task's payload when it is rendered."""
    del jinja_env
    return given(context["ti"].dag_id)


WAYS: dict[str, dict[str, Any]] = {
    "failed": WAIT,
    "running_without_waiting": {"wait_for_completion": False},
    "deferred": DEFER,
    "payload_corrected": {**DEFER, "payload": payload_of},
    "key_rotated": {**DEFER, "techflow_conn_id": "{{ given('key_rotated') }}"},
    "marked_failed": WAIT,
    "run_deleted": WAIT,
    "run_deleted_early": DEFER,
}

for name, way in WAYS.items():
    with DAG(name, start_date=datetime(2026, 1, 1, tzinfo=UTC), schedule=None, user_defined_macros={"given": given}):
        TechFlowTriggerWorkflowOperator(task_id="task", workflow_id=name, **way)

with DAG("list_reordered", start_date=datetime(2026, 1, 1, tzinfo=UTC), schedule=None):

    @task
    def list_payloads() -> list[dict[str, str]]:
        """Return the payloads of the mapped task."""
        found: list[dict[str, str]] = given("list_reordered")
        return found

    TechFlowTriggerWorkflowOperator.partial(task_id="task", workflow_id="list_reordered", **DEFER).expand(
        payload=list_payloads()
    )

with DAG("two_operators", start_date=datetime(2026, 1, 1, tzinfo=UTC), schedule=None):

    @task(task_id="task", retries=1, retry_delay=timedelta(seconds=1))
    def start_two() -> list[str]:
        """Start two executions, and fail once after that."""
        context = get_current_context()
        found = [
            TechFlowTriggerWorkflowOperator(task_id=part, workflow_id="two_operators").execute(context)
            for part in ("first", "second")
        ]
        if not (FOLDER / "two_operators.json").exists():
            (FOLDER / "two_operators.json").write_text(json.dumps(found))
            raise RuntimeError("once")
        return found

    start_two()
