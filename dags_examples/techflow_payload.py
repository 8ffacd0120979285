"""Send a payload from the DAG's params, the run's conf, a JSON file, or another task's result."""

from datetime import UTC, datetime
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG, task

from techflow_provider.operators.techflow import TechFlowTriggerWorkflowOperator

with DAG(
    "techflow_payload",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    default_args={"owner": "reports", "retries": 2},
    owner_links={"reports": "https://dashboard.techflow.com"},
    tags=["techflow"],
    params={"region": "eu"},
    template_searchpath=[str(Path(__file__).parent)],
) as dag:

    @task
    def collect() -> dict[str, int]:
        """Return what the workflow is to work on."""
        return {"orders": 1200, "returns": 34}

    payload = {"region": "{{ params.region }}", "day": "{{ ds }}"}
    TechFlowTriggerWorkflowOperator(task_id="from_params", workflow_id="wf_123", payload=payload)
    TechFlowTriggerWorkflowOperator(task_id="from_conf", workflow_id="wf_123", payload="{{ dag_run.conf }}")
    TechFlowTriggerWorkflowOperator(task_id="from_file", workflow_id="wf_123", payload="techflow_payload.json")
    TechFlowTriggerWorkflowOperator(task_id="from_xcom", workflow_id="wf_123", payload=collect())
