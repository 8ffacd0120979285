"""The log of requests, and the control API: the sandbox's interface for other processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

import httpx
import pytest

from techflow_provider.sandbox import Fault, Plan, Record, Sandbox
from techflow_provider.sandbox import sandbox as sandbox_module
from techflow_provider.sandbox.messages import Request
from techflow_provider.sandbox.server import greeting
from techflow_provider.sandbox.sockets import is_local
from tests.sandbox.conftest import client_of


@pytest.fixture
def control(sandbox: Sandbox) -> Iterator[httpx.Client]:
    with client_of(sandbox, "https://api.techflow.com/_sandbox/", sandbox.transport()) as client:
        yield client


def test_the_control_api_needs_no_key_and_its_requests_are_not_counted(control, sandbox):
    control.headers.pop("authorization")
    assert control.get("requests").json() == {"requests": []}
    assert sandbox.count() == 0


def test_the_state_shows_everything_in_the_sandbox(control, sandbox, clock):
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


def test_requests_and_their_counts_are_shown(control, local):
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


def test_a_reset_restores_the_initial_state(control, clock):
    sandbox = Sandbox(clock=clock, limit=1, workflows_at_start={"wf_123": "My Workflow"})
    start = sandbox.workflows
    sandbox.add_workflow("n")
    sandbox.start("wf_123")
    sandbox.plan("wf_123", outcome="failed")
    request(sandbox, "GET", "/v2/executions")
    request(sandbox, "POST", "/_sandbox/reset")

    assert sandbox.workflows == start
    assert sandbox.executions == ()
    assert sandbox.count() == 0
    assert request(sandbox, "GET", "/v2/executions") == 200


def request(sandbox: Sandbox, method: str, target: str, *, local: bool = True) -> int | None:
    headers = {"authorization": "Bearer sandbox-key"}
    steps = sandbox.handle(Request(method, target, headers, local=local))
    with pytest.raises(StopIteration) as stop:
        next(steps)
    status: int | None = stop.value.value.status
    return status


def test_other_machines_cannot_use_the_control_api(sandbox):
    for method, path in (("GET", "state"), ("POST", "reset"), ("GET", "nothing")):
        assert request(sandbox, method, f"/_sandbox/{path}", local=False) == 403
    assert request(sandbox, "GET", "/openapi.json", local=False) == 200


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
        ("plan", {"seconds": 1}, "workflow_id: received None, expected a value of the type str"),
        ("plan", {"workflow_id": "w", "seconds": "1"}, "seconds: received '1'"),
        ("plan", [], "the body must be a JSON object"),
    ],
)
def test_an_invalid_request_is_rejected_with_the_reason(control, path, body, message):
    response = control.post(path, json=body)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_a_form_of_a_web_page_is_rejected(control, sandbox):
    headers = {"content-type": "text/plain"}
    assert control.post("faults", content=b'{"kind": "drop"}', headers=headers).status_code == 400
    assert sandbox.faults.active() == ()


def test_unknown_calls_are_not_found(control):
    assert control.get("nothing").status_code == 404
    assert control.get("plan").status_code == 404


def test_requests_are_recorded_in_order_with_their_status(local, sandbox, clock):
    local.get("/workflows?page=2")
    clock.advance(1)
    local.get("/workflows/none", headers={"authorization": "Bearer wrong"})

    start = sandbox.requests[0].at
    assert [asdict(each) | {"at": (each.at - start).total_seconds()} for each in sandbox.requests] == [
        {"at": 0, "method": "GET", "path": "/workflows", "key_accepted": True, "status": 200},
        {"at": 1, "method": "GET", "path": "/workflows/none", "key_accepted": False, "status": 401},
    ]


def test_a_request_without_a_response_has_no_status(local, sandbox):
    sandbox.faults.add(Fault("lost_response"))
    with pytest.raises(httpx.RemoteProtocolError):
        local.post("/workflows", json={"name": "n"})
    assert [each.status for each in sandbox.requests] == [None]


def test_requests_are_counted_by_method_path_and_status(local, sandbox):
    workflow_id = sandbox.add_workflow("n")
    local.get("/workflows")
    local.get(f"/workflows/{workflow_id}")
    local.post(f"/workflows/{workflow_id}/execute")
    local.post("/workflows/none/execute")

    assert sandbox.count() == 4
    assert sandbox.count("GET") == sandbox.count("POST", "/workflows/*/execute") == 2
    assert sandbox.count(path="/workflows") == sandbox.count(status=404) == 1
    assert sandbox.count("DELETE") == 0


def test_counters_include_requests_whose_records_were_dropped(local, sandbox, monkeypatch):
    monkeypatch.setattr(sandbox_module, "MAX_RECORDS", 3)
    sandbox.reset()
    for _ in range(5):
        local.get("/executions")
    assert len(sandbox.requests) == 3
    assert sandbox.count(status=200) == 5


def test_a_callback_receives_each_request(local, sandbox):
    received: list[Record] = []
    sandbox.on_request = received.append
    local.get("/executions")
    assert received == list(sandbox.requests)


def test_keys_appear_nowhere(local, sandbox, api_key):
    local.get("/workflows")
    local.get("/workflows", headers={"authorization": "Bearer other-secret"})
    local.get("/workflows", headers={"authorization": api_key})
    responses = [local.get(f"https://api.techflow.com/_sandbox/{name}").text for name in ("state", "requests", "stats")]
    shown = json.dumps(responses) + repr(sandbox) + repr(sandbox.requests) + repr(sandbox.counts())
    assert api_key not in shown
    assert "other-secret" not in shown


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8765"}, 200),
        ({"host": "[::1]:8765"}, 200),
        ({"host": "127.0.0.1:8765", "origin": "http://127.0.0.1:8765"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "localhost:8765", "origin": "http://localhost:3000"}, 403),
        ({"host": "rebound.example:8765"}, 403),
        ({"host": "rebound.example:8765", "origin": "http://rebound.example:8765"}, 403),
        ({"host": "127.0.0.1.rebound.example"}, 403),
        ({"host": "192.168.1.5:8765"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": ""}, 403),
    ],
)
def test_no_web_page_controls_the_sandbox(sandbox, headers, status):
    with sandbox.serve() as url, httpx.Client(base_url=url.removesuffix("/v2")) as client:
        workflow_id = sandbox.add_workflow("n")
        assert client.post("/_sandbox/reset", headers=headers).status_code == status
        assert bool(sandbox.workflows) is (status == 403)
        # The API itself is as open as before.
        assert client.get("/openapi.json", headers=headers).status_code == 200
        assert workflow_id


def test_an_id_is_not_used_again_after_a_reset():
    sandbox = Sandbox(seed=7)
    first = sandbox.add_workflow("n")
    sandbox.reset()
    assert sandbox.add_workflow("n") != first


def test_an_execution_has_a_page(control, sandbox, clock):
    workflow_id = sandbox.add_workflow("Nightly <b>report</b>")
    execution = sandbox.start(workflow_id, {"day": "<script>alert(1)</script>"}, Plan(5, "failed", 'disk "full"'))
    running = control.get(f"executions/{execution.id}")
    assert running.headers["content-type"] == "text/html; charset=utf-8"
    assert 'class="running">running<' in running.text
    assert 'http-equiv="refresh"' in running.text
    clock.advance(5)
    failed = control.get(f"executions/{execution.id}").text
    for words in (
        'class="failed">failed<',
        f"Nightly &lt;b&gt;report&lt;/b&gt; ({workflow_id})",
        "2026-01-01 00:00:00 UTC",
        "2026-01-01 00:00:05 UTC, after 5.0 s",
        "disk &quot;full&quot;",
        "&lt;script&gt;",
    ):
        assert words in failed
    assert "<script>" not in failed
    assert 'http-equiv="refresh"' not in failed
    sandbox.delete_workflow(workflow_id)
    assert f"deleted ({workflow_id})" in control.get(f"executions/{execution.id}").text
    assert control.get("executions/exec_none").status_code == 404


def test_the_printed_connection_leads_to_the_page_of_an_execution():
    sandbox = Sandbox(execution_seconds=0.0)
    with sandbox.serve() as url:
        text = greeting(sandbox, url).rpartition("=")[2].strip("'")
        template = json.loads(text)["extra"]["dashboard_url"]
        execution = sandbox.start(sandbox.add_workflow("n"))
        page = httpx.get(template.format(execution_id=execution.id), headers={"sec-fetch-mode": "navigate"})
        hidden = httpx.get(template.format(execution_id=execution.id), headers={"host": "rebound.example"})
    assert (page.status_code, hidden.status_code) == (200, 403)
