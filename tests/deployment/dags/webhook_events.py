"""DAGs that Airflow 3 runs on TechFlow's events."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG, task

from techflow_provider.assets.techflow import techflow_asset

# Longer than the scheduler needs for its round, on a machine that has other work.
SPACING = 8.0

for name, asset in {
    "on_completed": techflow_asset("execution.completed", "wf_1", spacing=SPACING),
    "on_created": techflow_asset("workflow.created", spacing=SPACING),
}.items():
    with DAG(name, schedule=[asset], start_date=datetime(2026, 1, 1, tzinfo=UTC), catchup=False, max_active_runs=4):

        @task
        def done() -> None:
            """Do nothing."""

        done()
