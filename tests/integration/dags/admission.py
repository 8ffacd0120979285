"""A task that starts an execution when the rate budget has no slot for a while."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from airflow.providers.common.compat.sdk import DAG

from techflow_provider.hooks.budget import open_budget
from techflow_provider.operators.techflow import TechFlowTriggerWorkflowOperator
from techflow_provider.state.budget import RequestClass

# Far above what the operator waits for in its worker.
BUSY_SECONDS = 6.0


class BusyTriggerWorkflowOperator(TechFlowTriggerWorkflowOperator):
    """An operator that finds its budget in use: the slots are taken in the instant before it looks for one."""

    def execute(self, context: Any) -> str:
        """Reserve slots until the next one is far away, and run the task."""
        budget = open_budget(self.hook.connection)
        while budget.reserve(RequestClass.COMMAND, math.inf).wait_seconds < BUSY_SECONDS:
            pass
        return super().execute(context)


with DAG("admission", start_date=datetime(2026, 1, 1, tzinfo=UTC), schedule=None):
    BusyTriggerWorkflowOperator(task_id="start", workflow_id="wf_1", wait_for_completion=True, deferrable=True)
