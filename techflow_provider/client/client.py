"""`Client` and `AsyncClient`: the only places that wait and do network I/O, through the `IO` of their flows."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import math
import random
import time
import weakref
from collections.abc import Callable, Collection, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from techflow_provider.client.calls import Trigger
from techflow_provider.client.environment import open_http
from techflow_provider.client.errors import without_frames
from techflow_provider.client.flow import Call, Flow, FlowContext, StartLog, exchange
from techflow_provider.client.history import ExecutionSelector, History, HistoryFilter
from techflow_provider.client.models import Execution, Workflow
from techflow_provider.client.operations import AsyncExecutions, AsyncWorkflows
from techflow_provider.client.reading import DEFAULT_POLL_INTERVAL_SECONDS, HistoryReader, PollMemory
from techflow_provider.client.retry import Outcome, RetryPolicy
from techflow_provider.client.settings import DEFAULT_BASE_URL, Settings
from techflow_provider.client.transport import Exchange, PerProcess, send_errors
from techflow_provider.client.values import Id, Payload
from techflow_provider.state.budget import Budget, LocalBudget

T = TypeVar("T")

# A larger body is read in a thread, so that parsing it does not block the event loop.
LARGE_BODY_BYTES = 64 * 1024


class Workflows:
    """Workflows. Every method raises `TechFlowError` in one of its kinds.

    :param client: runs the calls
    """

    def __init__(self, client: Client) -> None:
        self._run = client.run
        self._flows = AsyncWorkflows(client.context)

    def list(self) -> builtins.list[Workflow]:
        """Return all workflows (List Workflows)."""
        return self._run(self._flows.list())

    def get(self, workflow_id: Id) -> Workflow:
        """Return one workflow (Get Workflow)."""
        return self._run(self._flows.get(workflow_id))

    def create(
        self,
        name: Id,
        description: Id | None = None,
        triggers: Sequence[Trigger] = (),
        known: Collection[str] | None = None,
    ) -> Workflow:
        """Create a workflow (Create Workflow); see `AsyncWorkflows.create`."""
        return self._run(self._flows.create(name, description, triggers, known))

    def update(
        self,
        workflow_id: Id,
        name: Id | None = None,
        description: Id | None = None,
        triggers: Sequence[Trigger] | None = None,
    ) -> Workflow:
        """Read a workflow, change the given fields, and write it whole (Get Workflow, Update Workflow)."""
        return self._run(self._flows.update(workflow_id, name, description, triggers))

    def delete(self, workflow_id: Id) -> None:
        """Delete a workflow permanently (Delete Workflow)."""
        self._run(self._flows.delete(workflow_id))

    def execute(self, workflow_id: Id, payload: Payload | None = None, within_seconds: float = math.inf) -> Execution:
        """Start an execution (Trigger Execution); see `AsyncWorkflows.execute`."""
        return self._run(self._flows.execute(workflow_id, payload, within_seconds))


class Executions:
    """The execution history. Every method raises `TechFlowError` in one of its kinds.

    :param client: runs the calls
    """

    def __init__(self, client: Client) -> None:
        self._run = client.run
        self._flows = AsyncExecutions(client.context)

    def list(self, workflow_id: Id | None = None, status: str | None = None) -> builtins.list[Execution]:
        """Return the execution history (List Executions), of one workflow or with one status when given."""
        return self._run(self._flows.list(workflow_id, status))

    def get(self, execution_id: Id) -> Execution:
        """Return one execution, found in the history (List Executions)."""
        return self._run(self._flows.get(execution_id))

    def wait(
        self,
        selector: ExecutionSelector,
        interval_seconds: float = DEFAULT_POLL_INTERVAL_SECONDS,
        timeout_seconds: float | None = None,
    ) -> Execution:
        """Poll the history until an execution has reached a final status; see `AsyncExecutions.wait`."""
        return self._run(self._flows.wait(selector, interval_seconds, timeout_seconds))

    def poll(
        self, within_seconds: float, history_filter: HistoryFilter | None = None, memory: PollMemory | None = None
    ) -> History:
        """Read the execution history as a wait does; see `AsyncExecutions.poll`."""
        return self._run(self._flows.poll(within_seconds, history_filter, memory))


@dataclass(frozen=True, slots=True)
class _SyncIO:
    """An `IO` none of whose methods suspends."""

    settings: Settings
    http: PerProcess[httpx.Client]
    clock: Callable[[], float]
    wait: Callable[[float], None]

    async def send(self, call: Call[Any], request: httpx.Request) -> Outcome:
        exchanged = Exchange(self.settings, self.clock)
        request.extensions["trace"] = exchanged.trace
        try:
            response = self.http.get().send(request, stream=True)
            try:
                for chunk in response.iter_raw() if exchanged.begin(response) else ():
                    exchanged.add(chunk)
            finally:
                response.close()
        except send_errors() as error:
            return exchanged.failed(str(call), error)
        return exchanged.complete()

    async def sleep(self, seconds: float) -> None:
        self.wait(seconds)

    async def use_state(self, act: Callable[[], T]) -> T:
        return act()

    def abandon(self, act: Callable[[], object]) -> None:
        act()

    async def decode(self, _: httpx.Response, read: Callable[[], T]) -> T:
        return read()


@dataclass(frozen=True, slots=True)
class _AsyncIO:
    """The `IO` of an event loop."""

    settings: Settings
    http: PerProcess[httpx.AsyncClient]
    clock: Callable[[], float]
    wait: Callable[[float], Coroutine[Any, Any, None]]
    # State that processes share is used in one thread, so that its store never blocks the loop.
    thread: PerProcess[ThreadPoolExecutor] = field(
        default_factory=lambda: PerProcess(partial(ThreadPoolExecutor, 1, thread_name_prefix="techflow-state"))
    )

    async def send(self, call: Call[Any], request: httpx.Request) -> Outcome:
        exchanged = Exchange(self.settings, self.clock)
        request.extensions["trace"] = exchanged.trace_async
        try:
            response = await self.http.get().send(request, stream=True)
            try:
                if exchanged.begin(response):
                    async for chunk in response.aiter_raw():
                        exchanged.add(chunk)
            finally:
                await response.aclose()
        except send_errors() as error:
            return exchanged.failed(str(call), error)
        return exchanged.complete()

    async def sleep(self, seconds: float) -> None:
        await self.wait(seconds)

    async def use_state(self, act: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.thread.get(), act)

    def abandon(self, act: Callable[[], object]) -> None:
        # A client that is closed has nothing left to run it.
        with contextlib.suppress(RuntimeError):
            self.thread.get().submit(act)

    async def decode(self, response: httpx.Response, read: Callable[[], T]) -> T:
        return await asyncio.to_thread(read) if len(response.content) > LARGE_BODY_BYTES else read()


class Client:
    """TechFlow for plain, synchronous Python.

    >>> client = Client(api_key="your_key")
    >>> workflows = client.workflows.list()

    :param api_key: the API key (Authentication)
    :param base_url: base URL of the API (Base URL)
    :param settings: all settings at once, instead of the key and the URL
    :param budget: the rate budget; a new one for this client alone when none is given
    :param retry: when to send a call again
    :param transport: an httpx transport, such as the sandbox's
    :param clock: monotonic seconds
    :param sleep: how to wait
    :param reader: reads the execution history together with other processes
    :param starts: makes known to tasks what this client starts
    :raises InvalidParameterError: a setting can't be used
    """

    @without_frames
    def __init__(
        self,
        api_key: str = "",
        *,
        base_url: str = DEFAULT_BASE_URL,
        settings: Settings | None = None,
        budget: Budget | None = None,
        retry: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        reader: HistoryReader | None = None,
        starts: StartLog | None = None,
    ) -> None:
        self.settings: Settings = settings or Settings(api_key, base_url)
        self.budget: Budget = budget or LocalBudget()
        # The timeouts are set on each request. Redirects are not followed: the key must not go elsewhere.
        self._http = PerProcess(
            partial(httpx.Client, transport=transport) if transport else partial(open_http, httpx.Client, self.settings)
        )
        # A hook keeps its client and never closes it, and sockets that are left to Python cause warnings.
        weakref.finalize(self, self._http.end, httpx.Client.close)
        io = _SyncIO(self.settings, self._http, clock, sleep)
        self.context: FlowContext = FlowContext(
            self.settings, io, self.budget, retry or RetryPolicy(), clock, random.random, reader=reader, starts=starts
        )
        self.workflows: Workflows = Workflows(self)
        self.executions: Executions = Executions(self)

    def send(self, call: Call[T]) -> T:
        """Carry out one call.

        :raises TechFlowError: every way in which it can fail
        """
        return self.run(exchange(call, self.context))

    def run(self, flow: Flow[T]) -> T:
        """Run a flow and return its result."""
        try:
            flow.send(None)
        except StopIteration as finished:
            result: T = finished.value
            return result
        flow.close()
        raise RuntimeError("a flow of a synchronous client waited for something other than its IO")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self.settings.base_url!r})"

    def close(self) -> None:
        """Close the connections."""
        self._http.get().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """TechFlow for asyncio; like `Client`, with awaitable methods.

    >>> async def main():
    ...     async with AsyncClient(api_key="your_key") as client:
    ...         return await client.workflows.list()

    :param api_key: the API key (Authentication)
    :param base_url: base URL of the API (Base URL)
    :param settings: all settings at once, instead of the key and the URL
    :param budget: the rate budget; a new one for this client alone when none is given
    :param retry: when to send a call again
    :param transport: an asynchronous httpx transport, such as the sandbox's
    :param clock: monotonic seconds
    :param reader: reads the execution history together with other processes
    :param starts: makes known to tasks what this client starts
    :raises InvalidParameterError: a setting can't be used
    """

    @without_frames
    def __init__(
        self,
        api_key: str = "",
        *,
        base_url: str = DEFAULT_BASE_URL,
        settings: Settings | None = None,
        budget: Budget | None = None,
        retry: RetryPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
        reader: HistoryReader | None = None,
        starts: StartLog | None = None,
    ) -> None:
        self.settings: Settings = settings or Settings(api_key, base_url)
        self.budget: Budget = budget or LocalBudget()
        self._http = PerProcess(
            partial(httpx.AsyncClient, transport=transport)
            if transport
            else partial(open_http, httpx.AsyncClient, self.settings)
        )
        self._io = _AsyncIO(self.settings, self._http, clock, sleep)
        self.context: FlowContext = FlowContext(
            self.settings,
            self._io,
            self.budget,
            retry or RetryPolicy(),
            clock,
            random.random,
            reader=reader,
            starts=starts,
        )
        self.workflows: AsyncWorkflows = AsyncWorkflows(self.context)
        self.executions: AsyncExecutions = AsyncExecutions(self.context)

    async def send(self, call: Call[T]) -> T:
        """Carry out one call.

        :raises TechFlowError: every way in which it can fail
        """
        return await self.run(exchange(call, self.context))

    async def run(self, flow: Flow[T]) -> T:
        """Run a flow and return its result."""
        return await flow

    async def use_state(self, act: Callable[[], T]) -> T:
        """Use the budget, or anything else in its store, in the one thread that may block on it."""
        return await self._io.use_state(act)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self.settings.base_url!r})"

    async def aclose(self) -> None:
        """Close the connections."""
        self._io.thread.get().shutdown(wait=False)
        await self._http.get().aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
