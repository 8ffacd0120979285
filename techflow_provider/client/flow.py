"""How a call is carried out, for both clients: admission, request, retry, paging, reading the response.

Everything here is a coroutine over `IO`, whose few methods are all that can wait. `Client` runs a coroutine at once,
since none of its methods suspends; `AsyncClient` awaits it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

import httpx

from techflow_provider import __version__
from techflow_provider.client.calls import Call, Page, next_page
from techflow_provider.client.errors import (
    BadRequestError,
    BudgetTimeoutError,
    NotFoundError,
    RateLimitError,
    ResponseError,
    ServerError,
    TechFlowError,
    UnauthorizedError,
    UnexpectedResponseError,
)
from techflow_provider.client.paging import ConditionalCache
from techflow_provider.client.parsing import DecodeError, find, parse_json, quote, shorten
from techflow_provider.client.retry import Outcome, RetryPolicy, is_rate_limited
from techflow_provider.client.settings import Settings
from techflow_provider.state.budget import Budget, Reservation

T = TypeVar("T")

log = logging.getLogger(__name__)

MAX_PAGES = 50
# A wait for the budget that is shorter than this is not worth a line in the log.
TOLD_WAIT_SECONDS = 1.0
STANDARD_HEADERS = {
    "accept": "application/json",
    "accept-encoding": "gzip, deflate",
    "user-agent": f"airflow-provider-techflow/{__version__}",
}
ERRORS: dict[int, type[ResponseError]] = {
    400: BadRequestError,
    401: UnauthorizedError,
    404: NotFoundError,
    429: RateLimitError,
}


# What an operation returns before it is run.
Flow: TypeAlias = Coroutine[Any, Any, T]


class IO(Protocol):
    """All that a flow can wait for."""

    async def send(self, call: Call[Any], request: httpx.Request) -> Outcome:
        """Send one request and return its response, or why there is none."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    async def use_state(self, act: Callable[[], T]) -> T:
        """Run an operation on the state that processes share, where it may block.

        :raises StoreError: the operation raised it
        """

    async def decode(self, response: httpx.Response, read: Callable[[], T], /) -> T:
        """Run what reads a response, where it may take its time."""


