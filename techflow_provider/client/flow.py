"""How one call is carried out, for both clients: a slot in the budget, the request, retries, reading the response.

A flow is a coroutine over `IO`, whose few methods are all that can wait. `Client` runs a flow at once, since none of
its methods suspends; `AsyncClient` awaits it.
"""

from __future__ import annotations

import logging
import math
import random
import traceback
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeAlias, TypeVar

import httpx

from techflow_provider import __version__
from techflow_provider.client.errors import (
    ERRORS_BY_STATUS,
    BudgetTimeoutError,
    InvalidParameterError,
    TechFlowError,
    UnexpectedResponseError,
)
from techflow_provider.client.parsing import LONGEST_QUOTE, DecodeError, charset_of, get_first, json_of, quote, shorten
from techflow_provider.client.retry import Outcome, RetryPolicy, is_rate_limited, quota_of
from techflow_provider.client.settings import Settings
from techflow_provider.client.text import get_logger
from techflow_provider.state.budget import Budget, RequestClass, Reservation

if TYPE_CHECKING:
    from techflow_provider.client.models import Execution
    from techflow_provider.client.reading import HistoryReader

T = TypeVar("T")

# What an operation returns before it is run.
Flow: TypeAlias = Coroutine[Any, Any, T]
Query: TypeAlias = Mapping[str, str] | tuple[tuple[str, str], ...]
Method: TypeAlias = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]

log: logging.Logger = get_logger(__name__)

UTC_NOW: Callable[[], datetime] = partial(datetime.now, UTC)
# A shorter wait for the budget isn't worth a line in the log.
LOGGED_WAIT_SECONDS = 1.0
# The documented methods that may be sent again when it is unknown whether the server acted on them.
IDEMPOTENT_METHODS = frozenset({"GET", "PUT", "DELETE"})
STANDARD_HEADERS = {
    "accept": "application/json",
    "accept-encoding": "gzip",
    "user-agent": f"airflow-provider-techflow/{__version__}",
}


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request and how to read its response.

    :param method: HTTP method
    :param path: path below the base URL, percent-encoded
    :param read: turns a 2xx response into the result, given the settings with this TechFlow's words and names; raises
        `DecodeError` for an implausible one
    :param content: the body's bytes
    :param headers: headers beside the standard ones
    :param params: the query
    :param request_class: whether it is a user's command or a poll
    :param url: an absolute URL instead of the path, for a further page
    :param any_status: whether a response other than a 2xx is read as well, instead of raised as an error
    """

    method: Method
    path: str
    read: Callable[[httpx.Response, Settings], T]
    content: bytes | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    params: Query | None = None
    request_class: RequestClass = RequestClass.COMMAND
    url: str | None = None
    any_status: bool = False

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


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

    def abandon(self, act: Callable[[], object]) -> None:
        """Run an operation on the state without waiting for it, since whoever would wait was cancelled."""

    async def decode(self, response: httpx.Response, read: Callable[[], T], /) -> T:
        """Read a response, where that may take a while."""


class StartLog(Protocol):
    """Makes known to tasks what is started without a record. No method raises an error of the store."""

    def announce(self, workflow_id: str, payload: Any) -> Any:
        """Make known that an execution may appear, and return what the other methods take."""

    def claim(self, intent: Any, execution: Execution) -> None:
        """Claim what was started."""

    def withdraw(self, intent: Any, *, had_effect: bool = False) -> None:
        """Make known that nothing was started, or that it isn't known what was."""


@dataclass(frozen=True, slots=True)
class FlowContext:
    """What a flow runs with.

    :param settings: key, base URL and limits
    :param io: all that can wait
    :param budget: the rate budget
    :param retry: when to send a request again
    :param clock: monotonic seconds
    :param random: numbers from 0 to 1
    :param admission_seconds: how long a request waits for its slot in the rate budget, within the call's deadline
    :param now: this host's clock, of which only differences are used
    :param reader: reads the execution history for several processes; None reads it for this client alone
    :param starts: where it is made known what is started with each call; None where no task could adopt it
    """

    settings: Settings
    io: IO = field(repr=False)
    budget: Budget = field(repr=False)
    retry: RetryPolicy
    clock: Callable[[], float]
    random: Callable[[], float] = random.random
    admission_seconds: float = math.inf
    now: Callable[[], datetime] = UTC_NOW
    reader: HistoryReader | None = field(default=None, repr=False)
    starts: StartLog | None = field(default=None, repr=False)


async def exchange(call: Call[T], context: FlowContext) -> T:
    """Carry out one call: wait for a slot, send, retry where that is safe, and read the response.

    :raises TechFlowError: every way in which it can fail
    """
    deadline = context.clock() + context.settings.deadline_seconds
    request = build_request(call, context.settings)
    outcome: Outcome | None = None
    sent = refused = 0
    while True:
        reservation = await _reserve(call, deadline, context)
        if isinstance(reservation, BudgetTimeoutError):
            return await _result(call, outcome or reservation, sent, context)
        outcome = await context.io.send(call, request)
        sent += 1
        if is_rate_limited(outcome):
            refused += 1
            requested = context.retry.requested_seconds(outcome)
            delay = await context.io.use_state(partial(context.budget.cool_down, requested, reservation))
            if context.clock() + delay > deadline:
                return await _result(call, outcome, sent, context)
            continue
        await _report(outcome, reservation, context)
        idempotent = call.method in IDEMPOTENT_METHODS
        wait = context.retry.delay(outcome, sent - refused, context.random(), idempotent=idempotent)
        if wait is None or context.clock() + wait > deadline:
            return await _result(call, outcome, sent, context)
        await context.io.sleep(wait)


