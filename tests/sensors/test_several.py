"""Several executions, and a workflow's latest active one: the same in every mode of the sensor."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from techflow_provider.sandbox import Sandbox
from techflow_provider.sensors.techflow import TechFlowExecutionSensor
from tests.operators.attempts import Attempt, after_polls

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:::techflow_provider"),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "poke": {"poke_interval": 0.2},
    "reschedule": {"mode": "reschedule", "poke_interval": 0.2},
    "deferrable": {"deferrable": True, "poke_interval": 0.2},
}
MODES = pytest.mark.parametrize("mode", OPTIONS)


@pytest.fixture
def attempt(served: Sandbox, current_context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make one attempt of a sensor."""
    monkeypatch.setattr("techflow_provider.sensors.techflow.MAX_AGE_SECONDS", 0.0)

    def make(mode: str = "poke", **fields: Any) -> Attempt:
        made = Attempt(lambda: TechFlowExecutionSensor(task_id="wait", **OPTIONS[mode], **fields))
        current_context.update(made.context)
        return made

    return make


@MODES
def test_all_of_several_executions_are_waited_for(served: Sandbox, attempt: Any, mode: str) -> None:
    ids = [served.start("wf_1").id for _ in range(3)]
    served.finish(ids[1])

    def second() -> None:
        served.finish(ids[2])
        after_polls(served, 1, lambda: served.finish(ids[0]))

    after_polls(served, 1, second)
    made = attempt(mode, execution_ids=[*ids, ids[0]])
    for found in (made.run(), made.xcoms["techflow_execution"]):
        assert [(each["id"], each["status"]) for each in found] == [(each, "completed") for each in ids]


@MODES
def test_all_of_several_are_waited_for_before_those_that_failed_are_reported(
    served: Sandbox, attempt: Any, mode: str
) -> None:
    from airflow.providers.common.compat.sdk import AirflowFailException

    ids = [served.start("wf_1").id for _ in range(3)]
    served.finish(ids[0], outcome="failed", error="first")
    served.finish(ids[1], outcome="failed", error="second")
    after_polls(served, 2, lambda: served.finish(ids[2]))
    with pytest.raises(AirflowFailException, match=r"first.*second"):
        attempt(mode, execution_ids=ids).run()
    assert all(each.finished_at is not None for each in served.executions)


@MODES
def test_the_first_failure_ends_the_wait_where_that_is_asked_for(served: Sandbox, attempt: Any, mode: str) -> None:
    from airflow.providers.common.compat.sdk import AirflowFailException

    ids = [served.start("wf_1").id for _ in range(3)]
    served.finish(ids[2])
    after_polls(served, 2, lambda: served.finish(ids[1], outcome="failed", error="it broke"))
    with pytest.raises(AirflowFailException, match=rf"execution {ids[1]} .*: it broke"):
        attempt(mode, execution_ids=ids, fail_fast=True).run()
    assert served.executions[0].finished_at is None


@pytest.mark.parametrize("mode", ["poke", "deferrable"])
def test_a_wait_for_several_ends_with_its_timeout(served: Sandbox, attempt: Any, mode: str) -> None:
    from airflow.providers.common.compat.sdk import AirflowSensorTimeout

    ids = [served.start("wf_1").id for _ in range(2)]
    served.finish(ids[0])
    with pytest.raises(AirflowSensorTimeout):
        attempt(mode, execution_ids=ids, timeout=1.0).run()


def test_ids_of_a_template_may_be_text_and_there_may_be_none(served: Sandbox, attempt: Any) -> None:
    execution_id = served.start("wf_1").id
    served.finish(execution_id)
    made = attempt(execution_ids="{{ ids }}")
    made.task.execution_ids = f"['{execution_id}']"
    assert [each["id"] for each in made.run()] == [execution_id]
    assert attempt(execution_ids=[]).run() == []


@MODES
def test_the_latest_active_execution_of_a_workflow_is_waited_for(served: Sandbox, attempt: Any, mode: str) -> None:
    served.start("wf_1")
    wanted = served.start("wf_1").id
    served.finish(served.start("wf_1").id)

    def another() -> None:
        # One that starts during the wait is another one.
        served.start("wf_1")
        after_polls(served, 2, lambda: served.finish(wanted))

    after_polls(served, 2, another)
    assert attempt(mode, workflow_id="wf_1", latest_active=True).run()["id"] == wanted


@MODES
def test_where_none_is_active_the_next_execution_is_waited_for(served: Sandbox, attempt: Any, mode: str) -> None:
    served.finish(served.start("wf_1").id)
    wanted: list[str] = []

    def start() -> None:
        wanted.append(served.start("wf_1").id)
        after_polls(served, 2, lambda: served.finish(wanted[0]))

    after_polls(served, 2, start)
    assert attempt(mode, workflow_id="wf_1", latest_active=True).run()["id"] == wanted[0]


@MODES
def test_times_that_templates_render_as_text_are_read(
    served: Sandbox, current_context: dict[str, Any], mode: str
) -> None:
    execution_id = served.start("wf_1").id
    after_polls(served, 2, lambda: served.finish(execution_id))
    options = {**OPTIONS[mode], "poke_interval": "{{ a }}", "timeout": "{{ b }}"}

    def rendered() -> Any:
        sensor = TechFlowExecutionSensor(task_id="wait", execution_id=execution_id, **options)
        sensor.poke_interval, sensor.timeout = "0.2", "60"
        return sensor

    made = Attempt(rendered)
    current_context.update(made.context)
    assert made.run()["id"] == execution_id


@MODES
def test_the_log_says_once_what_is_waited_for_and_where_to_look(
    served: Sandbox, attempt: Any, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    execution_id = served.start("wf_1").id
    after_polls(served, 3, lambda: served.finish(execution_id))
    attempt(mode, execution_id=execution_id, timeout=3600).run()
    place = "triggerer" if mode == "deferrable" else "worker"
    line = f"Waiting in the {place} for execution {execution_id}, with a poll every 0.2 s, for up to 1:00:00"
    assert caplog.text.count(f"{line}; see https://dash.test/{execution_id}") == 1
