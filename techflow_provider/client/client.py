"""`Client` and `AsyncClient`: the only places that wait and do network I/O, as the `IO` of their flows."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import update_wrapper
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, TypeVarTuple

import httpx

from techflow_provider.client import operations
from techflow_provider.client.calls import Call, Page
from techflow_provider.client.flow import Flow, FlowContext, collect, exchange
from techflow_provider.client.retry import Outcome, RetryPolicy
from techflow_provider.client.settings import DEFAULT_BASE_URL, Settings
from techflow_provider.client.transport import Body, transport_error
from techflow_provider.state.budget import Budget, LocalBudget

Ts = TypeVarTuple("Ts")
P = ParamSpec("P")
T = TypeVar("T")

Operation = Callable[Concatenate[FlowContext, P], Flow[T]]


class Performer(Protocol):
    """What runs an operation at once."""

    context: FlowContext

    def run(self, flow: Flow[T]) -> T:
        """Run an operation and return its result."""


class AsyncPerformer(Protocol):
    """What runs an operation in an event loop."""

    context: FlowContext

    def run(self, flow: Flow[T]) -> Awaitable[T]:
        """Run an operation and return its result."""


class Resource:
    """Something that operations are about.

    :param client: carries them out
    """

    def __init__(self, client: Performer) -> None:
        self._client = client


class AsyncResource:
    """Something that awaitable operations are about.

    :param client: carries them out
    """

    def __init__(self, client: AsyncPerformer) -> None:
        self._client = client


def _method(operation: Operation[P, T]) -> Callable[Concatenate[Resource, P], T]:
    def perform(self: Resource, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._client.run(operation(self._client.context, *args, **kwargs))

    update_wrapper(perform, operation)
    return perform


def _awaitable_method(operation: Operation[P, T]) -> Callable[Concatenate[AsyncResource, P], Awaitable[T]]:
    def perform(self: AsyncResource, /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        return self._client.run(operation(self._client.context, *args, **kwargs))

    update_wrapper(perform, operation)
    return perform


class Workflows(Resource):
    """Workflows. Every method raises `TechFlowError` in one of its kinds."""

    list = _method(operations.list_workflows)
    get = _method(operations.get_workflow)
    create = _method(operations.create_workflow)
    update = _method(operations.update_workflow)
    delete = _method(operations.delete_workflow)
    execute = _method(operations.start_execution)


class Executions(Resource):
    """The execution history. Every method raises `TechFlowError` in one of its kinds."""

    list = _method(operations.list_executions)
    get = _method(operations.get_execution)
    wait = _method(operations.wait_for_execution)
    poll = _method(operations.poll_history)


class AsyncWorkflows(AsyncResource):
    """Like `Workflows`, with awaitable methods."""

    list = _awaitable_method(operations.list_workflows)
    get = _awaitable_method(operations.get_workflow)
    create = _awaitable_method(operations.create_workflow)
    update = _awaitable_method(operations.update_workflow)
    delete = _awaitable_method(operations.delete_workflow)
    execute = _awaitable_method(operations.start_execution)


class AsyncExecutions(AsyncResource):
    """Like `Executions`, with awaitable methods."""

    list = _awaitable_method(operations.list_executions)
    get = _awaitable_method(operations.get_execution)
    wait = _awaitable_method(operations.wait_for_execution)
    poll = _awaitable_method(operations.poll_history)


# A body above this many bytes is read in a thread, so that parsing it does not hold up the event loop.
LARGE_BODY_BYTES = 256 * 1024


def _http_options(settings: Settings) -> dict[str, Any]:
    # The time-outs travel with each request, and redirects are not followed: the key must not go elsewhere.
    return {"verify": settings.ssl_context(), "proxy": settings.proxy, "follow_redirects": False}


def _body(settings: Settings, clock: Callable[[], float]) -> Body:
    return Body(settings.max_response_bytes, settings.response_seconds, clock)


class _SyncIO:
    """An `IO` none of whose methods suspends.

    :param settings: bounds of a response
    :param http: sends requests
    :param clock: monotonic seconds
    :param sleep: how to wait
    """

    def __init__(
        self,
        settings: Settings,
        http: httpx.Client,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._settings = settings
        self._http = http
        self._clock = clock
        self._sleep = sleep

    async def send(self, call: Call[Any], request: httpx.Request) -> Outcome:
        body = _body(self._settings, self._clock)
        try:
            response = self._http.send(request, stream=True)
            try:
                for chunk in response.iter_bytes():
                    body.add(chunk)
            finally:
                response.close()
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            return transport_error(str(call), error)
        return body.of(response)

    async def sleep(self, seconds: float) -> None:
        self._sleep(seconds)

    async def use_state(self, act: Callable[[], T]) -> T:
        return act()

    async def decode(self, _: httpx.Response, read: Callable[[], T]) -> T:
        return read()


class _AsyncIO:
    """The `IO` of an event loop.

    :param settings: bounds of a response
    :param http: sends requests
    :param clock: monotonic seconds
    :param sleep: how to wait
    """

    def __init__(
        self,
        settings: Settings,
        http: httpx.AsyncClient,
        clock: Callable[[], float],
        sleep: Callable[[float], Coroutine[Any, Any, None]],
    ) -> None:
        self._settings = settings
        self._http = http
        self._clock = clock
        self._sleep = sleep
        # State that processes share is used in one thread, so that its store never holds up the loop.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="techflow-state")

    async def send(self, call: Call[Any], request: httpx.Request) -> Outcome:
        body = _body(self._settings, self._clock)
        try:
            response = await self._http.send(request, stream=True)
            try:
                async for chunk in response.aiter_bytes():
                    body.add(chunk)
            finally:
                await response.aclose()
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            return transport_error(str(call), error)
        return body.of(response)

    async def sleep(self, seconds: float) -> None:
        await self._sleep(seconds)

    async def use_state(self, act: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, act)

    async def decode(self, response: httpx.Response, read: Callable[[], T]) -> T:
        return await asyncio.to_thread(read) if len(response.content) > LARGE_BODY_BYTES else read()

    def close(self) -> None:
        self._thread.shutdown(wait=False)


class Client:
    """TechFlow for plain, synchronous Python.

    >>> client = Client(api_key="your_key")
    >>> workflows = client.workflows.list()

    :param api_key: the API key (Authentication)
    :param base_url: base URL of the API (Base URL)
    :param settings: all settings at once, in place of the key and the URL
    :param budget: the rate budget; a new one for this client alone when none is given
    :param retry: when to send a call again
    :param transport: an httpx transport, such as the sandbox's
    :param clock: monotonic seconds
    :param sleep: how to wait
    :raises InvalidParameterError: a setting can't be used
    """

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
    ) -> None:
        self.settings = settings or Settings(api_key, base_url)
        self.budget = budget or LocalBudget()
        self._http = httpx.Client(transport=transport, **_http_options(self.settings))
        io = _SyncIO(self.settings, self._http, clock, sleep)
        self.context = FlowContext(self.settings, io, self.budget, retry or RetryPolicy(), clock, random.random)
        self.workflows = Workflows(self)
        self.executions = Executions(self)

    def send(self, call: Call[T]) -> T:
        """Carry out one call.

        :raises TechFlowError: every way in which it can fail
        """
        return self.run(exchange(call, self.context))

    def collect(self, call: Call[Page[T]]) -> list[T]:
        """Carry out a call that lists, with all its pages.

        :raises TechFlowError: every way in which it can fail
        """
        return self.run(collect(call, self.context))

    def run(self, flow: Flow[T]) -> T:
        """Run an operation and return its result."""
        try:
            flow.send(None)
        except StopIteration as end:
            result: T = end.value
            return result
        flow.close()
        raise RuntimeError("a flow of a synchronous client has waited for something other than its IO")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self.settings.base_url!r})"

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """TechFlow for asyncio; like `Client`, with awaitable methods.

    :param api_key: the API key (Authentication)
    :param base_url: base URL of the API (Base URL)
    :param settings: all settings at once, in place of the key and the URL
    :param budget: the rate budget; a new one for this client alone when none is given
    :param retry: when to send a call again
    :param transport: an asynchronous httpx transport, such as the sandbox's
    :param clock: monotonic seconds
    :raises InvalidParameterError: a setting can't be used
    """

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
    ) -> None:
        self.settings = settings or Settings(api_key, base_url)
        self.budget = budget or LocalBudget()
        self._http = httpx.AsyncClient(transport=transport, **_http_options(self.settings))
        self._io = _AsyncIO(self.settings, self._http, clock, sleep)
        self.context = FlowContext(self.settings, self._io, self.budget, retry or RetryPolicy(), clock, random.random)
        self.workflows = AsyncWorkflows(self)
        self.executions = AsyncExecutions(self)

    async def send(self, call: Call[T]) -> T:
        """Carry out one call.

        :raises TechFlowError: every way in which it can fail
        """
        return await self.run(exchange(call, self.context))

    async def collect(self, call: Call[Page[T]]) -> list[T]:
        """Carry out a call that lists, with all its pages.

        :raises TechFlowError: every way in which it can fail
        """
        return await self.run(collect(call, self.context))

    async def run(self, flow: Flow[T]) -> T:
        """Run an operation and return its result."""
        return await flow

    async def use_state(self, act: Callable[[], T]) -> T:
        """Use the budget, or what else is kept in its store, in the one thread that may wait for it."""
        return await self._io.use_state(act)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self.settings.base_url!r})"

    async def aclose(self) -> None:
        """Close the connections."""
        self._io.close()
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
