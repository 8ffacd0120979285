"""The connection's extra corrects the assumptions where a user's TechFlow differs from them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from techflow_provider.client import ExecutionState, InvalidParameterError
from techflow_provider.client.calls import create_workflow, replace_workflow
from techflow_provider.client.models import Execution, StatusWords, Workflow
from techflow_provider.hooks.connection import TechFlowConnection
from techflow_provider.hooks.techflow import TechFlowHook
from techflow_provider.sandbox import Sandbox
from techflow_provider.triggers.outcomes import ended_event, execution_of

KEY = "key-of-the-correction-tests"


def read(**extra: Any) -> TechFlowConnection:
    known = {"conn_id": "c", "host": None, "schema": None, "port": None, "password": KEY}
    return TechFlowConnection.read(SimpleNamespace(**known), extra)


@pytest.mark.parametrize("written", [["Done", "execution.ALL GOOD"], "Done, execution.ALL GOOD,", "done,all-good"])
def test_additional_words_are_a_list_or_comma_separated_text(written):
    words = read(completed_statuses=written).settings.status_words
    assert words.completed == {"done", "all_good"}
    assert words.state("Execution.done") is ExecutionState.COMPLETED


def test_an_additional_word_takes_precedence_over_the_usual_meaning():
    words = read(failed_statuses="complete", completed_statuses="cancelled").settings.status_words
    assert words.state("complete") is ExecutionState.FAILED
    assert words.state("cancelled") is ExecutionState.COMPLETED
    assert words.state("failed") is ExecutionState.FAILED


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"completed_statuses": 3}, "extra completed_statuses: expected status words as a list"),
        ({"failed_statuses": ["a", 1]}, "extra failed_statuses: expected status words as a list"),
        (
            {"failed_statuses": "over", "completed_statuses": "Over"},
            "extra failed_statuses: expected words that are not",
        ),
        ({"dashboard_url": "dashboard.techflow.com"}, "extra dashboard_url: expected a URL such as"),
        ({"dashboard_url": "javascript:alert(1)"}, "extra dashboard_url: expected a URL such as"),
        ({"dashboard_url": "https://x.test/{id}"}, "extra dashboard_url: expected a URL such as"),
        ({"dashboard_url": "https://{workflow_id}.test/"}, "extra dashboard_url: expected a URL such as"),
        ({"dashboard_url": "https://x.test/{execution_id.__class__}"}, "extra dashboard_url: expected a URL such as"),
        ({"dashboard_url": "https://x.test/{execution_id"}, "extra dashboard_url: expected a URL such as"),
        ({"dashboard_url": 5}, "extra dashboard_url: expected a URL such as"),
    ],
)
def test_the_error_names_an_invalid_correction(extra, message):
    with pytest.raises(InvalidParameterError) as caught:
        read(**extra)
    assert message in str(caught.value)


def test_the_url_of_an_execution_contains_percent_encoded_ids():
    assert read().execution_url("ex/1?") == "https://dashboard.techflow.com/executions/ex%2F1%3F"
    own = read(dashboard_url="https://x.test/{workflow_id}/runs/{execution_id}")
    assert own.execution_url("ex_1", "wf_1") == "https://x.test/wf_1/runs/ex_1"
    assert own.execution_url("ex_1") is None
    assert read(dashboard_url="https://x.test/{execution_id}/{execution_id}").execution_url("1") == "https://x.test/1/1"


@pytest.mark.parametrize("state", list(ExecutionState))
def test_an_event_contains_the_meaning_of_its_status(state):
    words = StatusWords(frozenset({"done"}), frozenset({"broken"}))
    status = {"completed": "Done", "failed": "broken", "running": "queued"}[state]
    execution = Execution.read({"id": "ex_1", "status": status}, words)
    event = json.loads(json.dumps(ended_event(execution)))
    received = execution_of(event)
    assert received is not None
    assert received.state is state


def test_a_wait_ends_on_an_additional_word(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    sandbox = Sandbox(api_keys=(KEY,), limit=10_000, execution_seconds=0.01, status_words={"completed": "all done"})
    workflow_id = sandbox.add_workflow("Nightly")
    with sandbox.serve() as url:
        extra = {"completed_statuses": ["all done"], "requests_per_minute": 10_000, "burst": 1000}
        connection = {"conn_type": "techflow", "host": url, "password": KEY, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps(connection))
        hook = TechFlowHook()
        started = hook.trigger_workflow(workflow_id)
        execution = hook.wait_for_execution(started.id, poll_interval=0.05, timeout=20)
        assert (execution.status, execution.state) == ("all done", ExecutionState.COMPLETED)
        assert [each.id for each in hook.list_executions(status="completed")] == [started.id]
        hook.get_conn().close()


def test_a_query_of_the_history_is_read() -> None:
    query = read(history_query="limit=200&workflow_id={workflow_id}").settings.history_query
    assert query == (("limit", "200"), ("workflow_id", "{workflow_id}"))
    assert read(history_query="").settings.history_query == ()


@pytest.mark.parametrize("value", [5, "limit", "limit={count}", "{since}=1", {"limit": 5}])
def test_a_query_of_the_history_that_cannot_be_used_is_rejected(value: object) -> None:
    with pytest.raises(InvalidParameterError, match=r"extra history_query: expected a query such as limit=200"):
        read(history_query=value)


NAMES = {"execution.id": "run.uid", "execution.status": "phase", "workflow.name": "attributes.title"}


@pytest.mark.parametrize("value", [NAMES, json.dumps(NAMES), str(NAMES)])
def test_other_names_of_fields_are_an_object_or_its_text(value: object) -> None:
    settings = read(fields=value).settings
    assert settings.names == {
        "execution": (("id", "run.uid"), ("status", "phase")),
        "workflow": (("name", "attributes.title"),),
    }
    assert read(fields="").settings.names == {"execution": (), "workflow": ()}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("run_uid", 'received "run_uid"'),
        (["execution.id"], "received"),
        ({"execution.ident": "run_uid"}, "received 'execution.ident' with a string"),
        ({"id": "run_uid"}, "received 'id' with a string"),
        ({"execution.id": 5}, "received 'execution.id' with a number: 5"),
        ({"execution.id": "run..uid"}, "received 'execution.id' with a string"),
    ],
)
def test_a_name_that_no_field_has_is_rejected_with_those_that_are_expected(value: object, message: str) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        read(fields=value)
    assert "extra fields: expected an object such as" in str(caught.value)
    assert "execution.workflow_id, execution.status" in str(caught.value)


def test_executions_are_read_by_other_names_and_by_the_usual_ones_where_those_are_missing() -> None:
    names = read(fields=NAMES | {"execution.workflow_id": "flow.ref"}).settings.names["execution"]
    row: dict[str, Any] = {
        "run": {"uid": 7},
        "id": "row 1",
        "phase": "done",
        "flow": {"ref": "wf_1"},
        "started_at": 1_600_000_000_000,
    }
    execution = Execution.read(row, names=names)
    assert (execution.id, execution.status, execution.workflow_id) == ("7", "done", "wf_1")
    assert execution.started_at is not None
    assert Execution.read(execution.to_dict()).id == "7"
    assert Execution.read({"id": "ex_1", "status": "done"}, names=names).id == "ex_1"
    started = Execution.read_started({"data": {"run": {"uid": "ex_2"}, "execution_id": 5}}, "wf_1", names=names)
    assert started.id == "ex_2"


def test_a_workflow_is_written_with_its_own_names_and_nothing_else_is_changed() -> None:
    names = read(fields=NAMES | {"workflow.id": "key"}).settings.names["workflow"]
    sent: dict[str, Any] = {
        "key": "wf_1",
        "name": "slug",
        "attributes": {"title": "Nightly", "owner": "me"},
        "status": "active",
    }
    workflow = Workflow.read({"workflow": sent}, names)
    assert (workflow.id, workflow.name, workflow.raw) == ("wf_1", "Nightly", sent)
    assert json.loads(replace_workflow(workflow, names).content or b"") == sent | {"description": None}
    created = json.loads(create_workflow("Hourly", names=names).content or b"")
    assert created == {"attributes": {"title": "Hourly"}, "triggers": []}
