"""Start every active workflow in a mapped task of its own, and wait for all of them with one poll in the triggerer."""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG

from techflow_provider.operators.techflow import TechFlowListWorkflowsOperator, TechFlowTriggerWorkflowOperator

with DAG(
    "techflow_mapped",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    default_args={"owner": "reports", "retries": 2},
    owner_links={"reports": "https://dashboard.techflow.com"},
    tags=["techflow"],
) as dag:
    workflows = TechFlowListWorkflowsOperator(task_id="list_workflows", status="active")
    TechFlowTriggerWorkflowOperator.partial(
        task_id="trigger_and_wait",
        wait_for_completion=True,
        deferrable=True,
    ).expand(workflow_id=workflows.output.map(lambda workflow: workflow["id"]))
