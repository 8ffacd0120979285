"""Run on each completed execution of a workflow; Airflow 2 can't, and runs this DAG only by hand."""

from datetime import UTC, datetime
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from techflow_provider.assets.techflow import techflow_asset

try:
    schedule: Any = techflow_asset("execution.completed", workflow_id="wf_123")
except NotImplementedError:
    schedule = None


@task
def report(triggering_asset_events: Any = None) -> list[str]:
    """Return the executions that have completed."""
    events = [event for each in (triggering_asset_events or {}).values() for event in each]
    return [event.extra["payload"]["execution"]["id"] for event in events]


with DAG(
    "techflow_on_event",
    schedule=schedule,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    default_args={"owner": "reports", "retries": 2},
    owner_links={"reports": "https://dashboard.techflow.com"},
    tags=["techflow"],
    catchup=False,
) as dag:
    report()
