"""What is received stays within bounds, whether a request was sent is observed, and processes share no sockets."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import os
import socket
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from techflow_provider.client import (
    AsyncClient,
    Client,
    NotFoundError,
    RateLimitError,
    ResponseSizeError,
    RetryPolicy,
    ServerError,
    Settings,
    TechFlowError,
    TransportError,
)
from techflow_provider.sandbox import Sandbox
from techflow_provider.state.budget import LocalBudget
from tests.client.raw_server import response, serving

KEY = "transport-key-0123456789"
MEGABYTE = 1024 * 1024
ONCE = RetryPolicy(max_attempts=1)


def call(port: int, kind: str, operation: Callable[[Any], Any], **settings: Any) -> Any:
    """Run an operation with a client of either kind, which sends one request."""
    known = {"api_key": KEY, "base_url": f"http://127.0.0.1:{port}", "verify": False, "timeout_seconds": 60, **settings}
    options: Any = {"settings": Settings(**known), "budget": LocalBudget(100_000, 50_000), "retry": ONCE}
    if kind == "sync":
        with Client(**options) as client:
            return operation(client)

    async def run() -> Any:
        async with AsyncClient(**options) as client:
            return await operation(client)

    return asyncio.run(run())


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of client."""
    return str(request.param)


BOMB = gzip.compress(b" " * 64 * MEGABYTE)
TWICE = gzip.compress(BOMB)
REFUSED = "has the content coding"
BODIES = {
    "gzip bomb": ("gzip", BOMB, "larger than the limit"),
    "deflate bomb": ("deflate", zlib.compress(b" " * 64 * MEGABYTE), "larger than the limit"),
    "twice": ("gzip, gzip", TWICE, REFUSED),
    "twice, without a space": ("gzip,gzip", TWICE, REFUSED),
    "three kinds": ("deflate, identity, gzip", BOMB, REFUSED),
    "brotli": ("br", b"", REFUSED),
    "zstandard": ("zstd", b"", REFUSED),
    "odd": ("\xe9" * 900, b"", REFUSED),
    "no gzip": ("gzip", b"no gzip", "content encoding is invalid"),
    "empty blocks": ("gzip", gzip.compress(b"")[:10] + b"\0\0\0\xff\xff" * 2 * MEGABYTE, "larger than the limit"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_compressed_body_takes_no_more_memory_than_the_limit(kind: str, name: str) -> None:
    coding, body, problem = BODIES[name]

    def serve(connection: socket.socket, _: bytes) -> None:
        connection.sendall(response(f"content-encoding: {coding}", f"content-length: {len(body)}"))
        connection.sendall(body)

    with serving(serve) as port:
        tracemalloc.start()
        try:
            with pytest.raises(TransportError, match=problem) as caught:
                call(port, kind, lambda client: client.workflows.list(), max_response_bytes=8 * MEGABYTE)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 24 * MEGABYTE
    assert (caught.value.status_code, caught.value.was_accepted, caught.value.had_no_effect) == (200, True, False)
    assert isinstance(caught.value, ResponseSizeError) == (problem == "larger than the limit")


SMALL = b'{"id": "wf_1"}'
READ = {
    "gzip": ("gzip", gzip.compress(SMALL)),
    "more after the end": ("X-GZip", gzip.compress(SMALL) + b"more"),
    "deflate": ("deflate", zlib.compress(SMALL)),
    "identity": ("identity", SMALL),
    "none": ("", SMALL),
    "many pieces": ("gzip", gzip.compress(SMALL + b" " * 5 * MEGABYTE)),
    "many chunks": ("gzip", gzip.compress(json.dumps({"id": "wf_1", "x": os.urandom(150_000).hex()}).encode())),
}


@pytest.mark.parametrize("name", READ)
def test_a_body_with_one_coding_is_read(kind: str, name: str) -> None:
    coding, body = READ[name]

    def serve(connection: socket.socket, _: bytes) -> None:
        connection.sendall(response(f"content-encoding: {coding}", f"content-length: {len(body)}", body=body))

    with serving(serve) as port:
        assert call(port, kind, lambda client: client.workflows.get("wf_1")).id == "wf_1"


def test_sixty_megabytes_of_small_values_take_little_memory_and_time() -> None:
    """The whole way from the socket; other bounds on values are tested where they are read."""
    piece = b"[]," * (MEGABYTE // 3)

    def serve(connection: socket.socket, _: bytes) -> None:
        connection.sendall(response("content-type: application/json", body=b"["))
        for _number in range(60):
            connection.sendall(piece)
        connection.sendall(b"[]]")

    with serving(serve) as port:
        tracemalloc.start()
        began = time.thread_time()
        try:
            with pytest.raises(TechFlowError, match="at most 3000000 values"):
                call(port, "sync", lambda client: client.executions.list())
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 100 * MEGABYTE
    assert time.thread_time() - began < 60


HEADS = {
    "length that isn't a number": response("content-length: many", body=b"[]"),
    "negative length": response("content-length: -1", body=b"[]"),
    "two lengths": response("content-length: 2", "content-length: 3", body=b"[] "),
    "length in other digits": response("content-length: \xb2", body=b"[]"),
    "odd chunks": response("transfer-encoding: chunked", body=b"zz\r\n[]\r\n0\r\n\r\n"),
    "odd transfer coding": response("transfer-encoding: gzip, chunked", body=b"2\r\n[]\r\n0\r\n\r\n"),
    "one long header": response("x: " + "y" * 200_000, body=b"[]"),
    "many headers": response(*(f"x{number}: y" for number in range(50_000)), body=b"[]"),
    "a header without a name": response(": x", body=b"[]"),
    "nul": response("x: \0", body=b"[]"),
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "nothing": b"",
    "status of a million": response(status="1000000 OK"),
    "only informational": response(status="100 Continue") * 3,
    "switching protocols": response(status="101 Switching Protocols"),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_response_that_violates_http_is_a_broken_one(kind: str, name: str) -> None:
    with (
        serving(lambda connection, _: connection.sendall(HEADS[name])) as port,
        pytest.raises(TechFlowError) as caught,
    ):
        call(port, kind, lambda client: client.workflows.execute("wf_1"))
    assert not caught.value.had_no_effect


@pytest.mark.parametrize("location", ["https://xn--/", "http://[", "\xe9\x01", "//" + "x" * 70_000, "https://a:b/"])
def test_a_redirect_to_something_other_than_a_url_is_an_error_of_ours(kind: str, location: str) -> None:
    reply = response(f"location: {location}", "content-length: 0", status="302 Found")
    with serving(lambda connection, _: connection.sendall(reply)) as port, pytest.raises(TechFlowError):
        call(port, kind, lambda client: client.workflows.list())


@pytest.mark.parametrize(
    ("status", "error"), [("404 Not Found", NotFoundError), ("500 Oops", ServerError), ("429 Slow", RateLimitError)]
)
@pytest.mark.parametrize("head", ["content-length: 99", "content-encoding: br", "content-encoding: gzip"])
def test_the_status_counts_although_the_body_is_broken(
    kind: str, status: str, error: type[TechFlowError], head: str
) -> None:
    """A refusal is one, whatever its explanation says."""
    reply = response(head, "retry-after: 300", body=b"half", status=status)
    with serving(lambda connection, _: connection.sendall(reply)) as port, pytest.raises(error):
        call(port, kind, lambda client: client.workflows.execute("wf_1"), deadline_seconds=10)


def test_no_cookie_is_kept(kind: str) -> None:
    """A server could fill the memory of a triggerer with them, or the headers of its requests."""
    received: list[bytes] = []

    def serve(connection: socket.socket, request: bytes) -> None:
        received.append(request)
        connection.sendall(response("set-cookie: a=b; Path=/", "content-length: 2", "connection: close", body=b"[]"))

    def twice(client: Client) -> int:
        client.workflows.list()
        client.workflows.list()
        return len(client._http.get().cookies)

    async def twice_in_a_loop(client: AsyncClient) -> int:
        await client.workflows.list()
        await client.workflows.list()
        return len(client._http.get().cookies)

    with serving(serve) as port:
        kept = call(port, kind, twice if kind == "sync" else twice_in_a_loop)
    assert (kept, len(received)) == (0, 2)
    assert not any(b"cookie" in request.lower() for request in received)


REFUSALS = {
    "407": response("proxy-authenticate: Basic", status="407 Proxy Authentication Required"),
    "503": response(status="503 Service Unavailable"),
    "403": response("content-length: 5", body=b"never", status="403 Forbidden"),
    "302": response("location: http://login.example/", status="302 Found"),
    "closes": b"",
    "garbage": b"\x15\x03\x01\x00\x02\x02\x28",
    "half a response": b"HTTP/1.1 200 Conn",
    "tunnel to nowhere": response(status="200 Connection established"),
    "no TLS behind it": response(status="200 Connection established", body=b"HTTP/1.1 400 Bad Request\r\n\r\n"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_a_proxy_did_not_tunnel_never_reached_the_server(kind: str, name: str) -> None:
    connects: list[bytes] = []

    def serve(connection: socket.socket, request: bytes) -> None:
        connects.append(request.split(b"\r\n")[0])
        connection.sendall(REFUSALS[name])

    with serving(serve) as port, pytest.raises(TransportError, match="the request never reached the server") as caught:
        call(
            port,
            kind,
            lambda client: client.workflows.execute("wf_1"),
            base_url="https://techflow.example",
            proxy=f"http://127.0.0.1:{port}",
        )
    assert (caught.value.maybe_sent, caught.value.had_no_effect) == (False, True)
    assert connects == [b"CONNECT techflow.example:443 HTTP/1.1"]


def test_a_proxy_that_never_responds_never_sent_the_request(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TransportError) as caught:
        call(
            0,
            kind,
            lambda client: client.workflows.execute("wf_1"),
            base_url="https://techflow.example",
            proxy=f"http://127.0.0.1:{silent.getsockname()[1]}",
            timeout_seconds=0.3,
        )
    assert caught.value.had_no_effect


def test_a_request_that_a_server_received_and_dropped_may_have_had_an_effect(kind: str) -> None:
    with serving(lambda *_: None) as port, pytest.raises(TransportError, match="may have reached the server") as caught:
        call(port, kind, lambda client: client.workflows.execute("wf_1"))
    assert caught.value.maybe_sent


def echo(connection: socket.socket, request: bytes) -> None:
    """Respond with the workflow that each request names, one request after the other."""
    while request:
        workflow = request.split()[1].rsplit(b"/", 1)[-1].decode()
        body = json.dumps({"id": workflow}).encode()
        connection.sendall(response(f"content-length: {len(body)}", body=body))
        request = connection.recv(65536)


def get_in_a_child(client: Any, runner: asyncio.Runner | None, number: int, folder: Path) -> None:
    """Get some workflows, and note what was received."""
    ids = [f"c{number}_{index}" for index in range(25)]
    if runner is None:
        got = [client.workflows.get(each).id for each in ids]
    else:

        async def run() -> list[str]:
            return [(await client.workflows.get(each)).id for each in ids]

        got = asyncio.run(run())
    (folder / str(number)).write_text(json.dumps(got == ids))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of forks beside threads
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of what children inherit and never use
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_processes_that_fork_share_no_connection(tmp_path: Path, kind: str) -> None:
    with serving(echo) as port:
        settings = Settings(KEY, f"http://127.0.0.1:{port}", verify=False)
        runner = asyncio.Runner() if kind == "async" else None
        kind_of_client: Any = AsyncClient if runner else Client
        client = kind_of_client(settings=settings, budget=LocalBudget(100_000, 50_000))
        got = client.workflows.get("before")
        assert (runner.run(got) if runner else got).id == "before"
        fork = get_context("fork")
        children = [fork.Process(target=get_in_a_child, args=(client, runner, number, tmp_path)) for number in range(4)]
        for child in children:
            child.start()
        for child in children:
            child.join(120)
        assert [child.exitcode for child in children] == [0] * 4
        assert [(tmp_path / str(number)).read_text() for number in range(4)] == ["true"] * 4
        got = client.workflows.get("after")
        assert (runner.run(got) if runner else got).id == "after"
        if runner:
            runner.run(client.aclose())
            runner.close()
        else:
            client.close()


def test_a_client_that_is_gone_leaves_no_socket_open(api_key: str) -> None:
    with Sandbox(api_keys=(api_key,)).serve() as base_url, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client = Client(api_key, base_url=base_url)
        client.workflows.list()
        del client
        gc.collect()
    assert [str(each.message) for each in caught if each.category is ResourceWarning] == []
