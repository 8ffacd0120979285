"""Use the hook where no operator fits: count the executions of a workflow by state."""

from collections import Counter
from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG, task

from techflow_provider.hooks.techflow import TechFlowHook


@task
def count_executions(workflow_id: str) -> dict[str, int]:
    """Return how many executions are running, completed and failed."""
    executions = TechFlowHook("techflow_default").list_executions(workflow_id)
    return dict(Counter(execution.state.value for execution in executions))


with DAG(
    "techflow_hook_in_python",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    default_args={"owner": "reports", "retries": 2},
    owner_links={"reports": "https://dashboard.techflow.com"},
    tags=["techflow"],
    params={"workflow_id": "wf_123"},
) as dag:
    count_executions("{{ params.workflow_id }}")
