"""One task each that starts a workflow of the DAG's own name and waits for its completion, with two retries."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import DAG

from techflow_provider.operators.techflow import TechFlowTriggerWorkflowOperator

HOME = Path(os.environ["AIRFLOW_HOME"])


def hold(context: Any) -> None:
    """Wait until the test that is about the task begins."""
    while not (HOME / f"go-{context['ti'].dag_id}").exists():
        time.sleep(0.1)


class SlowToResumeOperator(TechFlowTriggerWorkflowOperator):
    """Takes its time, once, when it resumes from its deferral, so that it can be killed then."""

    def execute_complete(self, context: Any, event: dict[str, Any]) -> str:
        """Mark that it resumes."""
        mark = HOME / "resumed"
        if not mark.exists():
            mark.touch()
            time.sleep(120)
        return super().execute_complete(context, event)


WAIT: dict[str, Any] = {"wait_for_completion": True, "deferrable": False}
DEFER: dict[str, Any] = {"wait_for_completion": True, "deferrable": True}
WAYS: dict[str, dict[str, Any]] = {
    "killed_before_the_request": {"wait_for_completion": False, "techflow_conn_id": "techflow_slow"},
    "killed_before_the_response": WAIT,
    "killed_while_waiting": WAIT,
    "killed_when_resuming": DEFER,
    "failed": DEFER,
    "cleared_when_finished": {"wait_for_completion": False},
    "cleared_when_finished_waiting": WAIT,
    "cleared_while_running": WAIT,
}

for name, way in WAYS.items():
    operator = SlowToResumeOperator if name == "killed_when_resuming" else TechFlowTriggerWorkflowOperator
    with DAG(name, start_date=datetime(2026, 1, 1, tzinfo=UTC), schedule=None):
        operator(
            task_id="start",
            workflow_id=name,
            retries=2,
            retry_delay=timedelta(seconds=1),
            pre_execute=hold,
            **way,
        )
