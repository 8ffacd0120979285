"""The sandbox over a real socket: connections, malformed HTTP, and its end."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from techflow_provider.sandbox import Fault, Sandbox


@pytest.fixture
def address(sandbox: Sandbox) -> Iterator[tuple[str, int]]:
    with sandbox.serve() as url:
        yield "127.0.0.1", httpx.URL(url).port or 0


def talk(address: tuple[str, int], sent: bytes) -> bytes:
    """Send bytes and return all that comes until the server closes."""
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(sent)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received


def post(api_key: str, *headers: bytes, body: bytes = b"") -> bytes:
    lines = [b"POST /v2/workflows HTTP/1.1", b"Host: x", b"Authorization: Bearer " + api_key.encode()]
    return b"\r\n".join([*lines, b"Content-Type: application/json", *headers, b"", body])


def test_the_base_url_is_known_while_it_is_served(sandbox):
    before = sandbox.base_url
    with sandbox.serve() as url:
        assert sandbox.base_url == url
        assert url.endswith("/v2")
    assert sandbox.base_url == before
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_a_connection_is_kept_alive(sandbox, api_key):
    headers = {"authorization": f"Bearer {api_key}"}
    with sandbox.serve() as url, httpx.Client(headers=headers) as client:
        streams = {
            id(client.get(f"{url}/{path}").extensions["network_stream"].get_extra_info("socket"))
            for path in ("workflows", "nothing", "executions")
        }
    assert len(streams) == 1


def test_requests_may_be_pipelined(address, api_key):
    body = b'{"name": "n"}'
    one = post(api_key, b"Content-Length: 13", body=body)
    last = post(api_key, b"Content-Length: 13", b"Connection: close", body=body)
    assert talk(address, one + last).count(b"HTTP/1.1 200 OK") == 2


def test_a_chunked_body_is_read(address, sandbox, api_key):
    body = b'6;x=y\r\n{"name\r\n7\r\n": "n"}\r\n0\r\nTrailer: 1\r\n\r\n'
    answer = talk(address, post(api_key, b"Transfer-Encoding: chunked", b"Connection: close", body=body))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert sandbox.workflows[0]["name"] == "n"


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (b"Content-Length: x", b""),
        (b"Content-Length: -1", b""),
        (b"Content-Length: 99999999999", b""),
        (b"Transfer-Encoding: chunked", b"xyz\r\n"),
        (b"Transfer-Encoding: chunked", b"fffffff\r\n"),
    ],
)
def test_a_body_of_no_proper_length_is_a_bad_request(address, sandbox, api_key, header, body):
    answer = talk(address, post(api_key, header, body=body))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"date: " in answer
    assert b"connection: close" in answer
    assert sandbox.workflows == ()


def test_a_body_that_stops_early_is_not_acted_upon(address, sandbox, api_key):
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(post(api_key, b"Content-Length: 100", body=b'{"name": "n"}'))
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
    assert sandbox.workflows == ()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01 what is this\r\n\r\n", b"400"),
        (b"GET /v2/workflows HTTP/9.9\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"400"),
        (b"BREW /v2/workflows HTTP/1.1\r\n\r\n", b"404"),
    ],
)
def test_what_is_no_proper_http_gets_a_documented_status(address, sent, status):
    assert b" " + status + b" " in talk(address, sent).partition(b"\r\n")[0]


def test_a_head_request_has_no_body(address, api_key):
    request = post(api_key, b"Connection: close").replace(b"POST", b"HEAD")
    assert talk(address, request).endswith(b"\r\n\r\n")


def test_two_hundred_connections_are_served_at_once(clock):
    sandbox = Sandbox(clock=clock, limit=1000)
    sandbox.faults.add(Fault("hang", seconds=0.2, when="after"))

    async def ask(url: str) -> list[int]:
        limits = httpx.Limits(max_connections=200)
        headers = {"authorization": "Bearer sandbox-key"}
        async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=20) as client:
            answers = await asyncio.gather(*(client.get("/executions") for _ in range(200)))
        return [answer.status_code for answer in answers]

    with sandbox.serve() as url:
        assert asyncio.run(ask(url)) == [200] * 200


def test_many_threads_lose_no_workflow(clock):
    sandbox = Sandbox(clock=clock, limit=1000)
    headers = {"authorization": "Bearer sandbox-key"}

    with (
        sandbox.serve() as url,
        httpx.Client(base_url=url, headers=headers) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        list(pool.map(lambda n: client.post("/workflows", json={"name": str(n)}), range(200)))

    assert sorted(int(str(each["name"])) for each in sandbox.workflows) == list(range(200))
    assert sandbox.count(status=200) == 200


def test_the_limit_is_exact_among_many_threads(clock):
    sandbox = Sandbox(clock=clock, limit=50)
    headers = {"authorization": "Bearer sandbox-key"}
    with (
        httpx.Client(base_url=sandbox.base_url, headers=headers, transport=sandbox.transport()) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        statuses = list(pool.map(lambda _: client.get("/executions").status_code, range(120)))
    assert (statuses.count(200), statuses.count(429)) == (50, 70)


@pytest.mark.parametrize("fault", [Fault("hang"), Fault("hang", when="after"), Fault("slow", seconds=60)])
def test_hung_requests_and_idle_connections_do_not_delay_the_end(sandbox, api_key, fault):
    sandbox.faults.add(fault)
    threads = threading.active_count()
    idle = httpx.Client()
    headers = {"authorization": f"Bearer {api_key}"}

    with ThreadPoolExecutor(1) as pool:
        with sandbox.serve() as url:
            idle.get(f"{url}/nothing")
            open_call = pool.submit(httpx.get, f"{url}/executions", headers=headers, timeout=30)
            while not sandbox.count("GET", "/executions"):
                time.sleep(0.01)
            began = time.monotonic()
        assert time.monotonic() - began < 2
        with pytest.raises(httpx.TransportError):
            open_call.result(5)
    idle.close()
    assert threading.active_count() <= threads


def test_a_hang_does_not_act_for_a_client_that_has_gone(sandbox, api_key):
    sandbox.faults.add(Fault("hang", seconds=0.4, times=1))
    headers = {"authorization": f"Bearer {api_key}"}
    with (
        sandbox.serve() as url,
        httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(5, read=0.1)) as client,
    ):
        with pytest.raises(httpx.ReadTimeout):
            client.post("/workflows", json={"name": "late"})
        sandbox.faults.add(Fault("hang", seconds=0.6, times=1))
        client.get("/workflows", timeout=5)
    assert sandbox.workflows == ()


def test_it_serves_over_ipv6(sandbox, api_key):
    with sandbox.serve("::1") as url:
        assert url.startswith("http://[::1]:")
        assert httpx.get(f"{url}/workflows", headers={"authorization": f"Bearer {api_key}"}).status_code == 200
