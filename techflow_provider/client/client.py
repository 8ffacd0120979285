"""`Client` and `AsyncClient`: the only places that wait and talk.

Both perform the steps of a conversation (see `exchange`) and know nothing about what the steps are for.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar, TypeVarTuple

import httpx

from techflow_provider.client.calls import Call, Page
from techflow_provider.client.exchange import (
    Ask,
    Conversation,
    CoolDown,
    Reserve,
    Send,
    Settle,
    Sleep,
    Step,
    Terms,
    collect,
    exchange,
)
from techflow_provider.client.resources import AsyncExecutions, AsyncWorkflows, Executions, Workflows
from techflow_provider.client.retry import Outcome, RetryPolicy
from techflow_provider.client.settings import DEFAULT_BASE_URL, Settings
from techflow_provider.client.transport import Body, transport_error
from techflow_provider.state.budget import Budget, LocalBudget

Ts = TypeVarTuple("Ts")
T = TypeVar("T")

# A body above this many bytes is read in a thread, so that parsing it does not hold up the event loop.
LARGE_BODY_BYTES = 256 * 1024


class _Session:
    """What the two clients have in common: settings, budget, and the steps that need no waiting."""

    def __init__(
        self,
        settings: Settings,
        budget: Budget | None,
        retry: RetryPolicy | None,
        clock: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.budget = budget or LocalBudget()
        self.terms = Terms(settings, retry or RetryPolicy(), clock, random.random)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self.settings.base_url!r})"

    def _http_options(self) -> dict[str, Any]:
        # The time-outs travel with each request, and redirects are not followed: the key must not go elsewhere.
        return {"verify": self.settings.ssl_context(), "proxy": self.settings.proxy, "follow_redirects": False}

    def _ask_state(self, step: Reserve | CoolDown | Settle | Ask) -> Any:
        match step:
            case Ask():
                return step.perform()
            case Reserve(request_class, within_seconds, earlier):
                return self.budget.reserve(request_class, within_seconds, earlier)
            case CoolDown(seconds, reservation):
                return self.budget.cool_down(seconds, reservation)
            case Settle(reservation):
                return self.budget.settle(reservation)

    def _body(self) -> Body:
        return Body(self.settings.max_response_bytes, self.settings.response_seconds, self.terms.clock)


class Client(_Session):
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
        super().__init__(settings or Settings(api_key, base_url), budget, retry, clock)
        self._sleep = sleep
        self._http = httpx.Client(transport=transport, **self._http_options())
        self.workflows = Workflows(self)
        self.executions = Executions(self)

    def send(self, call: Call[T]) -> T:
        """Carry out one call.

        :raises TechFlowError: every way in which it can fail
        """
        return self.converse(exchange(call, self.terms))

    def collect(self, call: Call[Page[T]]) -> list[T]:
        """Carry out a call that lists, with all its pages.

        :raises TechFlowError: every way in which it can fail
        """
        return self.converse(collect(call, self.terms))

    def converse(self, conversation: Conversation[T]) -> T:
        """Perform the steps of a conversation and return what it comes to."""
        try:
            step = next(conversation)
            while True:
                step = conversation.send(self._perform(step))
        except StopIteration as end:
            result: T = end.value
            return result

    def _perform(self, step: Step) -> Any:
        match step:
            case Send(call, request):
                return self._send(call, request)
            case Sleep(seconds):
                return self._sleep(seconds)
            case _:
                return self._ask_state(step)

    def _send(self, call: Call[Any], request: httpx.Request) -> Outcome:
        body = self._body()
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

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(_Session):
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
    ) -> None:
        super().__init__(settings or Settings(api_key, base_url), budget, retry, clock)
        self._http = httpx.AsyncClient(transport=transport, **self._http_options())
        # State that processes share is asked in one thread, so that its store never holds up the loop.
        self._asking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="techflow-state")
        self.workflows = AsyncWorkflows(self)
        self.executions = AsyncExecutions(self)

    async def send(self, call: Call[T]) -> T:
        """Carry out one call.

        :raises TechFlowError: every way in which it can fail
        """
        return await self.converse(exchange(call, self.terms))

    async def collect(self, call: Call[Page[T]]) -> list[T]:
        """Carry out a call that lists, with all its pages.

        :raises TechFlowError: every way in which it can fail
        """
        return await self.converse(collect(call, self.terms))

    async def converse(self, conversation: Conversation[T]) -> T:
        """Perform the steps of a conversation and return what it comes to."""
        answer: Any = None
        while True:
            ended, result = await _advance(conversation, answer)
            if ended:
                outcome: T = result
                return outcome
            answer = await self._perform(result)

    async def _perform(self, step: Step) -> Any:
        match step:
            case Send(call, request):
                return await self._send(call, request)
            case Sleep(seconds):
                return await asyncio.sleep(seconds)
            case Reserve() | CoolDown() | Settle() if isinstance(self.budget, LocalBudget):
                return self._ask_state(step)
            case _:
                return await self.ask(self._ask_state, step)

    async def ask(self, question: Callable[[*Ts], T], *args: *Ts) -> T:
        """Ask the budget, or what else is kept in its store, in the one thread that may wait for it."""
        return await asyncio.get_running_loop().run_in_executor(self._asking, question, *args)

    async def _send(self, call: Call[Any], request: httpx.Request) -> Outcome:
        body = self._body()
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

    async def aclose(self) -> None:
        """Close the connections."""
        self._asking.shutdown(wait=False)
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def _advance(conversation: Conversation[Any], answer: Any) -> tuple[bool, Any]:
    """Return whether a conversation has ended, and its result or else its next step.

    A StopIteration can't leave a thread or a coroutine, so the end is told by a value.
    """

    def advance() -> tuple[bool, Any]:
        try:
            return False, conversation.send(answer)
        except StopIteration as end:
            return True, end.value

    if isinstance(answer, httpx.Response) and len(answer.content) > LARGE_BODY_BYTES:
        return await asyncio.to_thread(advance)
    return advance()
