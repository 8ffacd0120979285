"""The sandbox sends webhooks for its six events, and can lose, repeat, delay and forge them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from techflow_provider.client.webhooks import Delivery, WebhookSecret
from techflow_provider.sandbox import ManualClock, Sandbox, SettingError, WebhookDelivery, Webhooks
from techflow_provider.sandbox.settings import from_json
from tests.sandbox.conftest import client_of, wait_until

SECRET = "secret-of-the-sandbox-tests"
SIX = [
    *("workflow.created", "workflow.updated", "workflow.deleted"),
    *("execution.started", "execution.completed", "execution.failed"),
]


@dataclass
class Listener:
    """Receives webhooks and keeps them."""

    url: str
    received: list[Delivery] = field(default_factory=list)
    status: int = 200

    def events(self) -> list[str]:
        return [json.loads(each.body)["event"] for each in self.received]


@pytest.fixture
def listener() -> Iterator[Listener]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            token = parse_qs(urlsplit(self.path).query).get("token", [None])[0]
            receiver.received.append(
                Delivery({name.lower(): value for name, value in self.headers.items()}, body, token)
            )
            self.send_response(receiver.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Listener(f"http://127.0.0.1:{server.server_address[1]}/hook")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield receiver
    server.shutdown()
    server.server_close()


def deliveries(sandbox: Sandbox, count: int) -> tuple[WebhookDelivery, ...]:
    """Wait for the results of so many deliveries and return them."""
    wait_until(lambda: len(sandbox.deliveries) >= count)
    return sandbox.deliveries


def six_events(sandbox: Sandbox, clock: ManualClock) -> None:
    workflow_id = sandbox.add_workflow("n")
    with client_of(sandbox, sandbox.base_url) as client:
        client.put(f"/workflows/{workflow_id}", json={"name": "m"})
        sandbox.start(workflow_id)
        sandbox.plan(workflow_id, outcome="failed")
        sandbox.start(workflow_id)
        clock.advance(5)
        client.delete(f"/workflows/{workflow_id}")


@pytest.mark.parametrize("proof", ["signature", "token"])
def test_all_six_events_are_sent_with_a_proof_that_the_client_accepts(sandbox, clock, listener, proof):
    sandbox.webhooks = Webhooks(listener.url, secret=SECRET, proof=proof)
    with sandbox.serve():
        six_events(sandbox, clock)
        results = deliveries(sandbox, 7)
    assert sorted(set(listener.events())) == sorted(SIX)
    assert all(WebhookSecret(SECRET).verify(each, time.time()) for each in listener.received)
    assert {each.status for each in results} == {200}
    assert {each.event for each in results} == set(SIX)


def test_a_forged_webhook_is_not_accepted_and_a_duplicate_has_the_same_id(sandbox, clock, listener):
    sandbox.webhooks = Webhooks(listener.url, secret=SECRET, duplicates=1, forged=1)
    with sandbox.serve():
        sandbox.add_workflow("n")
        results = deliveries(sandbox, 3)
    assert sorted(each.kind for each in results) == ["duplicate", "forged", "genuine"]
    accepted = [each for each in listener.received if WebhookSecret(SECRET).verify(each, time.time())]
    assert len(accepted) == 2
    assert len({each.id for each in accepted}) == 1


def test_lost_webhooks_are_recorded_and_not_sent(sandbox, listener):
    sandbox.webhooks = Webhooks(listener.url, loss=1)
    with sandbox.serve():
        sandbox.add_workflow("n")
        (delivery,) = deliveries(sandbox, 1)
    assert (delivery.kind, delivery.sent_at, listener.received) == ("lost", None, [])


def test_webhooks_are_delayed_and_arrive_in_another_order(sandbox, clock):
    sandbox.webhooks = Webhooks("http://127.0.0.1:9/hook", delay_seconds=5, jitter_seconds=20)
    ids = [sandbox.add_workflow(f"n{number}") for number in range(10)]
    assert sandbox.due_webhooks() == []
    clock.advance(4.9)
    assert sandbox.due_webhooks() == []
    sent = []
    for _ in range(21):
        clock.advance(1)
        sent += [delivery.workflow_id for _, delivery in sandbox.due_webhooks()]
    assert sorted(sent) == sorted(ids)
    assert sent != ids


def test_an_unreachable_receiver_is_recorded(sandbox):
    sandbox.webhooks = Webhooks("http://127.0.0.1:9/hook", events=["workflow.created"])
    with sandbox.serve():
        sandbox.add_workflow("n")
        (delivery,) = deliveries(sandbox, 1)
    assert (delivery.status, delivery.error) == (None, "ConnectError")


def test_another_process_configures_webhooks_and_reads_the_deliveries(sandbox, listener):
    with sandbox.serve() as url, client_of(sandbox, url.replace("/v2", "/_sandbox/")) as control:
        assert control.post("webhooks", json={"url": listener.url, "secret": SECRET}).json() == {"events": SIX}
        workflow_id = sandbox.add_workflow("n")
        deliveries(sandbox, 1)
        (delivery,) = control.get("deliveries").json()["deliveries"]
        assert (delivery["event"], delivery["workflow_id"], delivery["status"]) == (
            "workflow.created",
            workflow_id,
            200,
        )
        assert control.delete("webhooks").json() == {"events": []}
        assert control.post("webhooks", json={"url": "nowhere"}).status_code == 400
        assert SECRET not in json.dumps(control.get("state").json())


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "ftp://x"},
        {"url": 7},
        {"url": "http://x", "secret": ""},
        {"url": "http://x", "secret": "whsec_!"},
        {"url": "http://x", "proof": "none"},
        {"url": "http://x", "events": ["workflow.started"]},
        {"url": "http://x", "loss": 2},
        {"url": "http://x", "delay_seconds": -1},
        {"url": "http://x", "unknown": 1},
        {},
    ],
)
def test_invalid_webhooks_are_rejected(fields):
    with pytest.raises(SettingError):
        from_json(Webhooks, fields)


def test_a_secret_is_not_shown():
    assert SECRET not in repr(Webhooks("http://x", secret=SECRET))
