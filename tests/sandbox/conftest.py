"""Clients of the sandbox, in-process and over a socket."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from techflow_provider.sandbox import Sandbox

# Only bounds a hang: no test depends on how long something takes.
TIMEOUT_SECONDS = 120

Connect = Callable[[Sandbox], httpx.Client]


@pytest.fixture(params=["in-process", "socket"])
def connect(request) -> Iterator[Connect]:
    """Make an authorized client of a sandbox; a test that uses it runs in-process and over a socket."""
    with ExitStack() as stack:

        def client(sandbox: Sandbox) -> httpx.Client:
            socket = request.param == "socket"
            url = stack.enter_context(sandbox.serve()) if socket else sandbox.base_url
            transport = None if socket else sandbox.transport()
            return stack.enter_context(client_of(sandbox, url, transport))

        yield client


@pytest.fixture
def api(connect: Connect, sandbox: Sandbox) -> httpx.Client:
    """A client of `sandbox`, in-process and over a socket."""
    return connect(sandbox)


@pytest.fixture
def local(sandbox: Sandbox) -> Iterator[httpx.Client]:
    """A client of `sandbox`, in-process."""
    with client_of(sandbox, sandbox.base_url, sandbox.transport()) as client:
        yield client


def client_of(sandbox: Sandbox, url: str, transport: httpx.BaseTransport | None = None) -> httpx.Client:
    """Return a client that has the first key of a sandbox."""
    headers = {"authorization": f"Bearer {sandbox.api_keys[0]}"}
    # Nothing here uses TLS, and loading the certificates takes longer than most of the tests.
    return httpx.Client(base_url=url, headers=headers, transport=transport, timeout=TIMEOUT_SECONDS, verify=False)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
