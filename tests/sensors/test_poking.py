"""A sensor that pokes shares the deployment's poll, and a webhook wakes it between two pokes."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from techflow_provider.client import Client, Settings
from techflow_provider.polling.shared import SharedReader
from techflow_provider.sandbox import ManualClock, Sandbox
from techflow_provider.sensors.techflow import TechFlowExecutionSensor
from techflow_provider.state.budget import LocalBudget
from techflow_provider.state.memory import MemoryStore

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore")]

KEY = "key-of-the-sensor-tests"


class Hook:
    """Gives sensors clients that share a store, and lets time pass while they sleep."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.sandbox = Sandbox(
            api_keys=(KEY,), clock=self.clock, execution_seconds=10**6, workflows_at_start={"wf_1": "one"}
        )
        self.store = MemoryStore(self.clock.monotonic)
        self.budget = LocalBudget(clock=self.clock.monotonic)
        self.webhooks = 0
        self.finish_at: dict[float, str] = {}

    def sleep(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for at in [each for each in self.finish_at if each <= self.clock.monotonic()]:
            self.sandbox.finish(self.finish_at.pop(at), outcome="completed")
            self.webhooks += 1

    def sensor(self, **fields: Any) -> TechFlowExecutionSensor:
        """Return a sensor in a process of its own."""
        sensor = TechFlowExecutionSensor(task_id="wait", **fields)
        client = Client(
            settings=Settings(KEY, self.sandbox.base_url, verify=False),
            budget=self.budget,
            transport=self.sandbox.transport(),
            clock=self.clock.monotonic,
            sleep=self.sleep,
            reader=SharedReader(self.store, "account", wakeups=lambda: self.webhooks),
        )
        vars(sensor.hook)["_client"] = client
        return sensor


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Hook:
    monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", '{"conn_type": "techflow", "password": "unused-key"}')
    monkeypatch.setattr("techflow_provider.sensors.techflow.keep_links", lambda *_: None)
    return Hook()


def test_a_webhook_wakes_a_sensor_between_two_pokes(hook: Hook) -> None:
    execution_id = hook.sandbox.start("wf_1").id
    hook.finish_at[20.0] = execution_id
    assert hook.sensor(execution_id=execution_id, poke_interval=600).execute({})["status"] == "completed"
    assert hook.clock.monotonic() <= 30
    assert hook.sandbox.count(path="/executions") == 2


def test_a_wait_without_a_slot_in_the_budget_continues_in_the_triggerer_and_says_so(
    hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    from airflow.providers.common.compat.sdk import TaskDeferred

    caplog.set_level(logging.INFO)
    hook.budget = LocalBudget(10, 1, hook.clock.monotonic)
    sensor = hook.sensor(execution_id=hook.sandbox.start("wf_1").id, deferrable=True)
    hook.sensor(execution_id="ex_1").poke({})
    with pytest.raises(TaskDeferred):
        sensor.execute({})
    assert "for up to 7 days; see" in caplog.text
    assert "No poll yet: the next slot in the rate budget is" in caplog.text


def test_a_rescheduled_sensor_finds_what_another_has_read_for_it(hook: Hook) -> None:
    first, second = (hook.sandbox.start("wf_1").id for _ in range(2))
    rescheduled = {"execution_id": first, "mode": "reschedule"}
    context: Any = {"ti": SimpleNamespace(get_first_reschedule_date=lambda _: None)}
    assert hook.sensor(**rescheduled).poke(context) is False
    hook.clock.advance(10)
    hook.sandbox.finish(first, outcome="completed")
    assert hook.sensor(execution_id=second).poke({}) is False
    polls = hook.sandbox.count(path="/executions")
    hook.clock.advance(50)
    found: Any = hook.sensor(**rescheduled).poke(context)
    assert found.xcom_value["id"] == first
    assert hook.sandbox.count(path="/executions") == polls


def test_a_sensor_that_runs_again_waits_for_its_new_execution(hook: Hook) -> None:
    first, second = (hook.sandbox.start("wf_1").id for _ in range(2))
    sensor = hook.sensor(execution_id=first)
    for execution_id in (first, second):
        hook.sandbox.finish(execution_id, outcome="completed")
        sensor.execution_id = execution_id
        found: Any = sensor.execute({})
        assert found["id"] == execution_id
