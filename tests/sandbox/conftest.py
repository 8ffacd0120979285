"""Clients of the sandbox, in-process and over a socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from techflow_provider.sandbox import Sandbox

Connect = Callable[[Sandbox], httpx.Client]


@pytest.fixture(params=["in-process", "socket"])
def connect(request) -> Iterator[Connect]:
    """Make an authorized client of a sandbox; a test that asks for it runs in-process and over a socket."""
    with ExitStack() as stack:

        def client(sandbox: Sandbox) -> httpx.Client:
            socket = request.param == "socket"
            url = stack.enter_context(sandbox.serve()) if socket else sandbox.base_url
            headers = {"authorization": f"Bearer {sandbox.api_keys[0]}"}
            transport = None if socket else sandbox.transport()
            return stack.enter_context(httpx.Client(base_url=url, headers=headers, transport=transport, timeout=10))

        yield client


@pytest.fixture
def api(connect: Connect, sandbox: Sandbox) -> httpx.Client:
    """A client of `sandbox`, in-process and over a socket."""
    return connect(sandbox)


@pytest.fixture
def local(sandbox: Sandbox, api_key: str) -> Iterator[httpx.Client]:
    """A client of `sandbox`, in-process."""
    headers = {"authorization": f"Bearer {api_key}"}
    with httpx.Client(base_url=sandbox.base_url, headers=headers, transport=sandbox.transport()) as client:
        yield client