def utc_now() -> datetime:
    """Return this host's clock."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class FlowContext:
    """What a conversation is carried out under.

    :param settings: key, base URL and bounds
    :param io: what can wait
    :param budget: the rate budget
    :param retry: when to send again
    :param clock: monotonic seconds
    :param random: numbers from 0 to 1
    :param now: this host's clock, of which only differences are used
    :param admission_seconds: how long a request waits for its slot in the rate budget, within the call's deadline
    """

    settings: Settings
    io: IO = field(repr=False)
    budget: Budget = field(repr=False)
    retry: RetryPolicy
    clock: Callable[[], float]
    random: Callable[[], float]
    admission_seconds: float = math.inf
    now: Callable[[], datetime] = utc_now


async def exchange(call: Call[T], context: FlowContext) -> T:
    """Carry out one call: admission, request, repetition where it is safe, and the answer's reading.

    :raises TechFlowError: every way in which it can fail
    """
    deadline = context.clock() + context.settings.deadline_seconds
    request = build_request(call, context.settings)
    outcome: Outcome | None = None
    sent = refused = 0
    while True:
        reservation = await _admission(call, deadline, context)
        if isinstance(reservation, BudgetTimeoutError):
            raise _failure(call, outcome, sent, context.settings) if outcome is not None else reservation
        outcome = await context.io.send(call, request)
        sent += 1
        refused += is_rate_limited(outcome)
        delay = await _delay(call, outcome, reservation, sent - refused, context)
        if delay is None or context.clock() + delay > deadline:
            return await _result(call, outcome, sent, context)
        if not is_rate_limited(outcome):
            await context.io.sleep(delay)


async def collect(call: Call[Page[T]], context: FlowContext, memory: ConditionalCache[T] | None = None) -> list[T]:
    """Carry out a call that lists, page after page, and return all items.

    :param memory: the pages of the last time; those that the server says are unchanged come without items
    :raises TechFlowError: every way in which it can fail, more than 50 pages among them
    """
    return [item for page in (await pages(call, context, memory)) for item in page.items]


async def pages(call: Call[Page[T]], context: FlowContext, memory: ConditionalCache[T] | None = None) -> list[Page[T]]:
    """Carry out a call that lists, and return its pages.

    :param memory: as in `collect`
    :raises TechFlowError: every way in which it can fail, more than 50 pages among them
    """
    current = call
    read: list[Page[T]] = []
    for _ in range(MAX_PAGES):
        url = url_of(current, context.settings)
        page = await exchange(memory.conditional(current, url) if memory else current, context)
        if memory:
            memory.note(url, page)
        read.append(page)
        try:
            following = next_page(current, page, url)
        except DecodeError as error:
            source = (page.next_url or "").encode(errors="replace")
            detail = _without_key(str(error), error.received, source, context.settings)
            # Not chained: the cause quotes the answer as it came.
            raise UnexpectedResponseError(str(call), httpx.codes.OK, detail) from None
        if following is None:
            return read
        current = following
    items = sum(len(page.items) for page in read)
    detail = f"expected at most {MAX_PAGES} pages, got a link to a further one after {items} items"
    raise UnexpectedResponseError(str(call), httpx.codes.OK, detail)


async def _admission(call: Call[T], deadline: float, context: FlowContext) -> Reservation | BudgetTimeoutError:
    earlier: Reservation | None = None
    latest = min(deadline, context.clock() + context.admission_seconds)
    while True:
        left = max(0.0, latest - context.clock())
        reservation = await context.io.use_state(partial(context.budget.reserve, call.request_class, left, earlier))
        if not reservation.granted:
            return BudgetTimeoutError(str(call), reservation.wait_seconds, left)
        if reservation.may_send:
            return reservation
        if reservation.wait_seconds >= TOLD_WAIT_SECONDS and (earlier is None or earlier.reason != reservation.reason):
            log.info("%s waits %.1f s for its turn: %s", call, reservation.wait_seconds, reservation.reason)
        await context.io.sleep(reservation.wait_seconds)
        earlier = reservation


async def _delay(
    call: Call[T], outcome: Outcome, reservation: Reservation, attempt: int, context: FlowContext
) -> float | None:
    """Return how long to wait before the next request, or None for never; after a 429 the budget makes all wait."""
    if is_rate_limited(outcome):
        asked = context.retry.asked_seconds(outcome)
        return await context.io.use_state(partial(context.budget.cool_down, asked, reservation))
    if reservation.probe:
        await context.io.use_state(partial(context.budget.settle, reservation))
    return context.retry.delay(call, outcome, attempt, context.random())


def url_of(call: Call[T], settings: Settings) -> str:
    """Return the absolute URL of a call."""
    return call.url or f"{settings.base_url}{call.path}"


def build_request(call: Call[T], settings: Settings) -> httpx.Request:
    """Return the HTTP request of a call, with the key in its header and nowhere else."""
    headers = httpx.Headers({**STANDARD_HEADERS, **call.headers})
    headers["authorization"] = settings.authorization
    return httpx.Request(
        call.method,
        url_of(call, settings),
        params=call.params,
        headers=headers,
        content=call.content,
        extensions={"timeout": httpx.Timeout(settings.timeout_seconds).as_dict()},
    )


async def _result(call: Call[T], outcome: Outcome, sent: int, context: FlowContext) -> T:
    if call.unchanged is not None and _is_unchanged(outcome):
        return call.unchanged
    if not isinstance(outcome, httpx.Response) or not (outcome.is_success or call.any_status):
        raise _failure(call, outcome, sent, context.settings)
    try:
        return await context.io.decode(outcome, partial(call.read, outcome, context.settings.status_words))
    except DecodeError as error:
        detail = _without_key(str(error), error.received, outcome.content, context.settings)
        # Not chained: the cause quotes the response as it came.
        raise UnexpectedResponseError(str(call), outcome.status_code, detail, sent) from None


def _is_unchanged(outcome: Outcome) -> bool:
    return isinstance(outcome, httpx.Response) and outcome.status_code == httpx.codes.NOT_MODIFIED


def _failure(call: Call[T], outcome: Outcome, sent: int, settings: Settings) -> TechFlowError:
    if not isinstance(outcome, httpx.Response):
        return outcome
    kind = ERRORS.get(outcome.status_code, ServerError if outcome.is_server_error else UnexpectedResponseError)
    words = _server_words(outcome)
    source = outcome.content + b"\n" + outcome.headers.get("location", "").encode()
    return kind(str(call), outcome.status_code, _without_key(words, words, source, settings), sent)


def _without_key(text: str, quoted: str, source: bytes, settings: Settings) -> str:
    """Return the text of an error, with nothing quoted when the key stands in what the quote is taken from.

    Shortening could have cut the key anywhere, so replacing it in the text would not be enough.
    """
    if settings.holds_key(source):
        return text.replace(quoted, "words that repeat the API key and are not shown")
    return text


def _server_words(response: httpx.Response) -> str:
    if response.has_redirect_location:
        target = shorten(repr(response.headers["location"]))
        return f"a redirect to {target}, which is not followed; set the final base URL as the connection's host"
    try:
        value = parse_json(response.content)
    except DecodeError:
        return shorten(response.text) or "no explanation"
    while isinstance(value, dict):
        inner = find(value, "error", "message", "detail", "title")
        if inner is None:
            break
        value = inner
    return (shorten(value) or "no explanation") if isinstance(value, str) else quote(value)
