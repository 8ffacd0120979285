"""The receiver's responses to forged, broken and endless deliveries over a socket; none of them causes a poll."""

from __future__ import annotations

import json
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from techflow_provider.client.webhooks import WebhookSecret
from techflow_provider.compat import has_api_server
from techflow_provider.hooks.connection_cache import UNKNOWN_LOOKUPS_PER_SECOND
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.open import open_store
from techflow_provider.state.records import Records
from techflow_provider.webhooks.receiver import Receiver, Subscriber
from tests.integration.webhooks.conftest import Serve

pytestmark = [
    pytest.mark.airflow,
    # Airflow 2.11 and its Flask warn about themselves.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:::techflow_provider"),
]
SECRET = WebhookSecret("secret-of-the-connection-one")
OTHER = WebhookSecret("secret-of-the-connection-two")
BODY = json.dumps({"event": "execution.completed", "execution_id": "exec_1"}).encode()
# Bounds a hang only.
HANG_SECONDS = 600.0
MEGABYTE = b"x" * 2**20


@dataclass
class Subscribers:
    """Connections with a wake-up counter each: one and two have a secret, three has none; all others are unknown."""

    looked_up: list[str] = field(default_factory=list)
    records: dict[str, Records] = field(
        default_factory=lambda: {name: Records(MemoryStore(), name) for name in ("one", "two", "three")}
    )

    def get(self, conn_id: str) -> Subscriber | None:
        self.looked_up.append(conn_id)
        secrets = {"one": SECRET, "two": OTHER, "three": None}
        return Subscriber(secrets[conn_id], self.records[conn_id]) if conn_id in secrets else None

    def wakeups(self) -> int:
        return sum(records.wakeups() for records in self.records.values())


@dataclass
class Served:
    """A served receiver and its subscribers."""

    host: str
    port: int
    subscribers: Subscribers

    def post(self, target: str = "one", body: Any = BODY, **headers: str) -> int:
        url = f"http://{self.host}:{self.port}/techflow/webhooks/{target}"
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(url, content=body, headers=names, timeout=HANG_SECONDS).status_code

    def raw(self, head: str, pieces: Iterator[bytes]) -> int | None:
        """Send by hand as long as the receiver listens, and return the status if one came."""
        with socket.create_connection((self.host, self.port), timeout=HANG_SECONDS) as connection:
            connection.sendall(f"POST /techflow/webhooks/one?token={SECRET.text} HTTP/1.1\r\n".encode())
            connection.sendall(f"host: x\r\n{head}\r\n\r\n".encode())
            with suppress(ConnectionError):
                for piece in pieces:
                    connection.sendall(piece)
            with suppress(ConnectionError):
                response = connection.recv(4096)
                return int(response.split()[1]) if response else None
        return None


@pytest.fixture
def served(serve_receiver: Serve) -> Served:
    """Serve a receiver."""
    subscribers = Subscribers()
    host, port = serve_receiver(Receiver(subscribers.get))
    return Served(host, port, subscribers)


def signature(
    body: bytes = BODY, secret: WebhookSecret = SECRET, age: int = 0, delivery_id: str = "m1"
) -> dict[str, str]:
    at = int(time.time()) - age
    signed = secret.sign(delivery_id, at, body)
    return {"webhook_id": delivery_id, "webhook_timestamp": str(at), "webhook_signature": signed}


def test_a_delivery_with_the_token_or_a_signature_wakes_a_poll(served: Served) -> None:
    assert served.post(f"one?token={SECRET.text}") == 200
    assert served.post("one", **signature()) == 200
    assert served.subscribers.wakeups() == 2


def test_a_body_may_be_anything_when_the_sender_is_genuine(served: Served) -> None:
    assert served.post(f"one?token={SECRET.text}", body=b"\xff{[", content_type="text/plain") == 200
    assert served.post(f"one?token={SECRET.text}", body=b"", content_type="application/json") == 200
    assert served.subscribers.wakeups() == 2


def test_a_body_may_have_64_kibibytes_and_not_one_byte_more(served: Served) -> None:
    assert served.post(f"one?token={SECRET.text}", body=b"x" * 65536) == 200
    assert served.post(f"one?token={SECRET.text}", body=b"x" * 65537) == 413
    assert served.subscribers.wakeups() == 1


FORGED: dict[str, tuple[str, dict[str, str]]] = {
    "nothing": ("one", {}),
    "a wrong token": ("one?token=wrong-wrong-wrong-wrong", {}),
    "an empty token": ("one?token=", {}),
    "another connection's secret": (f"one?token={OTHER.text}", {}),
    "a signature by another connection's secret": ("one", signature(secret=OTHER)),
    "a signature of another body": ("one", signature(b"{}")),
    "a signature six minutes old": ("one", signature(age=360)),
    "an unknown connection": (f"four?token={SECRET.text}", {}),
    "an id that no connection can have": (f"{'x' * 251}?token={SECRET.text}", {}),
    "an id with odd characters": (f"o%20ne%00?token={SECRET.text}", {}),
}


@pytest.mark.parametrize(("target", "headers"), FORGED.values(), ids=FORGED)
def test_a_forged_delivery_gets_the_same_401_and_wakes_none(
    served: Served, target: str, headers: dict[str, str]
) -> None:
    assert served.post(target, **headers) == 401
    assert served.subscribers.wakeups() == 0


def test_a_connection_without_a_secret_receives_nothing(served: Served) -> None:
    assert served.post(f"three?token={SECRET.text}") == 401
    assert served.subscribers.wakeups() == 0


