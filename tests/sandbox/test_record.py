"""What a sandbox tells of the requests that arrived, and what it does not."""

from __future__ import annotations

import json
from dataclasses import asdict

import httpx
import pytest

from techflow_provider.sandbox import Fault, Record
from techflow_provider.sandbox import sandbox as sandbox_module


def test_requests_are_recorded_in_order_with_what_they_got(api, sandbox, clock):
    api.get("/workflows?page=2")
    clock.advance(1)
    api.get("/workflows/none", headers={"authorization": "Bearer wrong"})

    start = sandbox.requests[0].at
    assert [asdict(each) | {"at": (each.at - start).total_seconds()} for each in sandbox.requests] == [
        {"at": 0, "method": "GET", "path": "/workflows", "key_accepted": True, "status": 200},
        {"at": 1, "method": "GET", "path": "/workflows/none", "key_accepted": False, "status": 401},
    ]


def test_a_request_without_an_answer_has_no_status(api, sandbox):
    sandbox.faults.add(Fault("lost_answer"))
    with pytest.raises(httpx.RemoteProtocolError):
        api.post("/workflows", json={"name": "n"})
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


def test_counters_know_more_than_the_records_that_are_kept(local, sandbox, monkeypatch):
    monkeypatch.setattr(sandbox_module, "MAX_RECORDS", 3)
    for _ in range(5):
        local.get("/executions")
    assert len(sandbox.requests) == 3
    assert sandbox.count(status=200) == 5


def test_a_listener_is_told_of_each_request(local, sandbox):
    heard: list[Record] = []
    sandbox.on_request = heard.append
    local.get("/executions")
    assert heard == list(sandbox.requests)


def test_keys_appear_nowhere(local, sandbox, api_key):
    local.get("/workflows")
    local.get("/workflows", headers={"authorization": "Bearer other-secret"})
    local.get("/workflows", headers={"authorization": api_key})
    told = [local.get(f"https://api.techflow.com/_sandbox/{name}").text for name in ("state", "requests", "stats")]
    shown = json.dumps(told) + repr(sandbox) + repr(sandbox.requests) + repr(sandbox.counts())
    assert api_key not in shown
    assert "other-secret" not in shown
