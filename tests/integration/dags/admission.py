"""A task that starts an execution when the rate budget has no slot for a while."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG

from techflow_provider.operators.techflow import TechFlowTriggerWorkflowOperator

with DAG("admission", start_date=datetime(2026, 1, 1, tzinfo=UTC), schedule=None):
    TechFlowTriggerWorkflowOperator(task_id="start", workflow_id="wf_1", wait_for_completion=True, deferrable=True)
