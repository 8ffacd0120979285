"""`Client` and `AsyncClient`: the only places that wait and do network I/O, through the `IO` of their flows."""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial, wraps
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, Self, TypeVar

import httpx

from techflow_provider.client.errors import without_frames
from techflow_provider.client.flow import Call, Flow, FlowContext, StartLog, exchange
from techflow_provider.client.operations import AsyncExecutions, AsyncWorkflows
from techflow_provider.client.reading import HistoryReader
from techflow_provider.client.retry import Outcome, RetryPolicy
from techflow_provider.client.settings import DEFAULT_BASE_URL, Settings
from techflow_provider.client.transport import Exchange, PerProcess, open_http, send_errors
from techflow_provider.state.budget import Budget, LocalBudget

T = TypeVar("T")
A = TypeVar("A")
P = ParamSpec("P")
Transport = TypeVar("Transport")
Sleep = TypeVar("Sleep")

# A larger body is read in a thread, so that parsing it does not block the event loop.
LARGE_BODY_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class _SyncIO:
    """An `IO` none of whose methods suspends."""

    settings: Settings
    http: PerProcess[httpx.Client]
    clock: Callable[[], float]
    wait: Callable[[float], None] | None

    async def send(self, call: Call[Any], request: httpx.Request) -> Outcome:
        exchanged = Exchange(self.settings, self.clock)
        request.extensions["trace"] = exchanged.events.__setitem__
        try:
            with contextlib.closing(self.http.get().send(request, stream=True)) as response:
                for chunk in response.iter_raw() if exchanged.begin(response) else ():
                    exchanged.add(chunk)
        except send_errors() as error:
            return exchanged.failed(str(call), error)
        return exchanged.complete()

    async def sleep(self, seconds: float) -> None:
        (self.wait or time.sleep)(seconds)

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
    wait: Callable[[float], Coroutine[Any, Any, None]] | None
    # State that processes share is used in one thread, so that its store never blocks the loop.
    thread: PerProcess[ThreadPoolExecutor] = field(
        default_factory=lambda: PerProcess(partial(ThreadPoolExecutor, 1, thread_name_prefix="techflow-state"))
    )

    async def send(self, call: Call[Any], request: httpx.Request) -> Outcome:
        exchanged = Exchange(self.settings, self.clock)
        request.extensions["trace"] = exchanged.trace
        try:
            async with contextlib.aclosing(await self.http.get().send(request, stream=True)) as response:
                if exchanged.begin(response):
                    async for chunk in response.aiter_raw():
                        exchanged.add(chunk)
        except send_errors() as error:
            return exchanged.failed(str(call), error)
        return exchanged.complete()

    async def sleep(self, seconds: float) -> None:
        await (self.wait or asyncio.sleep)(seconds)

    async def use_state(self, act: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.thread.get(), act)

    def abandon(self, act: Callable[[], object]) -> None:
        # A client that is closed has nothing left to run it.
        with contextlib.suppress(RuntimeError):
            self.thread.get().submit(act)

    async def decode(self, response: httpx.Response, read: Callable[[], T]) -> T:
        return await asyncio.to_thread(read) if len(response.content) > LARGE_BODY_BYTES else read()


class _Blocking(Generic[A]):
    """The operations of `AsyncClient`, run at once.

    :param flows: the operations
    """

    def __init__(self, flows: A) -> None:
        self._flows = flows


