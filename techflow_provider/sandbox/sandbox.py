"""The sandbox as a whole: authentication, rate limit, faults and the log of requests around the app."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from email.utils import format_datetime

import httpx

from techflow_provider.sandbox import app, control
from techflow_provider.sandbox.faults import Fault, Faults
from techflow_provider.sandbox.limits import Window, window
from techflow_provider.sandbox.messages import ApiError, Request, Response, matches
from techflow_provider.sandbox.settings import SettingError
from techflow_provider.sandbox.sockets import serve
from techflow_provider.sandbox.state import State
from techflow_provider.sandbox.transport import SandboxTransport
from techflow_provider.sandbox.webhooks import WebhookDelivery, WebhookQueue, Webhooks

DOCUMENTED_BASE_URL = "https://api.techflow.com/v2"
# About 20 MB; the counters include older requests.
MAX_RECORDS = 100_000


@dataclass(slots=True)
class Record:
    """One request that arrived; contains no key, header or body.

    :param at: when it arrived
    :param method: HTTP method
    :param path: path below the base URL, percent-encoded, without the query
    :param key_accepted: whether its key is one of the sandbox's
    :param status: the status code of the response; None while there is none, or if none was sent
    """

    at: datetime
    method: str
    path: str
    key_accepted: bool
    status: int | None = None


@dataclass(kw_only=True, eq=False)
class Sandbox(State):
    """A local TechFlow; its further parameters are those of `Settings`. Safe to use from many threads.

    `sandbox.transport()` serves httpx clients in-process, `sandbox.serve()` over a socket.

    >>> sandbox = Sandbox(api_keys=("key",))
    >>> workflow_id = sandbox.add_workflow("Nightly report")
    >>> client = Client("key", base_url=sandbox.base_url, transport=sandbox.transport())

    :param webhooks: where webhooks are sent while the sandbox is served; can be changed at any time
    """

    webhooks: Webhooks | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.base_url = DOCUMENTED_BASE_URL
        self.on_request: Callable[[Record], None] = lambda _: None

    def reset(self) -> None:
        """Return to the initial state: forget workflows, executions, plans, faults, requests and rate limits."""
        with self._lock:
            super().reset()
            self.faults: Faults = Faults(self.seed)
            self._records: deque[Record] = deque(maxlen=MAX_RECORDS)
            self._counts: Counter[tuple[str, str, int | None]] = Counter()
            self._webhook_queue = WebhookQueue(self.seed)
            self._windows: dict[str, Window] = {}
            self._origin = self.clock.monotonic()

    @property
    def deliveries(self) -> tuple[WebhookDelivery, ...]:
        """The latest webhooks that were sent or lost, in the order in which they were completed."""
        with self._lock:
            return tuple(self._webhook_queue.completed)

    def due_webhooks(self) -> list[tuple[Webhooks, WebhookDelivery]]:
        """Remove and return the webhooks that are due, for the sender."""
        with self._lock:
            events = self.events_from(self._webhook_queue.seen)
            return self._webhook_queue.due(self.webhooks, events, self.clock.monotonic())

    def complete_webhook(self, delivery: WebhookDelivery) -> None:
        """Keep the result of a webhook, for the sender."""
        with self._lock:
            self._webhook_queue.completed.append(delivery)

    @property
    def requests(self) -> tuple[Record, ...]:
        """The latest requests below the base URL, in the order of arrival."""
        with self._lock:
            return tuple(self._records)

    def count(self, method: str | None = None, path: str | None = None, status: int | None = None) -> int:
        """Return the number of requests with a method, a path and a status; None matches all.

        :param path: a path below the base URL; `*` matches one part of it, `**` any number of parts
        """
        return sum(
            number
            for request_method, request_path, request_status, number in self.counts()
            if (status is None or status == request_status) and matches(method, path, request_method, request_path)
        )

    def counts(self) -> tuple[tuple[str, str, int | None, int], ...]:
        """Return each method, path and status that occurred, with the number of requests."""
        with self._lock:
            return tuple((*kind, number) for kind, number in sorted(self._counts.items(), key=str) if number)

    def transport(self) -> httpx.MockTransport:
        """Return a transport for `httpx.Client` and `httpx.AsyncClient` that reaches the sandbox in-process."""
        return SandboxTransport(self.handle, self.clock)

    def serve(self, host: str = "127.0.0.1", port: int = 0) -> AbstractContextManager[str]:
        """Serve over a socket while the context is open; it yields the base URL, which is also in `base_url`.

        :param port: 0 selects a free one
        :raises OSError: the port is in use
        """
        return serve(self, host, port)

    def handle(self, request: Request) -> Generator[float, None, Response]:
        """Handle one request; each number it yields is a time in seconds for which the transport has to wait."""
        if control.is_special(request):
            return self.dated(_respond(lambda: control.respond(self, request)))
        key = self._accepted_key(request)
        with self._lock:
            record = Record(self.clock.now(), request.method, request.path, key is not None)
            self._records.append(record)
            self._counts[record.method, record.path, None] += 1
            rejection = self._rejection(key)
            fault = None if rejection else self.faults.draw(request.method, request.path)
        response = rejection or (yield from self._act_with(fault, request))
        with self._lock:
            record.status = response.status
            self._counts[record.method, record.path, None] -= 1
            self._counts[record.method, record.path, record.status] += 1
        self.on_request(record)
        return self.dated(response)

    def _accepted_key(self, request: Request) -> str | None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        return key if scheme == "Bearer" and key in self.api_keys else None

    def _rejection(self, key: str | None) -> Response | None:
        if key is None:
            message = "the header must be Authorization: Bearer, followed by a valid API key"
            return ApiError(401, message, {"www-authenticate": "Bearer"}).response()
        if key not in self._windows:
            self._windows[key] = window(self.algorithm, self.limit, self.period_seconds, self.burst, self._origin)
        wait = self._windows[key].admit(self.clock.monotonic())
        return self._rate_limited(wait) if wait > 0 else None

    def _rate_limited(self, wait: float) -> Response:
        headers = {"retry-after": str(math.ceil(wait))}
        if self.retry_after == "date":
            # A date has no fractions, so the next full second is the first that is late enough.
            at = self.clock.now() + timedelta(seconds=wait + 1)
            headers = {"retry-after": format_datetime(at, usegmt=True)}
        message = f"more than {self.limit} requests in {self.period_seconds:g} seconds"
        return ApiError(429, message, headers if self.retry_after else None).response()

    def _act_with(self, fault: Fault | None, request: Request) -> Generator[float, None, Response]:
        if fault is None:
            return self._act(request)
        if fault.kind != "hang":
            return fault.apply(self._act(request) if fault.acts else Response(200))
        if not fault.acts:
            yield fault.hang_seconds
        response = self._act(request)
        if fault.acts:
            yield fault.hang_seconds
        return response

    def _act(self, request: Request) -> Response:
        with self._lock:
            return _respond(lambda: app.respond(self, request))

    def dated(self, response: Response) -> Response:
        """Return a response with the Date header that every response has."""
        return replace(response, headers={**response.headers, "date": format_datetime(self.clock.now(), usegmt=True)})


def _respond(act: Callable[[], Response]) -> Response:
    """Return what an action returns, or the response to a request that it rejects."""
    try:
        return act()
    except ApiError as error:
        return error.response()
    except SettingError as error:
        return ApiError(400, str(error)).response()
    except KeyError as error:
        return ApiError(404, f"{error.args[0]!r} doesn't exist").response()
