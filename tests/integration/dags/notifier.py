"""A task that fails and calls back."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG, task

from techflow_provider.notifications.techflow import TechFlowNotifier

alarm = TechFlowNotifier(workflow_id="wf_alarm", payload={"run": "{{ run_id }}"})

with DAG("notifier", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC), catchup=False):

    @task(on_failure_callback=alarm)
    def fail() -> None:
        """Fail."""
        raise ValueError("as it is meant to")

    fail()
