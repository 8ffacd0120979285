"""What requests without a proof, broken and endless ones get from the state's API: none of them reaches a store."""

from __future__ import annotations

import json
import logging
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import pytest

from techflow_provider.hooks.connection_cache import UNKNOWN_LOOKUPS_PER_SECOND
from techflow_provider.state.api import MAX_BODY_BYTES
from techflow_provider.state.http import HttpStore
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.signing import SIGNATURE_HEADER, Signer, derive_key
from techflow_provider.state.store import Store, StoreError, Write
from techflow_provider.state_server.access import Access, Gate

uvicorn = pytest.importorskip("uvicorn", reason="Airflow 2 has no API server")

from fastapi import FastAPI  # noqa: E402  # the skip comes first

from techflow_provider.state_server import app as module  # noqa: E402
from techflow_provider.state_server.app import StateApp  # noqa: E402

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore")]
KEYS = {"one": "api-key-of-connection-one", "two": "api-key-of-connection-two"}
SIGNERS = {name: Signer(name, derive_key(key, f"account-{name}")) for name, key in KEYS.items()}
GET = json.dumps({"operations": [{"namespace": "account-one", "name": "a"}]}).encode()
# Bounds a hang only.
HANG_SECONDS = 600.0
MEGABYTE = b"x" * 2**20
NONCE = "0123456789abcdef" * 2


@dataclass
class Served:
    """The state's API over a socket, with two connections, and what was looked up and opened for it."""

    url: str = ""
    port: int = 0
    looked_up: list[str] = field(default_factory=list)
    opened: list[Store] = field(default_factory=list)
    failure: StoreError | None = None
    keys: dict[str, Access] = field(
        default_factory=lambda: {
            name: Access(signer, frozenset({f"account-{name}"})) for name, signer in SIGNERS.items()
        }
    )

    def find(self, name: str) -> Access | None:
        self.looked_up.append(name)
        return self.keys.get(name)

    def open(self) -> Store:
        if self.failure is not None:
            raise self.failure
        self.opened.append(MemoryStore())
        return self.opened[-1]

    def post(self, body: bytes = GET, headers: Mapping[str, str] | None = None, method: str = "POST") -> httpx.Response:
        return httpx.request(method, self.url, content=body, headers=headers, timeout=HANG_SECONDS)

    def raw(self, head: str, pieces: Iterator[bytes], signer: Signer | None = None, body: bytes = GET) -> int | None:
        """Send by hand as long as the API listens, and return the status if one came."""
        headers = {} if signer is None else signer.headers(body, time.time(), secrets.token_hex(16))
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        with socket.create_connection(("127.0.0.1", self.port), timeout=HANG_SECONDS) as connection:
            connection.sendall(f"POST /techflow/state/ HTTP/1.1\r\nhost: x\r\n{lines}{head}\r\n\r\n".encode())
            with suppress(OSError):
                for piece in pieces:
                    connection.sendall(piece)
            with suppress(OSError):
                response = connection.recv(4096)
                return int(response.split()[1]) if response else None
        return None


def signed(
    body: bytes = GET, name: str = "one", key: str | None = None, age: float = 0.0, nonce: str = NONCE
) -> dict[str, str]:
    signer = SIGNERS[name] if key is None else Signer(name, derive_key(key, f"account-{name}"))
    return signer.headers(body, time.time() - age, nonce)