def test_a_replay_is_accepted_and_wakes_none_again_where_it_has_an_id(served: Served) -> None:
    headers = signature()
    assert [served.post("one", **headers) for _ in range(5)] == [200] * 5
    assert served.subscribers.wakeups() == 1
    assert [served.post(f"one?token={SECRET.text}") for _ in range(2)] == [200] * 2
    assert served.subscribers.wakeups() == 3


def test_one_connections_delivery_is_not_a_repetition_of_anothers(served: Served) -> None:
    assert served.post("one", **signature()) == served.post("two", **signature(secret=OTHER)) == 200
    assert served.subscribers.wakeups() == 2


def test_a_delivery_that_cannot_be_passed_on_is_to_be_sent_again(served: Served, tmp_path: Path) -> None:
    # A folder can't be a file of state.
    served.subscribers.records["one"] = Records(open_store(str(tmp_path)), "one")
    assert served.post("one", **signature()) == 503


def test_more_deliveries_than_are_worked_on_are_to_be_sent_again(
    serve_receiver: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_api_server():
        pytest.skip("the web server of Airflow 2 has a bound of its own: its workers")
    monkeypatch.setattr("techflow_provider.webhooks.fastapi.MAX_CONCURRENT_DELIVERIES", 0)
    host, port = serve_receiver(Receiver(Subscribers().get))
    assert Served(host, port, Subscribers()).post("one", **signature()) == 503


def test_only_a_post_is_accepted(served: Served) -> None:
    url = f"http://{served.host}:{served.port}/techflow/webhooks/one?token={SECRET.text}"
    assert httpx.get(url).status_code == httpx.put(url).status_code == 405
    assert httpx.get(f"http://{served.host}:{served.port}/techflow/openapi.json").status_code == 404


def memory() -> int:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def test_a_body_of_100_megabytes_is_refused_unread(served: Served) -> None:
    before = memory()
    status = served.raw(f"content-length: {100 * 2**20}", iter([MEGABYTE] * 100))
    assert status in (413, None)
    assert served.post(f"one?token={SECRET.text}", body=MEGABYTE) == 413
    assert memory() - before < 30
    assert served.subscribers.wakeups() == 0


def test_a_body_without_end_is_refused(served: Served) -> None:
    before = memory()
    status = served.raw("transfer-encoding: chunked", iter([b"100000\r\n" + MEGABYTE + b"\r\n"] * 200))
    assert status in (413, None)
    assert memory() - before < 30
    assert served.subscribers.wakeups() == 0


def test_the_rest_of_a_slow_body_is_not_waited_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    framework = "fastapi" if has_api_server() else "flask"
    monkeypatch.setattr(f"techflow_provider.webhooks.{framework}.BODY_TIMEOUT_SECONDS", 0.2)
    # The response comes while the rest is missing.
    assert served.raw("content-length: 1000", iter([b"x"])) in (408, 400)
    assert served.subscribers.wakeups() == 0


def test_names_that_are_tried_are_looked_up_at_a_bounded_rate(served: Served) -> None:
    began = time.monotonic()
    with httpx.Client(base_url=f"http://{served.host}:{served.port}/techflow/webhooks/") as client:
        statuses = {
            client.post(f"guess-{number % 150}?token={SECRET.text}", content=BODY).status_code for number in range(300)
        }
    seconds = time.monotonic() - began
    assert statuses <= {401, 503}
    assert len(served.subscribers.looked_up) <= UNKNOWN_LOOKUPS_PER_SECOND * (seconds + 2)
    assert served.post(f"one?token={SECRET.text}") in (200, 503)


def test_a_flood_is_looked_up_once_and_one_genuine_delivery_in_it_wakes_a_poll(served: Served) -> None:
    served.post("one?token=wrong-wrong-wrong-wrong")
    with httpx.Client(base_url=f"http://{served.host}:{served.port}/techflow/webhooks/") as client:
        statuses = {client.post("one?token=wrong-wrong-wrong-wrong", content=BODY).status_code for _ in range(300)}
    assert statuses == {401}
    assert served.subscribers.looked_up == ["one"]
    assert served.post("one", **signature()) == 200
    assert served.subscribers.wakeups() == 1


def test_slow_bodies_with_well_formed_proofs_keep_no_genuine_delivery_waiting(served: Served) -> None:
    if not has_api_server():
        pytest.skip("the web server of Airflow 2 has a bound of its own: its workers")
    forged = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in signature(b"{}").items())
    head = f"POST /techflow/webhooks/one HTTP/1.1\r\nhost: x\r\n{forged}content-length: 1000\r\n\r\nx"
    slow = [socket.create_connection((served.host, served.port), timeout=HANG_SECONDS) for _ in range(70)]
    try:
        for connection in slow:
            connection.sendall(head.encode())
        assert {served.post("one", **signature(delivery_id=f"m{number}")) for number in range(20)} == {200}
        # The first ones have made room for the last ones, and are to be sent again.
        assert b" 503 " in slow[0].recv(4096)
    finally:
        for connection in slow:
            connection.close()


def test_without_a_proof_the_body_is_not_waited_for(served: Served) -> None:
    with socket.create_connection((served.host, served.port), timeout=HANG_SECONDS) as connection:
        connection.sendall(b"POST /techflow/webhooks/one HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nx")
        assert b" 401 " in connection.recv(4096)
    assert served.subscribers.looked_up == []
