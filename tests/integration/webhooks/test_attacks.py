"""What a receiver answers to forged, broken and endless deliveries over a socket, and that none of them rings."""

from __future__ import annotations

import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from techflow_provider.client.webhooks import WebhookSecret
from techflow_provider.compat import has_api_server
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.open import open_store
from techflow_provider.state.records import Records
from techflow_provider.webhooks import receiver as module
from techflow_provider.webhooks.receiver import Receiver, Subscriber

pytestmark = [
    pytest.mark.airflow,
    # Airflow 2.11 and its Flask warn about themselves.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:::techflow_provider"),
]
Serve = Callable[[Receiver], AbstractContextManager[tuple[str, int]]]
SECRET = WebhookSecret("secret-of-the-connection-one")
OTHER = WebhookSecret("secret-of-the-connection-two")
BODY = json.dumps({"event": "execution.completed", "execution_id": "exec_1"}).encode()
BODY_SECONDS = 0.5
MEGABYTE = b"x" * 2**20


@dataclass
class Bells:
    """Connections with a bell each: one and two have a secret, three has none; all others are unknown."""

    looked_up: list[str] = field(default_factory=list)
    records: dict[str, Records] = field(
        default_factory=lambda: {name: Records(MemoryStore(), name) for name in ("one", "two", "three")}
    )

    def find(self, conn_id: str) -> Subscriber | None:
        self.looked_up.append(conn_id)
        secrets = {"one": SECRET, "two": OTHER, "three": None}
        return Subscriber(secrets[conn_id], self.records[conn_id]) if conn_id in secrets else None

    def rung(self) -> int:
        return sum(records.wakeups() for records in self.records.values())


@dataclass
class Served:
    """A served receiver and its bells."""

    host: str
    port: int
    bells: Bells

    def post(self, target: str = "one", body: Any = BODY, **headers: str) -> int:
        url = f"http://{self.host}:{self.port}/techflow/webhooks/{target}"
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(url, content=body, headers=names, timeout=30).status_code

    def raw(self, head: str, pieces: Iterator[bytes]) -> tuple[int | None, float]:
        """Send by hand as long as the receiver listens, and return the status and the seconds until it came."""
        began = time.monotonic()
        with socket.create_connection((self.host, self.port), timeout=20) as connection:
            connection.sendall(f"POST /techflow/webhooks/one?token={SECRET.text} HTTP/1.1\r\n".encode())
            connection.sendall(f"host: x\r\n{head}\r\n\r\n".encode())
            try:
                for piece in pieces:
                    connection.sendall(piece)
            except OSError:
                pass
            try:
                answer = connection.recv(4096)
            except OSError:
                answer = b""
        return int(answer.split()[1]) if answer else None, time.monotonic() - began


