"""Deferrable waits without retries, whose executions end soon after the deferral."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG

from techflow_provider.operators.techflow import TechFlowTriggerWorkflowOperator

with DAG("race", start_date=datetime(2026, 1, 1, tzinfo=UTC), schedule=None):
    for number in range(int(os.environ["RACE_WAITS"])):
        TechFlowTriggerWorkflowOperator(
            task_id=f"wait_{number}", workflow_id="race", wait_for_completion=True, deferrable=True, retries=0
        )
