"""Faults: what each does in-process and over a socket, which requests it applies to, and whether TechFlow acts."""

from __future__ import annotations

import json
import time

import httpx
import pytest

from techflow_provider.sandbox import Fault, ManualClock, Sandbox, SettingError
from techflow_provider.sandbox.settings import from_json
from tests.sandbox.conftest import TIMEOUT_SECONDS, client_of, wait_until

BROKEN = [
    (Fault("hang"), httpx.ReadTimeout, False),
    (Fault("hang", when="after"), httpx.ReadTimeout, True),
    (Fault("hang", seconds=3600), httpx.ReadTimeout, False),
    (Fault("reset"), httpx.ReadError, False),
    (Fault("reset", when="after"), httpx.ReadError, True),
    (Fault("drop"), httpx.RemoteProtocolError, False),
    (Fault("drop", when="after"), httpx.RemoteProtocolError, True),
    (Fault("lost_response"), httpx.RemoteProtocolError, True),
    (Fault("garbage"), httpx.RemoteProtocolError, False),
    (Fault("garbage", when="after"), httpx.RemoteProtocolError, True),
    (Fault("wrong_length"), httpx.RemoteProtocolError, True),
]


def describe(value: object) -> str | None:
    return f"{value.kind}-{value.when}-{value.seconds}" if isinstance(value, Fault) else None


def create(api: httpx.Client) -> httpx.Response:
    return api.post("/workflows", json={"name": "n"})


@pytest.mark.parametrize(("fault", "error", "acts"), BROKEN, ids=describe)
def test_a_broken_exchange_raises_the_same_error_everywhere(api, sandbox, fault, error, acts):
    sandbox.faults.add(fault)
    # A hang outlasts every read timeout; the other faults must not run into one.
    read = 0.1 if fault.kind == "hang" else TIMEOUT_SECONDS

    with pytest.raises(httpx.TransportError) as caught:
        api.post("/workflows", json={"name": "n"}, timeout=httpx.Timeout(TIMEOUT_SECONDS, read=read))

    assert type(caught.value) is error
    assert caught.value.request.method == "POST"
    # The client may give up on a hang before the server has read the request.
    wait_until(lambda: sandbox.count("POST") == 1 and len(sandbox.workflows) == acts)
    sandbox.faults.clear()
    assert create(api).status_code == 200


@pytest.mark.parametrize(("status", "when"), [(500, "before"), (502, "after"), (503, "after"), (429, "before")])
def test_a_status_is_sent_before_or_after_acting(local, sandbox, status, when):
    sandbox.faults.add(Fault("status", status=status, when=when))
    response = create(local)

    assert (response.status_code, "retry-after" in response.headers) == (status, False)
    assert response.json()["error"]["status"] == status
    assert len(sandbox.workflows) == (when == "after")


def test_a_status_may_have_a_body_and_a_retry_after(local, sandbox):
    sandbox.faults.add(Fault("status", status=200, body="[1]", retry_after="tomorrow"))
    response = local.get("/workflows")
    assert (response.status_code, response.json(), response.headers["retry-after"]) == (200, [1], "tomorrow")


def test_a_short_hang_delays_the_response(api, sandbox):
    for when in ("before", "after"):
        sandbox.faults.clear()
        sandbox.faults.add(Fault("hang", seconds=0.1, when=when))
        assert create(api).status_code == 200
    assert len(sandbox.workflows) == 2


def test_a_truncated_body_is_invalid_json(api, sandbox):
    sandbox.faults.add(Fault("truncated"))
    response = create(api)

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    with pytest.raises(json.JSONDecodeError):
        response.json()
    assert len(sandbox.workflows) == 1


def test_a_page_may_replace_the_json(local, sandbox):
    sandbox.faults.add(Fault("html"))
    response = create(local)

    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert response.text.startswith("<!DOCTYPE html>")
    assert sandbox.workflows == ()


def test_a_slow_body_arrives_complete(api, sandbox):
    sandbox.faults.add(Fault("slow", seconds=0.1))
    assert api.get("/workflows").content == b'{"workflows": []}'


def test_a_slow_body_takes_its_seconds_over_a_socket(sandbox):
    sandbox.faults.add(Fault("slow", seconds=0.2))
    with sandbox.serve() as url, client_of(sandbox, url) as client:
        began = time.monotonic()
        client.get("/workflows")
    assert time.monotonic() - began > 0.19


def test_a_slow_body_arrives_byte_by_byte_in_process(local, sandbox):
    sandbox.faults.add(Fault("slow", seconds=1))
    with local.stream("GET", "/workflows") as response:
        assert [len(chunk) for chunk in response.iter_raw()] == [1] * 17


def test_a_huge_body_is_valid_json(api, sandbox):
    sandbox.faults.add(Fault("huge", size=1_000_000))
    response = create(api)
    assert len(response.content) > 1_000_000
    assert response.json()["name"] == "n"


