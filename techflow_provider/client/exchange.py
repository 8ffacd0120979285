"""How a call is carried out, without I/O: a generator yields what to do next and is sent what came of it.

A conversation yields `Reserve`, `CoolDown`, `Settle`, `Sleep`, `Send` and `Ask` steps; `Client` and `AsyncClient`
perform them. So admission, repetition, paging and reading the answer are written once for both.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar

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
from techflow_provider.client.pages import PageMemory
from techflow_provider.client.retry import Outcome, RetryPolicy, is_rate_limited
from techflow_provider.client.settings import Settings
from techflow_provider.client.shapes import ShapeError, find, parse_json, quote, shorten
from techflow_provider.state.budget import RequestClass, Reservation
from techflow_provider.state.store import StoreError

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


@dataclass(frozen=True, slots=True)
class Reserve:
    """Ask the budget for a slot; the answer is a `Reservation`, and `earlier` the last one that was waited for."""

    request_class: RequestClass
    within_seconds: float
    earlier: Reservation | None


@dataclass(frozen=True, slots=True)
class CoolDown:
    """Tell the budget that the server refused a request; the answer is the length of the pause in seconds."""

    seconds: float | None
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class Settle:
    """Tell the budget that the server took a request that was sent as a probe."""

    reservation: Reservation


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request; the answer is an `Outcome`."""

    call: Call[Any]
    request: httpx.Request


@dataclass(frozen=True, slots=True)
class Ask:
    """Carry out an operation on the state that processes share; the answer is its result, or its `StoreError`."""

    act: Callable[[], Any]

    def perform(self) -> Any:
        """Carry it out. An error is returned, since a conversation is sent answers alone."""
        try:
            return self.act()
        except StoreError as error:
            return error


Step: TypeAlias = Reserve | CoolDown | Settle | Sleep | Send | Ask
# The type of what is sent in depends on the step that was yielded, which Python's types can't express.
Conversation: TypeAlias = Generator[Step, Any, T]


def utc_now() -> datetime:
    """Return this host's clock."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a conversation is carried out under.

    :param settings: key, base URL and bounds
    :param retry: when to send again
    :param clock: monotonic seconds
    :param random: numbers from 0 to 1
    :param now: this host's clock, of which only differences are used
    :param admission_seconds: how long a request waits for its slot in the rate budget, within the call's deadline
    """

    settings: Settings
    retry: RetryPolicy
    clock: Callable[[], float]
    random: Callable[[], float]
    admission_seconds: float = math.inf
    now: Callable[[], datetime] = utc_now


def exchange(call: Call[T], terms: Terms) -> Conversation[T]:
    """Carry out one call: admission, request, repetition where it is safe, and the answer's reading.

    :raises TechFlowError: every way in which it can fail
    """
    deadline = terms.clock() + terms.settings.deadline_seconds
    request = build_request(call, terms.settings)
    outcome: Outcome | None = None
    sent = refused = 0
    while True:
        reservation = yield from _admission(call, deadline, terms)
        if isinstance(reservation, BudgetTimeoutError):
            raise _failure(call, outcome, sent, terms.settings) if outcome is not None else reservation
        outcome = yield Send(call, request)
        sent += 1
        refused += is_rate_limited(outcome)
        delay = yield from _delay(call, outcome, reservation, sent - refused, terms)
        if delay is None or terms.clock() + delay > deadline:
            return _conclude(call, outcome, sent, terms.settings)
        if not is_rate_limited(outcome):
            yield Sleep(delay)


def collect(call: Call[Page[T]], terms: Terms, memory: PageMemory[T] | None = None) -> Conversation[list[T]]:
    """Carry out a call that lists, page after page, and return all items.

    :param memory: the pages of the last time; those that the server says are unchanged come without items
    :raises TechFlowError: every way in which it can fail, more than 50 pages among them
    """
    return [item for page in (yield from pages(call, terms, memory)) for item in page.items]


def pages(call: Call[Page[T]], terms: Terms, memory: PageMemory[T] | None = None) -> Conversation[list[Page[T]]]:
    """Carry out a call that lists, and return its pages.

    :param memory: as in `collect`
    :raises TechFlowError: every way in which it can fail, more than 50 pages among them
    """
    current = call
    read: list[Page[T]] = []
    for _ in range(MAX_PAGES):
        url = url_of(current, terms.settings)
        page = yield from exchange(memory.conditional(current, url) if memory else current, terms)
        if memory:
            memory.note(url, page)
        read.append(page)
        try:
            following = next_page(current, page, url)
        except ShapeError as error:
            source = (page.next_url or "").encode(errors="replace")
            detail = _without_key(str(error), error.received, source, terms.settings)
            # Not chained: the cause quotes the answer as it came.
            raise UnexpectedResponseError(str(call), httpx.codes.OK, detail) from None
        if following is None:
            return read
        current = following
    items = sum(len(page.items) for page in read)
    detail = f"expected at most {MAX_PAGES} pages, got a link to a further one after {items} items"
    raise UnexpectedResponseError(str(call), httpx.codes.OK, detail)


def _admission(call: Call[T], deadline: float, terms: Terms) -> Conversation[Reservation | BudgetTimeoutError]:
    earlier: Reservation | None = None
    latest = min(deadline, terms.clock() + terms.admission_seconds)
    while True:
        left = max(0.0, latest - terms.clock())
        reservation: Reservation = yield Reserve(call.request_class, left, earlier)
        if not reservation.granted:
            return BudgetTimeoutError(str(call), reservation.wait_seconds, left)
        if reservation.may_send:
            return reservation
        if reservation.wait_seconds >= TOLD_WAIT_SECONDS and (earlier is None or earlier.reason != reservation.reason):
            log.info("%s waits %.1f s for its turn: %s", call, reservation.wait_seconds, reservation.reason)
        yield Sleep(reservation.wait_seconds)
        earlier = reservation


def _delay(
    call: Call[T], outcome: Outcome, reservation: Reservation, attempt: int, terms: Terms
) -> Conversation[float | None]:
    """Return how long to wait before the next request, or None for never; after a 429 the budget makes all wait."""
    if is_rate_limited(outcome):
        pause: float = yield CoolDown(terms.retry.asked_seconds(outcome), reservation)
        return pause
    if reservation.probe:
        yield Settle(reservation)
    return terms.retry.delay(call, outcome, attempt, terms.random())


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


def _conclude(call: Call[T], outcome: Outcome, sent: int, settings: Settings) -> T:
    if call.unchanged is not None and _is_unchanged(outcome):
        return call.unchanged
    if not isinstance(outcome, httpx.Response) or not (outcome.is_success or call.any_status):
        raise _failure(call, outcome, sent, settings)
    try:
        return call.read(outcome, settings.status_words)
    except ShapeError as error:
        detail = _without_key(str(error), error.received, outcome.content, settings)
        # Not chained: the cause quotes the answer as it came.
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
    except ShapeError:
        return shorten(response.text) or "no explanation"
    while isinstance(value, dict):
        inner = find(value, "error", "message", "detail", "title")
        if inner is None:
            break
        value = inner
    return (shorten(value) or "no explanation") if isinstance(value, str) else quote(value)
