"""A start whose response is lost, from the worker to the triggerer and back."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from techflow_provider.client import AmbiguousExecutionError, UnexpectedResponseError
from techflow_provider.sandbox import Fault, Sandbox

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore")]
KEY = "key-of-the-search-tests"
START: dict[str, Any] = {"method": "POST", "path": "/workflows/*/execute"}


@pytest.fixture
def served(tmp_path, monkeypatch):

    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    monkeypatch.setenv("AIRFLOW__TECHFLOW__HISTORY_LAG", "0")
    monkeypatch.setenv("AIRFLOW__TECHFLOW__FIRST_EVENT_DELAY", "0")
    sandbox = Sandbox(api_keys=(KEY,), limit=10_000, workflows_at_start={"wf_1": "Nightly"})
    with sandbox.serve() as url:
        extra = {"requests_per_minute": 10_000, "burst": 1000, "timeout": 0.5}
        connection = {"conn_type": "techflow", "host": url, "password": KEY, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps(connection))
        yield sandbox


def operator() -> Any:
    from techflow_provider.operators.techflow import TechFlowTriggerWorkflowOperator

    return TechFlowTriggerWorkflowOperator(task_id="t", workflow_id="wf_1", deferrable=True)


def context(task: Any) -> Any:
    ti = SimpleNamespace(
        dag_id="d", run_id="r", task_id="t", map_index=-1, max_tries=1, try_number=1, xcom_push=lambda **_: None
    )
    return {"ti": ti, "task": task, "dag_run": SimpleNamespace(start_date=None)}


def deferred(task: Any) -> Any:
    from airflow.providers.common.compat.sdk import TaskDeferred

    with pytest.raises(TaskDeferred) as caught:
        task.execute(context(task))
    task.hook.get_conn().close()
    path, fields = caught.value.trigger.serialize()
    assert (path, caught.value.method_name) == (
        "techflow_provider.triggers.search.TechFlowSearchTrigger",
        "execute_searched",
    )
    return type(caught.value.trigger)(**json.loads(json.dumps(fields)))


async def event_of(trigger: Any) -> Any:
    (payload,) = [event.payload async for event in trigger.run()]
    return json.loads(json.dumps(payload))


async def test_a_deferrable_task_adopts_what_the_triggerer_has_found_and_starts_nothing(served):
    served.faults.add(Fault("lost_response", times=1, **START))
    event = await event_of(deferred(operator()))
    task = operator()
    assert task.execute_searched(context(task), event) == served.executions[0].id
    task.hook.get_conn().close()
    assert served.count(**START) == 1


@pytest.mark.parametrize("event", [None, {}, {"start": {}, "found": None}])
def test_an_event_of_another_kind_is_an_error(event):
    from techflow_provider.triggers.search import read_search

    with pytest.raises(UnexpectedResponseError, match="resuming from the trigger"):
        read_search(event)


def test_what_cannot_be_determined_in_the_triggerer_fails_the_task():
    from techflow_provider.triggers.outcomes import event_of as error_event
    from techflow_provider.triggers.search import read_search

    with pytest.raises(AmbiguousExecutionError, match="wf_1"):
        read_search(error_event(AmbiguousExecutionError("wf_1", "who knows")))
