"""Many deferrable tasks that start an execution each."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG

from techflow_provider.operators.techflow import TechFlowTriggerWorkflowOperator

with DAG("mapped_starts", start_date=datetime(2026, 1, 1, tzinfo=UTC), schedule=None, max_active_tasks=500):
    TechFlowTriggerWorkflowOperator.partial(task_id="start", deferrable=True).expand(
        workflow_id=["wf_1"] * int(os.environ["MAPPED_STARTS"])
    )
