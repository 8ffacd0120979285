"""Retry a task: a retry joins the execution while it runs, and replaces it when it has failed."""

from datetime import UTC, datetime, timedelta

from airflow.providers.common.compat.sdk import DAG

from techflow_provider.operators.techflow import TechFlowTriggerWorkflowOperator

with DAG(
    "techflow_retries",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    default_args={
        "owner": "reports",
        "retries": 3,
        "retry_delay": timedelta(minutes=2),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=30),
    },
    owner_links={"reports": "https://dashboard.techflow.com"},
    tags=["techflow"],
    params={"workflow_id": "wf_123"},
) as dag:
    TechFlowTriggerWorkflowOperator(
        task_id="run",
        workflow_id="{{ params.workflow_id }}",
        wait_for_completion=True,
        deferrable=True,
        execution_timeout=timedelta(hours=3),
    )