async def _report(outcome: Outcome, reservation: Reservation, context: FlowContext) -> None:
    """Let the budget know of a request that was not rejected, where that matters to it."""
    if reservation.probe:
        await context.io.use_state(partial(context.budget.settle, reservation))
    quota = quota_of(outcome) if isinstance(outcome, httpx.Response) else None
    if quota is not None:
        await context.io.use_state(partial(context.budget.observe, quota, reservation))


@dataclass(slots=True)
class _Slot:
    """The slot that a request waits for, which is given back when the request isn't sent."""

    budget: Budget
    reservation: Reservation | None = None

    def reserve(self, request_class: RequestClass, within_seconds: float) -> Reservation:
        self.reservation = self.budget.reserve(request_class, within_seconds, self.reservation)
        return self.reservation

    def release(self) -> None:
        if self.reservation is not None:
            self.budget.release(self.reservation)


async def _reserve(call: Call[T], deadline: float, context: FlowContext) -> Reservation | BudgetTimeoutError:
    slot, result = _Slot(context.budget), None
    try:
        result = await _wait_for(slot, call, deadline, context)
        return result
    finally:
        if result is None:
            context.io.abandon(slot.release)


async def _wait_for(
    slot: _Slot, call: Call[T], deadline: float, context: FlowContext
) -> Reservation | BudgetTimeoutError:
    latest, reason = min(deadline, context.clock() + context.admission_seconds), None
    while True:
        left = max(0.0, latest - context.clock())
        reservation = await context.io.use_state(partial(slot.reserve, call.request_class, left))
        if not reservation.granted:
            return BudgetTimeoutError(str(call), reservation.wait_seconds, left)
        if reservation.may_send:
            return reservation
        if reservation.wait_seconds >= LOGGED_WAIT_SECONDS and reservation.reason != reason:
            log.info("%s waits %.1f s for a slot: %s", call, reservation.wait_seconds, reservation.reason)
        await context.io.sleep(reservation.wait_seconds)
        reason = reservation.reason


def url_of(call: Call[T], settings: Settings) -> str:
    """Return the absolute URL of a call."""
    return call.url or f"{settings.base_url}{call.path}"


def build_request(call: Call[T], settings: Settings) -> httpx.Request:
    """Return the HTTP request of a call, with the key in its header and nowhere else.

    :raises InvalidParameterError: it can't be written, such as one with a path that is too long
    """
    timeout = httpx.Timeout(settings.timeout_seconds).as_dict()
    try:
        headers = httpx.Headers({**STANDARD_HEADERS, **call.headers})
        url = httpx.URL(url_of(call, settings))
        url = url if call.params is None else url.copy_with(params=call.params)
    except (httpx.InvalidURL, TypeError, ValueError) as error:
        raise InvalidParameterError("endpoint", shorten(str(error)), "what a URL can contain") from error
    # Set last, so that it replaces one of the call's, however its name is written.
    headers["authorization"] = f"Bearer {settings.api_key}"
    return httpx.Request(call.method, url, headers=headers, content=call.content, extensions={"timeout": timeout})


async def _result(call: Call[T], outcome: Outcome | BudgetTimeoutError, sent: int, context: FlowContext) -> T:
    if not isinstance(outcome, httpx.Response):
        raise outcome
    if not (outcome.is_success or call.any_status):
        raise _failure(call, outcome, sent, context.settings)
    try:
        return await context.io.decode(outcome, partial(call.read, outcome, context.settings))
    except DecodeError as error:
        detail = context.settings.without_key(str(error), error.received, outcome.content)
    except Exception as error:  # noqa: BLE001  # see below
        # A defect in a reader costs one response, and not everything that waits for the next one.
        detail = f"it can't be read, because of a defect: {type(error).__name__} in {_origin(error)}"
    # Not chained: the cause quotes the response as it was received.
    raise UnexpectedResponseError(str(call), outcome.status_code, detail, sent)


def _origin(error: Exception) -> str:
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    return f"{frame.f_code.co_name}, line {line}"


def _failure(call: Call[T], outcome: httpx.Response, sent: int, settings: Settings) -> TechFlowError:
    kind = ERRORS_BY_STATUS.get(outcome.status_code, UnexpectedResponseError)
    message = _server_message(outcome)
    source = outcome.content + b"\n" + outcome.headers.get("location", "").encode()
    return kind(str(call), outcome.status_code, settings.without_key(message, message, source), sent)


def _server_message(response: httpx.Response) -> str:
    if response.has_redirect_location:
        target = shorten(repr(response.headers["location"]))
        return f"a redirect to {target}, which is not followed; set the final base URL as the connection's host"
    try:
        value = json_of(response)
    except DecodeError:
        charset = charset_of(response.headers.get("content-type", "")) or "utf-8"
        # An error's beginning says what it is.
        return shorten(response.content[: LONGEST_QUOTE * 4].decode(charset, errors="replace")) or "no explanation"
    while isinstance(value, dict):
        inner = get_first(value, "error", "message", "detail", "title")
        if inner is None:
            break
        value = inner
    return (shorten(value) or "no explanation") if isinstance(value, str) else quote(value)
