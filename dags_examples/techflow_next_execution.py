"""Wait for the next execution of a workflow that something else starts, such as a schedule in TechFlow."""

from datetime import UTC, datetime, timedelta

from airflow.providers.common.compat.sdk import DAG

from techflow_provider.sensors.techflow import TechFlowExecutionSensor

with DAG(
    "techflow_next_execution",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    default_args={"owner": "reports", "retries": 2},
    owner_links={"reports": "https://dashboard.techflow.com"},
    tags=["techflow"],
    params={"workflow_id": "wf_123"},
) as dag:
    TechFlowExecutionSensor(
        task_id="wait_for_next",
        workflow_id="{{ params.workflow_id }}",
        started_after="{{ dag_run.start_date }}",
        deferrable=True,
        timeout=timedelta(hours=6).total_seconds(),
    )