def _at_once(operation: Callable[Concatenate[A, P], Flow[T]]) -> Callable[Concatenate[_Blocking[A], P], T]:
    @wraps(operation)
    def method(self: _Blocking[A], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return _run(operation(self._flows, *args, **kwargs))

    return method


def _run(flow: Flow[T]) -> T:
    try:
        flow.send(None)
    except StopIteration as finished:
        result: T = finished.value
        return result
    flow.close()
    raise RuntimeError("a flow of a synchronous client waited for something other than its IO")


class Workflows(_Blocking[AsyncWorkflows]):
    """Workflows, as in `AsyncWorkflows`. Every method raises `TechFlowError` in one of its kinds."""

    list = _at_once(AsyncWorkflows.list)
    get = _at_once(AsyncWorkflows.get)
    named = _at_once(AsyncWorkflows.named)
    create = _at_once(AsyncWorkflows.create)
    ensure = _at_once(AsyncWorkflows.ensure)
    update = _at_once(AsyncWorkflows.update)
    delete = _at_once(AsyncWorkflows.delete)
    execute = _at_once(AsyncWorkflows.execute)


class Executions(_Blocking[AsyncExecutions]):
    """The execution history, as in `AsyncExecutions`. Every method raises `TechFlowError` in one of its kinds."""

    list = _at_once(AsyncExecutions.list)
    get = _at_once(AsyncExecutions.get)
    wait = _at_once(AsyncExecutions.wait)


class _Client(Generic[Transport, Sleep]):
    """What both clients are made of.

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

    _http_type: ClassVar[type[Any]]
    _io_type: ClassVar[Callable[..., Any]]

    @without_frames
    def __init__(
        self,
        api_key: str = "",
        *,
        base_url: str = DEFAULT_BASE_URL,
        settings: Settings | None = None,
        budget: Budget | None = None,
        retry: RetryPolicy | None = None,
        transport: Transport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep | None = None,
        reader: HistoryReader | None = None,
        starts: StartLog | None = None,
    ) -> None:
        self.settings: Settings = settings or Settings(api_key, base_url)
        self.budget: Budget = budget or LocalBudget()
        http = self._http_type
        self._http = PerProcess(partial(open_http, http, self.settings, transport), getattr(http, "close", None))
        # A hook keeps its client and never closes it, and sockets that are left to Python cause warnings.
        weakref.finalize(self, self._http.close)
        self._io = self._io_type(self.settings, self._http, clock, sleep)
        self.context: FlowContext = FlowContext(
            self.settings, self._io, self.budget, retry or RetryPolicy(), clock, reader=reader, starts=starts
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self.settings.base_url!r})"


class Client(_Client[httpx.BaseTransport, Callable[[float], None]]):
    """TechFlow for plain, synchronous Python.

    >>> client = Client(api_key="your_key")
    >>> workflows = client.workflows.list()
    """

    _http_type = httpx.Client
    _io_type = _SyncIO

    @cached_property
    def workflows(self) -> Workflows:
        """The calls for workflows."""
        return Workflows(AsyncWorkflows(self.context))

    @cached_property
    def executions(self) -> Executions:
        """The calls for executions."""
        return Executions(AsyncExecutions(self.context))

    def send(self, call: Call[T]) -> T:
        """Carry out one call.

        :raises TechFlowError: every way in which it can fail
        """
        return self.run(exchange(call, self.context))

    def run(self, flow: Flow[T]) -> T:
        """Run a flow and return its result."""
        return _run(flow)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(_Client[httpx.AsyncBaseTransport, Callable[[float], Coroutine[Any, Any, None]]]):
    """TechFlow for asyncio; like `Client`, with awaitable methods.

    >>> async def main():
    ...     async with AsyncClient(api_key="your_key") as client:
    ...         return await client.workflows.list()
    """

    _http_type = httpx.AsyncClient
    _io_type = _AsyncIO

    @cached_property
    def workflows(self) -> AsyncWorkflows:
        """The calls for workflows."""
        return AsyncWorkflows(self.context)

    @cached_property
    def executions(self) -> AsyncExecutions:
        """The calls for executions."""
        return AsyncExecutions(self.context)

    async def send(self, call: Call[T]) -> T:
        """Carry out one call.

        :raises TechFlowError: every way in which it can fail
        """
        return await exchange(call, self.context)

    async def run(self, flow: Flow[T]) -> T:
        """Run a flow and return its result."""
        return await flow

    async def aclose(self) -> None:
        """Close the connections."""
        self._io.thread.get().shutdown(wait=False)
        await self._http.get().aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
