"""Start a workflow when a task fails, and when it has succeeded."""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG

from techflow_provider.notifications.techflow import TechFlowNotifier
from techflow_provider.operators.techflow import TechFlowTriggerWorkflowOperator

with DAG(
    "techflow_callbacks",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    default_args={"owner": "reports", "retries": 2},
    owner_links={"reports": "https://dashboard.techflow.com"},
    tags=["techflow"],
) as dag:
    TechFlowTriggerWorkflowOperator(
        task_id="run",
        workflow_id="wf_123",
        wait_for_completion=True,
        deferrable=True,
        on_success_callback=TechFlowNotifier(workflow_id="wf_123", payload={"publish": "{{ ds }}"}),
        on_failure_callback=TechFlowNotifier(workflow_id="wf_123", payload={"repair": "{{ ti.task_id }}"}),
    )
