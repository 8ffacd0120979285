"""What is checked when a DAG is parsed, and what is left to the run because it is a template."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, BaseOperator

from techflow_provider.client import InvalidParameterError
from techflow_provider.notifications.techflow import TechFlowNotifier
from techflow_provider.operators.techflow import (
    TechFlowCreateWorkflowOperator,
    TechFlowDeleteWorkflowOperator,
    TechFlowGetWorkflowOperator,
    TechFlowListExecutionsOperator,
    TechFlowListWorkflowsOperator,
    TechFlowTriggerWorkflowOperator,
    TechFlowUpdateWorkflowOperator,
)
from techflow_provider.sensors.techflow import TechFlowExecutionSensor

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:::techflow_provider"),
]
AT = datetime(2026, 1, 1, tzinfo=UTC)
NEXT: dict[str, Any] = {"workflow_id": "wf_1", "started_after": AT}


def trigger(**options: Any) -> TechFlowTriggerWorkflowOperator:
    return TechFlowTriggerWorkflowOperator(**{"task_id": "t", "workflow_id": "wf_1", **options})


def create(**options: Any) -> TechFlowCreateWorkflowOperator:
    return TechFlowCreateWorkflowOperator(**{"task_id": "t", "name": "n", **options})


def sensor(**options: Any) -> TechFlowExecutionSensor:
    return TechFlowExecutionSensor(**{"task_id": "t", **options})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: create(if_exists="retrun"), r"^if_exists: expected create, return, update or fail, .*mean return"),
        (lambda: create(if_exists="{{ params.x }}"), r"^if_exists: expected create"),
        (lambda: create(if_exists=None), r"^if_exists: expected create"),
        (lambda: create(name=" "), r"^name: expected text"),
        (lambda: create(triggers={"type": "manual"}), r"^triggers: expected a list"),
        (lambda: create(triggers=[5]), r"^triggers: expected texts or dicts"),
        (lambda: create(description=1.5), r"^description: expected text or None"),
        (lambda: trigger(timeout=-5), r"^timeout: expected a timedelta or a number of seconds, above 0"),
        (lambda: trigger(timeout="1h"), r"^timeout: expected a timedelta"),
        (lambda: trigger(timeout=timedelta(0)), r"^timeout: expected a timedelta"),
        (lambda: trigger(poll_interval=0), r"^poll_interval: expected a timedelta"),
        (lambda: trigger(poll_interval=float("nan")), r"^poll_interval: expected a timedelta"),
        (lambda: trigger(on_ambiguous="adpot"), r"^on_ambiguous: expected adopt or fail, .*mean adopt"),
        (lambda: trigger(deferrable="False"), r"^deferrable: expected True or False"),
        (lambda: trigger(wait_for_completion="yes"), r"^wait_for_completion: expected True or False"),
        (lambda: trigger(reattach=None), r"^reattach: expected True or False"),
        (lambda: trigger(workflow_id=""), r"^workflow_id: expected one of workflow_id, workflow_name, got nothing"),
        (lambda: trigger(workflow_id=None), r"^workflow_id: expected one of"),
        (lambda: trigger(workflow_name="n"), r"^workflow_id: expected one of .*got workflow_id and workflow_name"),
        (lambda: trigger(workflow_id=None, workflow_name=" "), r"^workflow_id: expected one of .*got nothing"),
        (lambda: trigger(allowed_statuses="compelted"), r"^allowed_statuses: .*mean completed"),
        (lambda: trigger(skip_on_statuses=["running"]), r"^skip_on_statuses: expected final"),
        (lambda: trigger(payload="[1]", annotate_payload=True), r"^payload: expected a dict"),
        (lambda: trigger(annotate_payload="no"), r"^annotate_payload: expected True or False"),
        (lambda: trigger(reuse_running="no"), r"^reuse_running: expected True or False"),
        (lambda: trigger(workflow_id=1.5), r"^workflow_id: expected an id"),
        (lambda: trigger(payload="{'a': "), r"^payload: expected a dict, or text"),
        (lambda: trigger(payload={"a": b"x"}), r"^payload: expected a value that JSON can represent"),
        (lambda: trigger(techflow_conn_id=""), r"^techflow_conn_id: expected text"),
        (sensor, r"^execution_id: expected one of execution_id, execution_ids, workflow_id, got nothing"),
        (lambda: sensor(execution_id=""), r"^execution_id: expected one of .* got nothing"),
        (lambda: sensor(execution_id="ex_1", **NEXT), r"^execution_id: expected one of .*_id and workflow_id"),
        (lambda: sensor(execution_id=7, **NEXT), r"^execution_id: expected one of .*_id and workflow_id"),
        (lambda: sensor(execution_ids={"a": 1}), r"^execution_ids: expected a list of ids"),
        (lambda: sensor(execution_ids=["a", ""]), r"^execution_ids: expected an id"),
        (lambda: sensor(workflow_id="wf_1", latest_active=True, started_after=AT), r"^latest_active: expected"),
        (lambda: sensor(execution_id="ex_1", latest_active=True), r"^latest_active: expected False, or workflow_id"),
        (lambda: sensor(execution_id="ex_1", timeout="1h"), r"^timeout: expected a timedelta"),
        (lambda: sensor(execution_id="ex_1", timeout=-5), r"^timeout: expected a timedelta"),
        (lambda: sensor(execution_id="ex_1", poke_interval="soon"), r"^poke_interval: expected a timedelta"),
        (lambda: sensor(workflow_id="wf_1"), r"^started_after: expected a time with a time zone"),
        (lambda: sensor(workflow_id="wf_1", started_after="soon"), r"^started_after: expected an ISO 8601 time"),
        (lambda: sensor(workflow_id="wf_1", started_after=5), r"^started_after: expected an ISO 8601 time"),
        (lambda: sensor(workflow_id="wf_1", started_after=AT.replace(tzinfo=None)), r"^started_after: expected an"),
        (lambda: sensor(execution_id="ex_1", allowed_statuses="compelted"), r"^allowed_statuses: .*mean completed"),
        (lambda: sensor(execution_id="ex_1", allowed_statuses=["running"]), r"^allowed_statuses: expected final"),
        (lambda: sensor(execution_id="ex_1", allowed_statuses=()), r"^allowed_statuses: expected final"),
        (lambda: sensor(execution_id="ex_1", end_from_trigger="no"), r"^end_from_trigger: expected True or False"),
        (lambda: TechFlowGetWorkflowOperator(task_id="t", workflow_id=["wf_1"]), r"^workflow_id: expected an id"),  # type: ignore[arg-type]  # the point
        (lambda: TechFlowUpdateWorkflowOperator(task_id="t", workflow_id="..", name="n"), r"^workflow_id: "),
        (lambda: TechFlowDeleteWorkflowOperator(task_id="t", workflow_id="a", ignore_if_missing="no"), r"^ignore_if"),  # type: ignore[arg-type]  # the point
        (lambda: TechFlowListExecutionsOperator(task_id="t", status=["failed"]), r"^status: expected text"),  # type: ignore[arg-type]  # the point
        (lambda: TechFlowListExecutionsOperator(task_id="t", limit=0), r"^limit: expected a whole number above 0"),
        (lambda: TechFlowListExecutionsOperator(task_id="t", since="2026-01-01"), r"^since: .* with a time zone"),
        (lambda: TechFlowListWorkflowsOperator(task_id="t", limit="few"), r"^limit: expected a whole number above 0"),
        (lambda: TechFlowNotifier(workflow_id=""), r"^workflow_id: expected an id"),
        (lambda: TechFlowNotifier(workflow_id="wf_1", payload=[1]), r"^payload: expected a dict"),  # type: ignore[arg-type]  # the point
    ],
)
def test_a_value_that_cannot_be_used_fails_when_the_dag_is_parsed(build: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        build()


def test_a_template_an_output_and_a_callable_are_left_to_the_run() -> None:
    with DAG("parsed", schedule=None, start_date=AT):
        first = create(task_id="first", name="{{ ds }}", triggers="{{ params.triggers }}", description="{# none #}")
        for index, payload in enumerate(
            ["{{ dag_run.conf }}", "payload.json", first.output, lambda context, jinja_env: {}, {"a": [first.output]}]
        ):
            trigger(task_id=f"trigger{index}", workflow_id=first.output, payload=payload)
        sensor(task_id="a", execution_id="{{ params.a }}", workflow_id="{{ params.b }}", started_after="{{ ts }}")
        sensor(task_id="b", execution_id="{{ params.get('a', '') }}", **NEXT)
        sensor(task_id="c", execution_id=first.output, allowed_statuses=["done"])
        sensor(task_id="d", workflow_id=first.output, started_after="{{ ts }}")
        with pytest.raises(InvalidParameterError, match="got execution_id and workflow_id"):
            sensor(task_id="e", execution_id=first.output, **NEXT)
        TechFlowListWorkflowsOperator(task_id="f", status="{{ params.x }}", name=first.output)


@pytest.mark.parametrize("value", [12346, " 12346 "])
def test_an_operator_of_ones_own_may_render_a_parameter_that_is_not_a_template_here(value: object) -> None:
    class Own(TechFlowCreateWorkflowOperator):
        template_fields = (*TechFlowCreateWorkflowOperator.template_fields, "if_exists")

    task: BaseOperator = Own(task_id="t", name=value, if_exists="{{ params.x }}")  # type: ignore[arg-type]  # the point
    assert task.task_id == "t"
