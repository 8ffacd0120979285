"""Start a workflow and wait for its completion, in one task that occupies no worker slot meanwhile."""

from datetime import UTC, datetime, timedelta

from airflow.providers.common.compat.sdk import DAG

from techflow_provider.operators.techflow import TechFlowTriggerWorkflowOperator

with DAG(
    "techflow_trigger_and_wait",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    default_args={"owner": "reports", "retries": 2},
    owner_links={"reports": "https://dashboard.techflow.com"},
    tags=["techflow"],
    params={"workflow_id": "wf_123"},
) as dag:
    TechFlowTriggerWorkflowOperator(
        task_id="trigger_and_wait",
        workflow_id="{{ params.workflow_id }}",
        wait_for_completion=True,
        deferrable=True,
        timeout=timedelta(hours=2),
    )
