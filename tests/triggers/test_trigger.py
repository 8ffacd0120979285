"""A trigger is built again from what it serialized, and fires the event that its outcome asks for."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest

from techflow_provider.client import Settings
from techflow_provider.polling.poller import Access
from techflow_provider.sandbox import Sandbox
from techflow_provider.state.budget import LocalBudget

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize(
    "fields",
    [
        {
            "execution_id": "ex_1",
            "deadline": "2026-11-24T12:00:00+00:00",
            "poll_interval": 7.5,
            "success_statuses": ["completed", "cancelled"],
        },
        {"workflow_id": "wf_1", "started_after": "2026-11-24T12:00:00+00:00"},
    ],
)
def test_every_field_survives_serialization(fields: dict[str, object]) -> None:
    from techflow_provider.triggers.techflow import TechFlowExecutionTrigger

    trigger = TechFlowExecutionTrigger("other", **fields)  # type: ignore[arg-type]  # as the triggerer makes it
    path, kept = trigger.serialize()
    again = TechFlowExecutionTrigger(**json.loads(json.dumps(kept)))
    assert path == "techflow_provider.triggers.techflow.TechFlowExecutionTrigger"
    assert again.serialize() == (path, kept)
    assert kept["techflow_conn_id"] == "other"
    assert fields.items() <= kept.items()


def test_no_parameter_is_left_out_when_a_trigger_is_serialized() -> None:
    from techflow_provider.triggers.techflow import TechFlowExecutionTrigger

    parameters = set(inspect.signature(TechFlowExecutionTrigger).parameters)
    assert set(TechFlowExecutionTrigger("c", execution_id="ex_1").serialize()[1]) == parameters


@pytest.mark.parametrize(
    ("status", "success_statuses", "event"),
    [
        ("completed", ["completed"], "TaskSuccessEvent"),
        ("failed", ["completed", "failed"], "TaskSuccessEvent"),
        ("failed", ["completed"], "TriggerEvent"),
        ("completed", None, "TriggerEvent"),
    ],
)
async def test_a_trigger_ends_the_task_itself_at_a_success_status(
    monkeypatch: pytest.MonkeyPatch, status: str, success_statuses: list[str] | None, event: str
) -> None:
    from techflow_provider.polling import registry
    from techflow_provider.triggers import techflow

    monkeypatch.setenv("AIRFLOW__TECHFLOW__FIRST_EVENT_DELAY", "0")
    sandbox = Sandbox(workflows_at_start={"wf_1": "one"}, execution_seconds=0, outcome=status)  # type: ignore[arg-type]

    async def look_up(conn_id: str) -> Access:
        return Access(Settings(sandbox.api_keys[0], sandbox.base_url), LocalBudget(100_000, 50_000))

    with sandbox.serve():
        monkeypatch.setattr(registry, "look_up", look_up)
        execution_id = sandbox.start("wf_1").id
        trigger = techflow.TechFlowExecutionTrigger("c", execution_id=execution_id, success_statuses=success_statuses)
        fired: Any = await anext(trigger.run())
    assert type(fired).__name__ == event
    execution = fired.xcoms["return_value"] if event == "TaskSuccessEvent" else fired.payload["execution"]
    assert (execution["id"], execution["status"]) == (execution_id, status)