def test_a_slow_body_advances_the_manual_clock_in_process(local, sandbox, clock):
    sandbox.faults.add(Fault("slow", seconds=17 * 4))
    assert local.get("/workflows").status_code == 200
    assert clock.monotonic() == pytest.approx(17 * 4)


def test_a_slow_body_may_exceed_the_read_timeout_in_process(local, sandbox):
    sandbox.faults.add(Fault("slow", seconds=17 * 6))
    with pytest.raises(httpx.ReadTimeout):
        local.get("/workflows", timeout=5)


def test_a_hang_advances_the_manual_clock_by_the_read_timeout_in_process(local, sandbox, clock):
    sandbox.faults.add(Fault("hang"))
    with pytest.raises(httpx.ReadTimeout):
        local.get("/workflows", timeout=7)
    assert clock.monotonic() == 7
    with pytest.raises(httpx.ReadTimeout):
        local.get("/workflows", timeout=None)


async def test_faults_are_the_same_for_an_async_client(sandbox, api_key):
    headers = {"authorization": f"Bearer {api_key}"}
    async with httpx.AsyncClient(base_url=sandbox.base_url, headers=headers, transport=sandbox.transport()) as client:
        for fault, error, _ in BROKEN:
            sandbox.faults.clear()
            sandbox.faults.add(fault)
            with pytest.raises(error):
                await client.get("/workflows")
        sandbox.faults.clear()
        assert (await client.get("/workflows")).json() == {"workflows": []}


def test_a_fault_applies_as_many_times_as_it_says(local, sandbox):
    sandbox.faults.add(Fault(times=2))
    assert [local.get("/workflows").status_code for _ in range(3)] == [500, 500, 200]
    assert sandbox.faults.active() == ()


def test_the_first_matching_fault_applies(local, sandbox):
    sandbox.faults.add(Fault(status=500, method="post"))
    sandbox.faults.add(Fault(status=502, times=1))
    sandbox.faults.add(Fault(status=503))
    assert [local.get("/workflows").status_code for _ in range(2)] == [502, 503]
    assert create(local).status_code == 500


@pytest.mark.parametrize(
    ("glob", "matches"),
    [
        ("/executions", False),
        ("/workflows", False),
        ("/workflows/*", False),
        ("/workflows/*/execute", True),
        ("/*/*/*", True),
        ("/workflows/**", True),
        ("**", True),
        ("/workflows/.*", False),
    ],
)
def test_a_path_is_a_glob(local, sandbox, glob, matches):
    workflow_id = sandbox.add_workflow("n")
    sandbox.faults.add(Fault(path=glob))
    response = local.post(f"/workflows/{workflow_id}/execute")
    assert response.status_code == (500 if matches else 200)


def test_the_old_name_of_a_fault_is_accepted():
    assert Fault("lost_answer") == from_json(Fault, {"kind": "lost_answer"}) == Fault("lost_response")


def test_a_seed_makes_probabilities_reproducible():
    def statuses(seed: int) -> list[int]:
        sandbox = Sandbox(clock=ManualClock(), seed=seed, limit=1000)
        sandbox.faults.add(Fault(probability=0.3))
        headers = {"authorization": "Bearer sandbox-key"}
        with httpx.Client(base_url=sandbox.base_url, headers=headers, transport=sandbox.transport()) as client:
            return [client.get("/workflows").status_code for _ in range(100)]

    assert statuses(1) == statuses(1) != statuses(2)
    assert 15 <= statuses(1).count(500) <= 45


def test_faults_apply_only_after_authentication_and_the_rate_limit(clock, api_key):
    sandbox = Sandbox(clock=clock, limit=1)
    sandbox.faults.add(Fault("drop", times=1))
    headers = {"authorization": "Bearer sandbox-key"}
    with httpx.Client(base_url=sandbox.base_url, transport=sandbox.transport()) as client:
        assert client.get("/workflows").status_code == 401
        with pytest.raises(httpx.RemoteProtocolError):
            client.get("/workflows", headers=headers)
        assert client.get("/workflows", headers=headers).status_code == 429


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"kind": "fire"}, "kind"),
        ({"status": 99}, "status"),
        ({"status": "500"}, "status"),
        ({"when": "later"}, "when"),
        ({"kind": "truncated", "when": "before"}, "when"),
        ({"kind": "slow"}, "seconds"),
        ({"kind": "slow", "seconds": 0}, "seconds"),
        ({"kind": "hang", "seconds": -1}, "seconds"),
        ({"times": 0}, "times"),
        ({"probability": 1.1}, "probability"),
        ({"probability": "often"}, "probability"),
        ({"kind": "huge", "size": 0}, "size"),
        ({"path": 1}, "path"),
        ({"retry_after": "1\r\nx: y"}, "retry_after"),
        ({"color": "red"}, "fault"),
    ],
)
def test_an_invalid_fault_is_reported_with_what_was_received_and_what_was_expected(fields, name):
    with pytest.raises(SettingError) as caught:
        from_json(Fault, fields)
    assert str(caught.value).startswith(f"{name}: received ")
