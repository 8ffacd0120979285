"""Clients of the sandbox: a synchronous one in-process, or each of four kinds where they can differ; none waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from techflow_provider.client import AsyncClient, Client, RetryPolicy, Settings
from techflow_provider.sandbox import ManualClock, Sandbox
from techflow_provider.state.budget import Budget, LocalBudget

Ask = Callable[[Callable[[Any], Any]], Any]
Connect = Callable[..., Ask]
Respond = Callable[[httpx.Request], httpx.Response]


class Connector:
    """Makes clients of one kind, and closes them.

    :param kind: `sync` or `async`, with `-socket` when the sandbox is reached over one
    """

    def __init__(self, kind: str, sandbox: Sandbox, clock: ManualClock, api_key: str, stack: ExitStack) -> None:
        self._kind = kind
        self._sandbox = sandbox
        self._clock = clock
        self._api_key = api_key
        self._stack = stack

    def __call__(
        self,
        *,
        respond: Respond | None = None,
        base_url: str | None = None,
        budget: Budget | None = None,
        retry: RetryPolicy | None = None,
        **settings: Any,
    ) -> Ask:
        """Return what runs an operation with a new client.

        :param respond: responds instead of the sandbox
        :param base_url: reached over a socket instead of the sandbox
        """
        transport: httpx.MockTransport | None
        if respond:
            transport = httpx.MockTransport(respond)
        else:
            transport = None if base_url or self._kind.endswith("socket") else self._sandbox.transport()
        if base_url is None:
            served = transport is None
            base_url = self._stack.enter_context(self._sandbox.serve()) if served else self._sandbox.base_url
        options: dict[str, Any] = {
            # Nothing here speaks TLS, and loading the certificates takes longer than a test.
            "settings": Settings(**{"api_key": self._api_key, "base_url": base_url, "verify": False, **settings}),
            "budget": budget or LocalBudget(100_000, 50_000, self._clock.monotonic),
            "retry": retry,
            "transport": transport,
            "clock": self._clock.monotonic,
        }
        return self._async(options) if self._kind.startswith("async") else self._sync(options)

    def _sync(self, options: dict[str, Any]) -> Ask:
        client = self._stack.enter_context(Client(sleep=self._clock.advance, **options))
        return lambda operation: operation(client)

    def _async(self, options: dict[str, Any]) -> Ask:
        runner = self._stack.enter_context(asyncio.Runner())

        async def sleep(seconds: float) -> None:
            self._clock.advance(seconds)

        client = AsyncClient(sleep=sleep, **options)
        self._stack.callback(lambda: runner.run(client.aclose()))

        def ask(operation: Callable[[Any], Any]) -> Any:
            async def run() -> Any:
                return await operation(client)

            return runner.run(run())

        return ask


KINDS = ("sync", "async", "sync-socket", "async-socket")


@pytest.fixture
def connect(sandbox: Sandbox, clock: ManualClock, api_key: str) -> Iterator[Connect]:
    """Make synchronous clients of the sandbox in-process."""
    with ExitStack() as stack:
        yield Connector("sync", sandbox, clock, api_key, stack)


@pytest.fixture(params=KINDS)
def connect_each(request, sandbox: Sandbox, clock: ManualClock, api_key: str) -> Iterator[Connect]:
    """Make clients of one kind; a test that requests it runs with each kind."""
    with ExitStack() as stack:
        yield Connector(request.param, sandbox, clock, api_key, stack)


@pytest.fixture
def ask(connect: Connect) -> Ask:
    """Run an operation with a synchronous client of the sandbox in-process."""
    return connect()


@pytest.fixture
def workflow_id(sandbox: Sandbox) -> str:
    """A workflow of the sandbox."""
    return sandbox.add_workflow("My Workflow", id="wf_1")
