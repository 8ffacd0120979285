"""The control API: the sandbox from another process."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from techflow_provider.sandbox import Sandbox
from techflow_provider.sandbox.messages import Request
from techflow_provider.sandbox.sockets import is_local


@pytest.fixture
def control(sandbox: Sandbox) -> Iterator[httpx.Client]:
    with sandbox.serve() as url, httpx.Client(base_url=url.replace("/v2", "/_sandbox/")) as client:
        yield client


def test_the_control_api_needs_no_key_and_counts_for_nothing(control, sandbox):
    assert control.get("requests").json() == {"requests": []}
    assert sandbox.count() == 0


def test_the_state_tells_all_that_stands_in_the_sandbox(control, sandbox, clock):
    workflow_id = sandbox.add_workflow("n")
    execution = sandbox.start(workflow_id, {"a": 1})
    clock.advance(5)
    state = control.get("state").json()

    assert state["now"] == "2026-01-01T00:00:05+00:00"
    assert state["workflows"] == list(sandbox.workflows)
    assert state["executions"] == [
        {
            "id": execution.id,
            "workflow_id": workflow_id,
            "status": "completed",
            "started_at": "2026-01-01T00:00:00+00:00",
            "finished_at": "2026-01-01T00:00:05+00:00",
            "error": None,
            "payload": {"a": 1},
        }
    ]
    assert [each["name"] for each in state["events"]] == [
        "workflow.created",
        "execution.started",
        "execution.completed",
    ]


def test_requests_and_their_numbers_are_told(control, local):
    local.get("/workflows")
    local.get("/workflows")

    assert [each["path"] for each in control.get("requests").json()["requests"]] == ["/workflows"] * 2
    rows = [{"method": "GET", "path": "/workflows", "status": 200, "count": 2}]
    assert control.get("stats").json() == {"count": 2, "requests": rows}


def test_faults_are_added_listed_and_cleared(control, local, sandbox):
    added = control.post("faults", json={"kind": "status", "status": 503, "path": "/executions"}).json()["fault"]

    assert local.get("/executions").status_code == 503
    assert control.get("state").json()["faults"] == [added]
    assert control.delete("faults").json() == {"faults": []}
    assert local.get("/executions").status_code == 200


def test_executions_are_planned_and_finished(control, sandbox, clock):
    workflow_id = sandbox.add_workflow("n")
    plan = {"seconds": 60, "outcome": "failed", "error": None}
    assert control.post("plan", json={"workflow_id": workflow_id, **plan}).json()["plan"] == plan
    first, second = sandbox.start(workflow_id), sandbox.start(workflow_id)

    finished = control.post(f"executions/{first.id}/finish", json={"outcome": "completed"}).json()["execution"]
    clock.advance(60)

    assert finished["status"] == "completed"
    assert [each.status for each in sandbox.executions] == ["completed", "failed"]
    assert control.post(f"executions/{second.id}/finish").status_code == 400
    assert control.post("executions/none/finish").status_code == 404


def test_a_reset_leaves_what_was_there_at_the_start(control, clock):
    sandbox = Sandbox(clock=clock, limit=1, workflows_at_start={"wf_123": "My Workflow"})
    start = sandbox.workflows
    sandbox.add_workflow("n")
    sandbox.start("wf_123")
    sandbox.plan("wf_123", outcome="failed")
    ask(sandbox, "GET", "/v2/executions")
    ask(sandbox, "POST", "/_sandbox/reset")

    assert sandbox.workflows == start
    assert sandbox.executions == ()
    assert sandbox.count() == 0
    assert ask(sandbox, "GET", "/v2/executions") == 200


def ask(sandbox: Sandbox, method: str, target: str, *, local: bool = True) -> int | None:
    headers = {"authorization": "Bearer sandbox-key"}
    steps = sandbox.handle(Request(method, target, headers, local=local))
    with pytest.raises(StopIteration) as stop:
        next(steps)
    status: int | None = stop.value.value.status
    return status


def test_the_control_api_is_closed_to_other_machines(sandbox):
    for method, path in (("GET", "state"), ("POST", "reset"), ("GET", "nothing")):
        assert ask(sandbox, method, f"/_sandbox/{path}", local=False) == 403
    assert ask(sandbox, "GET", "/openapi.json", local=False) == 200


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
    ],
)
def test_only_loopback_addresses_are_local(address, local):
    assert is_local(address) is local


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("faults", {"kind": "fire"}, "kind: received 'fire', expected one of status, hang"),
        ("faults", {"color": "red"}, "fault: received 'color'"),
        ("plan", {"seconds": 1}, "workflow_id: received None, expected a string"),
        ("plan", {"workflow_id": "w", "seconds": "1"}, "seconds: received '1'"),
        ("plan", [], "the body must be a JSON object"),
    ],
)
def test_a_bad_order_is_refused_with_the_reason(control, path, body, message):
    response = control.post(path, json=body)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_a_form_from_a_web_page_is_no_order(control, sandbox):
    headers = {"content-type": "text/plain"}
    assert control.post("faults", content=b'{"kind": "drop"}', headers=headers).status_code == 400
    assert sandbox.faults.active() == ()


def test_unknown_orders_are_not_found(control):
    assert control.get("nothing").status_code == 404
    assert control.get("plan").status_code == 404