@pytest.fixture
def served(serve_receiver: Serve, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Serve a receiver that has little patience with slow bodies."""
    framework = "fastapi" if has_api_server() else "flask"
    monkeypatch.setattr(f"techflow_provider.webhooks.{framework}.BODY_TIMEOUT_SECONDS", BODY_SECONDS)
    bells = Bells()
    with serve_receiver(Receiver(bells.find)) as (host, port):
        yield Served(host, port, bells)


def signature(
    body: bytes = BODY, secret: WebhookSecret = SECRET, age: int = 0, delivery_id: str = "m1"
) -> dict[str, str]:
    at = int(time.time()) - age
    signed = secret.sign(delivery_id, at, body)
    return {"webhook_id": delivery_id, "webhook_timestamp": str(at), "webhook_signature": signed}


def test_a_delivery_with_the_token_or_a_signature_rings(served: Served) -> None:
    assert served.post(f"one?token={SECRET.text}") == 200
    assert served.post("one", **signature()) == 200
    assert served.bells.rung() == 2


def test_a_body_may_be_anything_when_the_sender_is_genuine(served: Served) -> None:
    assert served.post(f"one?token={SECRET.text}", body=b"\xff{[", content_type="text/plain") == 200
    assert served.post(f"one?token={SECRET.text}", body=b"", content_type="application/json") == 200
    assert served.bells.rung() == 2


def test_a_body_may_have_64_kibibytes_and_not_one_byte_more(served: Served) -> None:
    assert served.post(f"one?token={SECRET.text}", body=b"x" * 65536) == 200
    assert served.post(f"one?token={SECRET.text}", body=b"x" * 65537) == 413
    assert served.bells.rung() == 1


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
def test_a_forged_delivery_gets_the_same_401_and_does_not_ring(
    served: Served, target: str, headers: dict[str, str]
) -> None:
    assert served.post(target, **headers) == 401
    assert served.bells.rung() == 0


def test_a_connection_without_a_secret_receives_nothing(served: Served) -> None:
    assert served.post(f"three?token={SECRET.text}") == 404
    assert served.bells.rung() == 0


def test_a_replay_is_accepted_and_does_not_ring_again(served: Served) -> None:
    headers = signature()
    assert [served.post("one", **headers) for _ in range(5)] == [200] * 5
    # By token, an end of an execution that was told already.
    assert [served.post(f"one?token={SECRET.text}") for _ in range(5)] == [200] * 5
    assert served.bells.rung() == 2


def test_one_connections_delivery_is_not_a_repetition_of_anothers(served: Served) -> None:
    assert served.post("one", **signature()) == served.post("two", **signature(secret=OTHER)) == 200
    assert served.bells.rung() == 2


def test_a_delivery_that_cannot_be_passed_on_is_to_be_sent_again(served: Served, tmp_path: Path) -> None:
    # A folder is no file of state.
    served.bells.records["one"] = Records(open_store(str(tmp_path)), "one")
    assert served.post("one", **signature()) == 503


def test_more_deliveries_than_are_worked_on_are_to_be_sent_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_api_server():
        pytest.skip("the web server of Airflow 2 has a bound of its own: its workers")
    monkeypatch.setattr("techflow_provider.webhooks.fastapi.MAX_CONCURRENT_DELIVERIES", 0)
    assert served.post("one", **signature()) == 503


def test_only_a_post_is_answered(served: Served) -> None:
    url = f"http://{served.host}:{served.port}/techflow/webhooks/one?token={SECRET.text}"
    assert httpx.get(url).status_code == httpx.put(url).status_code == 405
    assert httpx.get(f"http://{served.host}:{served.port}/techflow/openapi.json").status_code == 404


def memory() -> int:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def test_a_body_of_100_megabytes_is_refused_unread(served: Served) -> None:
    before = memory()
    status, seconds = served.raw(f"content-length: {100 * 2**20}", iter([MEGABYTE] * 100))
    assert status in (413, None)
    assert seconds < 10
    assert served.post(f"one?token={SECRET.text}", body=MEGABYTE) == 413
    assert memory() - before < 30
    assert served.bells.rung() == 0


def test_a_body_without_end_is_refused(served: Served) -> None:
    before = memory()
    status, seconds = served.raw("transfer-encoding: chunked", iter([b"100000\r\n" + MEGABYTE + b"\r\n"] * 200))
    assert status in (413, None)
    assert seconds < 10
    assert memory() - before < 30
    assert served.bells.rung() == 0


def test_a_body_that_drips_is_given_up(served: Served) -> None:
    def drip() -> Iterator[bytes]:
        yield b"x"
        time.sleep(BODY_SECONDS * 1.5)

    status, seconds = served.raw("content-length: 1000", drip())
    assert status in (408, 400)
    assert seconds < BODY_SECONDS + 3
    assert served.bells.rung() == 0


def test_names_that_are_tried_are_looked_up_at_a_bounded_rate(served: Served) -> None:
    began = time.monotonic()
    with httpx.Client(base_url=f"http://{served.host}:{served.port}/techflow/webhooks/") as client:
        statuses = {client.post(f"guess-{number % 150}", content=BODY).status_code for number in range(300)}
    seconds = time.monotonic() - began
    assert statuses == {401}
    assert len(served.bells.looked_up) <= module.UNKNOWN_LOOKUPS_PER_SECOND * (seconds + 2)
    assert served.post(f"one?token={SECRET.text}") in (200, 401)


def test_a_flood_is_looked_up_once_and_one_genuine_delivery_in_it_rings(served: Served) -> None:
    served.post("one")
    with httpx.Client(base_url=f"http://{served.host}:{served.port}/techflow/webhooks/") as client:
        statuses = {client.post("one?token=wrong-wrong-wrong-wrong", content=BODY).status_code for _ in range(300)}
    assert statuses == {401}
    assert served.bells.looked_up == ["one"]
    assert served.post("one", **signature()) == 200
    assert served.bells.rung() == 1