@pytest.fixture
def served() -> Iterator[Served]:
    """Serve the API as an application that is mounted in another, as Airflow does."""
    found = Served()
    outer = FastAPI()
    outer.mount("/techflow/state", StateApp(found.open, Gate(found.find, time.time)))
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    found.port = listener.getsockname()[1]
    found.url = f"http://127.0.0.1:{found.port}/techflow/state/"
    server = uvicorn.Server(uvicorn.Config(outer, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield found
    server.should_exit = server.force_exit = True
    thread.join()
    listener.close()


def test_a_signed_request_gets_a_signed_response(served: Served) -> None:
    response = served.post(headers=signed())
    assert response.status_code == 200
    assert response.headers[SIGNATURE_HEADER] == SIGNERS["one"].response(NONCE, response.content)
    assert response.json()["results"][0]["row"] is None


def test_everything_without_a_proof_gets_the_same_response_and_opens_nothing(served: Served) -> None:
    text = signed()[SIGNATURE_HEADER]
    headers: dict[str, dict[str, str]] = {
        "none": {},
        "garbage": {**signed(), SIGNATURE_HEADER: "v1 garbage"},
        "forged": {**signed(), SIGNATURE_HEADER: text[:-64] + "0" * 64},
        "another key": signed(key="wrong-wrong-wrong"),
        "another connection's key": signed(name="two", key=KEYS["one"]),
        "another connection's name": {**signed(), "x-techflow-connection": "two"},
        "unknown connection": {**signed(), "x-techflow-connection": "nobody"},
        "no connection": {SIGNATURE_HEADER: text},
        "too old": signed(age=600),
        "from the future": signed(age=-6000),
        "another body": signed(body=b"{}"),
    }
    responses = [served.post(headers=each) for each in headers.values()]
    responses += [served.post(method="GET"), served.post(method="PUT", headers=signed())]
    kinds = {(each.status_code, each.content, *sorted(set(each.headers) - {"date", "server"})) for each in responses}
    # That of the other body was signed by somebody who knows the key, and says so by its signature.
    assert {kind[:2] for kind in kinds} == {(401, b'{"error":"unauthorized"}')}
    assert served.opened == []


def test_a_replay_is_refused_and_a_new_nonce_is_not(served: Served) -> None:
    headers = signed()
    assert [served.post(headers=headers).status_code for _ in range(3)] == [200, 401, 401]
    assert served.post(headers=signed(nonce="f" * 32)).status_code == 200


@pytest.mark.parametrize(
    "namespace", ["account-two", "account-two/attempts", "", "account-one2", "/account-one", "nonces"]
)
def test_another_accounts_names_are_out_of_reach(served: Served, namespace: str) -> None:
    operations = [{"namespace": "account-one", "name": "a"}, {"namespace": namespace, "name": "a"}]
    for operation in ({"name": "a"}, {"prefix": ""}, {"name": "a", "found": None, "following": None, "now": 0.0}):
        body = json.dumps({"operations": [operations[0], {**operation, "namespace": namespace}]}).encode()
        assert served.post(body, signed(body, nonce=f"{hash(body) & 0xFFFF:032x}")).status_code == 403
    assert served.opened == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"operations":1}',
        b'{"operations":[1]}',
        b'{"operations":[{"namespace":1}]}',
        b"\xff",
        b"[" * 9000,
    ]
    + [
        json.dumps({"operations": [{"namespace": "account-one", **operation}]}).encode()
        for operation in (
            {},
            {"name": 1},
            {"name": "a", "found": 1, "now": 1},
            {"name": "a", "now": "now"},
            {"name": "a", "now": 10**400},
            {"name": "a", "change": "Drop"},
            {"name": "a", "change": "Settle", "epoch": None},
        )
    ],
)
def test_what_is_not_an_operation_is_a_bad_request(served: Served, body: bytes) -> None:
    response = served.post(body, signed(body))
    assert (response.status_code, "error" in response.json()) == (400, True)


def test_a_body_without_proof_is_not_read(served: Served) -> None:
    assert served.raw(f"content-length: {100 * 2**20}", iter([MEGABYTE] * 100)) == 401
    assert served.raw("content-length: 1000", iter([])) == 401


def test_a_body_that_is_too_large_is_not_read_to_its_end(served: Served) -> None:
    large = f"content-length: {100 * 2**20}"
    assert served.raw(large, iter([MEGABYTE] * 100), SIGNERS["one"]) in (413, None)
    chunk = b"100000\r\n" + MEGABYTE + b"\r\n"
    assert served.raw("transfer-encoding: chunked", iter([chunk] * 100), SIGNERS["two"]) in (413, None)
    body = b" " * MAX_BODY_BYTES + GET
    assert served.post(body, signed(body, nonce="1" * 32)).status_code == 413


def test_a_body_that_never_ends_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_TIMEOUT_SECONDS", 0.2)
    assert served.raw("content-length: 1000", iter([b"x"]), SIGNERS["one"]) == 408


def test_a_flood_does_not_keep_out_those_who_have_a_proof(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    statuses: Counter[int] = Counter()

    def flood(kind: int) -> None:
        with httpx.Client(timeout=HANG_SECONDS) as client:
            for number in range(100):
                name = ("one", "nobody", f"guess-{kind}-{number}")[number % 3]
                headers = {**signed(key="wrong-wrong-wrong"), "x-techflow-connection": name}
                statuses[client.post(served.url, content=GET, headers=headers).status_code] += 1

    threads = [threading.Thread(target=flood, args=(kind,)) for kind in range(4)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    store = HttpStore(served.url, SIGNERS["one"], lambda: SIGNERS["one"])
    store.update("account-one", "a", lambda *_: (Write("1", 60.0), None))
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    assert statuses == {401: 400}
    # A known connection is read again once a second, since its key may have changed.
    assert len(served.looked_up) <= (UNKNOWN_LOOKUPS_PER_SECOND + 2) * (seconds + 2)
    for key in KEYS.values():
        assert key not in caplog.text
    assert not any(signer.key.hex() in caplog.text for signer in SIGNERS.values())


def test_a_changed_key_is_accepted_soon_and_the_old_one_no_longer(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("techflow_provider.state_server.access.RENEW_SECONDS", 0.0)
    assert served.post(headers=signed()).status_code == 200
    changed = Signer("one", derive_key("the-next-key", "account-three"))
    served.keys["one"] = Access(changed, frozenset({"account-three"}))
    # A task that began with the old key continues with the names of its account.
    assert served.post(headers=changed.headers(GET, time.time(), "2" * 32)).status_code == 200
    assert served.post(headers=signed(nonce="3" * 32)).status_code == 401


def test_a_store_that_fails_is_reported_to_the_caller_alone(served: Served) -> None:
    served.failure = StoreError("postgresql://db/airflow: gone")
    response = served.post(headers=signed())
    assert (response.status_code, response.json()) == (503, {"error": "postgresql://db/airflow: gone"})
    assert response.headers[SIGNATURE_HEADER] == SIGNERS["one"].response(NONCE, response.content)
