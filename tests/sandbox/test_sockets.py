"""The sandbox over a real socket: connections, malformed HTTP, and shutdown."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from techflow_provider.sandbox import Fault, Sandbox
from tests.sandbox.conftest import TIMEOUT_SECONDS, client_of, wait_until


@pytest.fixture
def address(sandbox: Sandbox) -> Iterator[tuple[str, int]]:
    with sandbox.serve() as url:
        yield "127.0.0.1", httpx.URL(url).port or 0


def exchange(address: tuple[str, int], sent: bytes) -> bytes:
    """Send bytes and return everything that is received until the server closes the connection."""
    with socket.create_connection(address, timeout=TIMEOUT_SECONDS) as connection:
        connection.sendall(sent)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        return received


def post(api_key: str, *headers: bytes, body: bytes = b"") -> bytes:
    lines = [b"POST /v2/workflows HTTP/1.1", b"Host: x", b"Authorization: Bearer " + api_key.encode()]
    return b"\r\n".join([*lines, b"Content-Type: application/json", *headers, b"", body])


def open_connections() -> int:
    """Return the number of threads in which http.server handles a connection."""
    return sum("process_request_thread" in each.name for each in threading.enumerate())


def test_the_base_url_is_set_while_the_sandbox_is_served(sandbox):
    before = sandbox.base_url
    with sandbox.serve() as url:
        assert sandbox.base_url == url
        assert url.endswith("/v2")
    assert sandbox.base_url == before
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, verify=False)


def test_a_connection_is_kept_alive(sandbox):
    with sandbox.serve() as url, client_of(sandbox, url) as client:
        streams = {
            id(client.get(f"{url}/{path}").extensions["network_stream"].get_extra_info("socket"))
            for path in ("workflows", "nothing", "executions")
        }
    assert len(streams) == 1


def test_requests_may_be_pipelined(address, api_key):
    body = b'{"name": "n"}'
    one = post(api_key, b"Content-Length: 13", body=body)
    last = post(api_key, b"Content-Length: 13", b"Connection: close", body=body)
    assert exchange(address, one + last).count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (b"Content-Length: x", b""),
        (b"Content-Length: -1", b""),
        (b"Content-Length: 99999999999", b""),
        (b"Transfer-Encoding: chunked", b'd\r\n{"name": "n"}\r\n0\r\n\r\n'),
    ],
)
def test_an_invalid_body_length_is_a_bad_request(address, sandbox, api_key, header, body):
    response = exchange(address, post(api_key, header, body=body))
    assert response.startswith(b"HTTP/1.1 400 ")
    assert b"date: " in response
    assert b"connection: close" in response
    assert sandbox.workflows == ()


def test_an_incomplete_body_does_not_act(address, sandbox, api_key):
    with socket.create_connection(address, timeout=TIMEOUT_SECONDS) as connection:
        connection.sendall(post(api_key, b"Content-Length: 100", body=b'{"name": "n"}'))
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
    assert sandbox.workflows == ()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01 a TLS handshake\r\n\r\n", b"400"),
        (b"GET /v2/workflows HTTP/9.9\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"400"),
        (b"BREW /v2/workflows HTTP/1.1\r\n\r\n", b"404"),
    ],
)
def test_malformed_http_gets_a_documented_status(address, sent, status):
    assert b" " + status + b" " in exchange(address, sent).partition(b"\r\n")[0]


def test_a_head_request_has_no_body(address, api_key):
    request = post(api_key, b"Connection: close").replace(b"POST", b"HEAD")
    assert exchange(address, request).endswith(b"\r\n\r\n")


def test_two_hundred_connections_are_served_at_once(clock):
    sandbox = Sandbox(clock=clock, limit=1000)
    # No request completes before all have arrived.
    barrier = threading.Barrier(200, timeout=TIMEOUT_SECONDS)
    sandbox.on_request = lambda _: barrier.wait()  # type: ignore[assignment]  # the number is ignored

    with sandbox.serve() as url, ExitStack() as stack:
        address = ("127.0.0.1", httpx.URL(url).port or 0)
        connections = [
            stack.enter_context(socket.create_connection(address, timeout=TIMEOUT_SECONDS)) for _ in range(200)
        ]
        for connection in connections:
            connection.sendall(post("sandbox-key", b"Content-Length: 13", body=b'{"name": "n"}'))
        assert [connection.recv(12) for connection in connections] == [b"HTTP/1.1 200"] * 200
    assert len(sandbox.workflows) == 200


def test_many_threads_lose_no_workflow(clock):
    sandbox = Sandbox(clock=clock, limit=1000)
    with sandbox.serve() as url, client_of(sandbox, url) as client, ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: client.post("/workflows", json={"name": str(n)}), range(200)))

    assert sorted(int(str(each["name"])) for each in sandbox.workflows) == list(range(200))
    assert sandbox.count(status=200) == 200


def test_the_limit_is_exact_among_many_threads(clock):
    sandbox = Sandbox(clock=clock, limit=50)
    with (
        client_of(sandbox, sandbox.base_url, sandbox.transport()) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        statuses = list(pool.map(lambda _: client.get("/executions").status_code, range(120)))
    assert (statuses.count(200), statuses.count(429)) == (50, 70)


@pytest.mark.parametrize("fault", [Fault("hang"), Fault("hang", when="after"), Fault("slow", seconds=1_000_000)])
def test_hanging_requests_and_idle_connections_do_not_block_the_shutdown(sandbox, fault):
    sandbox.faults.add(fault)
    with (
        ThreadPoolExecutor(1) as pool,
        httpx.Client(timeout=TIMEOUT_SECONDS, verify=False) as idle,
        client_of(sandbox, sandbox.base_url) as client,
    ):
        with sandbox.serve() as url:
            idle.get(f"{url}/nothing")
            hanging = pool.submit(client.get, f"{url}/executions", timeout=2 * TIMEOUT_SECONDS)
            wait_until(lambda: sandbox.count("GET", "/executions") == 1)
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            hanging.result(TIMEOUT_SECONDS)
    wait_until(lambda: open_connections() == 0)


def test_a_hang_does_not_act_for_a_client_that_has_disconnected(sandbox):
    sandbox.faults.add(Fault("hang", seconds=2 * TIMEOUT_SECONDS))
    with sandbox.serve() as url, client_of(sandbox, url) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/workflows", json={"name": "late"}, timeout=httpx.Timeout(TIMEOUT_SECONDS, read=0.1))
        wait_until(lambda: sandbox.count("POST") == 1 and open_connections() == 0)
    assert sandbox.workflows == ()


def test_it_serves_over_ipv6(sandbox):
    with sandbox.serve("::1") as url, client_of(sandbox, url) as client:
        assert url.startswith("http://[::1]:")
        assert client.get("/workflows").status_code == 200
