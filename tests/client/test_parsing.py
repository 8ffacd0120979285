"""Responses of other shapes than the reference shows: plausible ones are read, the others quoted in an error."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import httpx
import pytest

from techflow_provider.client import AmbiguousWorkflowError, UnexpectedResponseError
from techflow_provider.client.models import USUAL_WORDS, Execution, ExecutionState, Workflow
from techflow_provider.client.parsing import Json
from techflow_provider.sandbox import Fault, Sandbox

RUN: dict[str, Json] = {"id": "ex_1", "workflow_id": "wf_1", "status": "running"}
FLOW: dict[str, Json] = {"id": "wf_1", "name": "n", "status": "active"}
STARTED = datetime(2020, 11, 1, 12, 30, tzinfo=UTC)
OPERATIONS = {
    "GET /workflows": lambda client: client.workflows.list(),
    "GET /workflows/wf_1": lambda client: client.workflows.get("wf_1"),
    "POST /workflows": lambda client: client.workflows.create("n"),
    "PUT /workflows/wf_1": lambda client: client.workflows.update("wf_1", name="n"),
    "GET /executions": lambda client: client.executions.list(),
    "POST /workflows/wf_1/execute": lambda client: client.workflows.execute("wf_1"),
}


def respond_with(sandbox: Sandbox, call: str, value: object, status: int = 200) -> None:
    """Let the sandbox respond to one kind of call with a body."""
    method, path = call.split()
    body = value if isinstance(value, str) else json.dumps(value)
    sandbox.faults.add(Fault(status=status, body=body, method=method, path=path))


@pytest.mark.parametrize("wrap", ["executions", "data", "items", "results", None])
def test_a_history_is_read_under_every_usual_name_and_bare(ask, sandbox, wrap):
    respond_with(sandbox, "GET /executions", [RUN] if wrap is None else {wrap: [RUN], "total": 1})
    assert [each.id for each in ask(OPERATIONS["GET /executions"])] == ["ex_1"]


@pytest.mark.parametrize("wrap", ["workflows", "data", "items", "results", None])
def test_workflows_are_read_under_every_usual_name_and_bare(ask, sandbox, wrap):
    respond_with(sandbox, "GET /workflows", [FLOW] if wrap is None else {wrap: [FLOW]})
    assert ask(OPERATIONS["GET /workflows"]) == [Workflow("wf_1", "n", "active", None, FLOW)]


@pytest.mark.parametrize(
    "value",
    [
        {"id": "ex_1", "workflow_id": "wf_1"},
        {"execution_id": "ex_1", "workflow_id": "wf_1"},
        {"executionId": "ex_1", "workflowId": "wf_1"},
        {"id": "ex_1", "workflow": {"id": "wf_1", "name": "n"}},
        {"id": "ex_1", "workflow": {"workflow_id": "wf_1"}},
        {"id": "ex_1", "workflow": "wf_1"},
        {"id": "ex_1", "workflow_id": "wf_1", "workflow": {"name": "n"}},
        {"id": "ex_1", "workflow_id": "wf_1", "workflow": "My Workflow"},
    ],
    ids=str,
)
def test_an_execution_names_itself_and_its_workflow_in_every_usual_way(value):
    execution = Execution.read({**value, "status": "running"})
    assert (execution.id, execution.workflow_id) == ("ex_1", "wf_1")


def test_ids_may_be_whole_numbers_and_come_out_as_text():
    execution = Execution.read({"id": 7, "workflow_id": 8, "status": "running"})
    assert (execution.id, execution.workflow_id) == ("7", "8")


def test_unknown_fields_are_kept():
    value: dict[str, Json] = {**RUN, "region": "eu", "steps": [1, {"a": None}]}
    assert Execution.read(value).raw == value
    assert Execution.read(value).to_dict().items() >= value.items()
    assert Workflow.read({**FLOW, "owner": "me"}).to_dict()["owner"] == "me"


@pytest.mark.parametrize("name", ["started_at", "startedAt", "start_time", "created_at"])
def test_a_start_is_read_under_every_usual_name(name):
    assert Execution.read({**RUN, name: "2020-11-01T12:30:00Z"}).started_at == STARTED


@pytest.mark.parametrize("name", ["finished_at", "ended_at", "completed_at", "end_time", "endTime"])
def test_an_end_is_read_under_every_usual_name(name):
    assert Execution.read({**RUN, name: "2020-11-01T12:30:00Z"}).finished_at == STARTED


@pytest.mark.parametrize(
    "value",
    [
        "2020-11-01T12:30:00Z",
        "2020-11-01T13:30:00+01:00",
        "2020-11-01 12:30:00",
        "2020-11-01T12:30:00.000000Z",
        "20201101T123000Z",
        "2020-W44-7T12:30:00Z",
        "2020-11-01 12:30:00 UTC",
        "2020-11-01T12:30:00z",
        "2020-11-01t12:30:00.000000000z",
        "2020-11-01 12:30:00 +0000 UTC",
        "2020-11-01 13:30:00 +01:00",
        "2020-11-01T12:30:00Z[UTC]",
        "2020-11-01T12:30:00 GMT",
        "Sun, 01 Nov 2020 12:30:00 GMT",
        STARTED.timestamp(),
        int(STARTED.timestamp()),
        int(STARTED.timestamp()) * 1000,
        str(int(STARTED.timestamp())),
        int(STARTED.timestamp()) * 1_000_000,
        int(STARTED.timestamp()) * 1_000_000_000,
    ],
)
def test_a_time_is_read_from_iso_8601_and_from_seconds_since_1970(value):
    assert Execution.read({**RUN, "started_at": value}).started_at == STARTED


def test_words_of_success_mean_completed():
    for word in ["completed", "Completed", "execution.completed", "succeeded", "SUCCESS"]:
        assert USUAL_WORDS.state(word) is ExecutionState.COMPLETED


def test_words_of_failure_mean_failed():
    words = (
        *("failed", "FAILED", "execution.failed", "Execution.Failed", "error", "errored"),
        *("cancelled", "canceled", "timed_out", "timed-out", "Timed Out", "aborted"),
    )
    for word in words:
        assert USUAL_WORDS.state(word) is ExecutionState.FAILED


def test_every_other_word_means_running():
    for word in ["running", "queued", "execution.started", "hibernating", ""]:
        assert USUAL_WORDS.state(word) is ExecutionState.RUNNING


@pytest.mark.parametrize(
    "value",
    [
        RUN,
        {"id": "ex_1"},
        {"execution_id": "ex_1"},
        {"execution_id": "ex_1", "id": "wf_1"},
        {"execution": {"id": "ex_1"}},
        {"execution": {"id": "ex_1"}, "workflow": FLOW},
        {"data": RUN},
        {"data": {"execution_id": "ex_1"}},
        {"id": "ex_1", "data": {"rows": 5}},
    ],
    ids=str,
)
def test_the_response_to_a_start_is_read_in_every_usual_form(ask, sandbox, value):
    for status in (200, 201, 202):
        sandbox.faults.clear()
        respond_with(sandbox, "POST /workflows/wf_1/execute", value, status)
        assert ask(OPERATIONS["POST /workflows/wf_1/execute"]).id == "ex_1"


@pytest.mark.parametrize(
    "value", [FLOW, {"workflow": FLOW}, {"data": FLOW}, {"workflow_id": "wf_1"}, {**FLOW, "data": {"x": 1}}], ids=str
)
@pytest.mark.parametrize("call", ["GET /workflows/wf_1", "POST /workflows"])
def test_a_workflow_is_read_bare_and_wrapped(ask, sandbox, call, value):
    respond_with(sandbox, call, value, 201)
    assert ask(OPERATIONS[call]).id == "wf_1"


@pytest.mark.parametrize("body", ["", " ", "{}", json.dumps({**FLOW, "name": "new"})])
def test_the_response_to_an_update_may_be_empty(ask, sandbox, workflow_id, body):
    respond_with(sandbox, "PUT /workflows/wf_1", body)
    assert ask(lambda client: client.workflows.update("wf_1", name="new")).name == "new"


@pytest.mark.parametrize(("body", "status"), [("", 200), ("", 204), ("deleted", 200), ('{"deleted": true}', 202)])
def test_the_response_to_a_deletion_may_be_anything(ask, sandbox, body, status):
    respond_with(sandbox, "DELETE /workflows/wf_1", body, status)
    assert ask(lambda client: client.workflows.delete("wf_1")) is None


@pytest.mark.parametrize("next_page", ["link", "body"])
def test_further_pages_are_followed(connect, sandbox, workflow_id, next_page):
    sandbox.page_size, sandbox.next_page = 2, next_page
    started = {sandbox.start(workflow_id).id for _ in range(5)}
    assert {each.id for each in connect()(OPERATIONS["GET /executions"])} == started
    assert sandbox.count("GET", "/executions") == 3


def test_endless_pages_are_abandoned_after_fifty(connect):
    requested = []

    def respond(request):
        requested.append(request)
        body = {"executions": [{"id": len(requested), "status": "running"}], "next": f"?page={len(requested)}"}
        return httpx.Response(200, json=body)

    with pytest.raises(UnexpectedResponseError, match=r"GET /executions .*expected at most 50 pages, got a link"):
        connect(respond=respond)(lambda client: client.executions.list())
    assert len(requested) == 50


ONE_WORKFLOW = ("GET /workflows/wf_1", "POST /workflows", "PUT /workflows/wf_1")
LISTS = {"GET /workflows": "workflow", "GET /executions": "execution"}
ONES = {**dict.fromkeys(ONE_WORKFLOW, "workflow"), "POST /workflows/wf_1/execute": "execution"}
STATUS = ({"id": "x", "status": 5}, "text as status", "a number: 5")
ODD_OBJECTS = [
    ({"name": "n"}, ".*with", 'an object: {"name": "n"}'),
    ({"id": ""}, ".*with", 'an object: {"id": ""}'),
    ({"id": True}, ".*with", 'an object: {"id": true}'),
    ({"id": 1.5}, ".*with", 'an object: {"id": 1.5}'),
    ({"id": None}, ".*with", 'an object: {"id": null}'),
    STATUS,
    ({"id": "x", "status": ["a"]}, "text as status", 'a list: ["a"]'),
    ({"id": "x", "status": {"a": 1}}, "text as status", 'an object: {"a": 1}'),
]
IMPLAUSIBLE = [
    *((call, [{"id": "x"}], f"a[n]? {kind} object", "a list") for call, kind in ONES.items()),
    *((call, "5", f"a[n]? {kind} object", "a number: 5") for call, kind in ONES.items()),
    *((call, "null", f"a[n]? {kind} object", "null") for call, kind in ONES.items()),
    *((call, '"ok"', f"a[n]? {kind} object", 'a string: "ok"') for call, kind in ONES.items()),
    *((call, *odd) for call in ("GET /workflows/wf_1", "POST /workflows/wf_1/execute") for odd in ODD_OBJECTS),
    *((call, *ODD_OBJECTS[0]) for call in ONES),
    ("POST /workflows/wf_1/execute", FLOW, "the id of an execution, not the workflow's own", "an object"),
    ("POST /workflows/wf_1/execute", {"execution": [RUN]}, "an execution with", "an object"),
    ("POST /workflows/wf_1/execute", {"id": "req", "data": RUN}, "one object with an id", "an object"),
    ("GET /workflows/wf_1", {**FLOW, "data": {"id": "x"}}, "one object with an id", "an object"),
    *((call, {"count": 0}, f"a list of {kind}s", 'an object: {"count": 0}') for call, kind in LISTS.items()),
    *((call, {f"{kind}s": {}}, f"a list of {kind}s", "an object") for call, kind in LISTS.items()),
    *((call, {f"{kind}s": None}, f"a list of {kind}s", "null") for call, kind in LISTS.items()),
    *((call, '"none"', f"a list of {kind}s", "a string") for call, kind in LISTS.items()),
    *((call, ["x"], f"a[n]? {kind} object", 'a string: "x"') for call, kind in LISTS.items()),
    *((call, [[]], f"a[n]? {kind} object", "a list") for call, kind in LISTS.items()),
    *(("GET /executions", [value], expected, received) for value, expected, received in ODD_OBJECTS),
    ("GET /workflows", [ODD_OBJECTS[0][0]], *ODD_OBJECTS[0][1:]),
    ("GET /executions", [{"id": "ex_1"}], "an execution with status", "an object"),
    (
        "GET /executions",
        [{**RUN, "workflow": {"name": "n"}, "workflow_id": None}],
        "an execution with workflow_id",
        "an object",
    ),
    *((call, "", "JSON", "an empty body") for call in ("GET /workflows", *ONE_WORKFLOW[:2], "GET /executions")),
]


@pytest.mark.parametrize(("call", "value", "expected", "received"), IMPLAUSIBLE)
def test_an_implausible_response_is_quoted_beside_what_was_expected(
    ask, sandbox, workflow_id, *, call, value, expected, received
):
    respond_with(sandbox, call, value)
    with pytest.raises(UnexpectedResponseError, match=rf"^{call} returned 200: expected {expected}.*, got ") as caught:
        ask(OPERATIONS[call])
    assert received in str(caught.value).partition(", got ")[2]
    assert sandbox.count(*call.split()) == 1


@pytest.mark.parametrize("call", OPERATIONS, ids=lambda call: call.replace("/", ""))
@pytest.mark.parametrize(("kind", "received"), [("html", "<!DOCTYPE html>"), ("truncated", "bytes that begin '{")])
def test_an_html_page_and_half_a_body_are_quoted(connect, sandbox, workflow_id, *, call, kind, received):
    method, path = call.split()
    sandbox.faults.add(Fault(kind, method=method, path=path))
    # Half a response to a creation means that a workflow may have been created.
    kinds = (UnexpectedResponseError, AmbiguousWorkflowError)
    with pytest.raises(kinds, match=rf"{call} returned 200: expected JSON, got \d+ bytes") as caught:
        connect()(OPERATIONS[call])
    assert isinstance(caught.value, UnexpectedResponseError) or (call, kind) == ("POST /workflows", "truncated")
    assert received in str(caught.value)
    assert sandbox.count(method, path) == 1


def test_a_status_that_is_not_documented_is_unexpected(ask, sandbox):
    sandbox.faults.add(Fault(status=409, body='{"message": "busy"}'))
    with pytest.raises(UnexpectedResponseError, match="GET /workflows returned 409: busy"):
        ask(OPERATIONS["GET /workflows"])


def test_deeply_nested_json_is_an_implausible_response(ask, sandbox):
    respond_with(sandbox, "GET /workflows", "[" * 100_000)
    with pytest.raises(UnexpectedResponseError, match="expected JSON"):
        ask(OPERATIONS["GET /workflows"])
