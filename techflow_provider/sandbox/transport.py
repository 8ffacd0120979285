"""The sandbox in-process: an httpx transport whose faults raise what a real socket would make httpx raise.

No real time passes: what a request waits for is added to a manual clock, and a wait beyond the read time-out raises.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Generator, Iterator

import httpx

from techflow_provider.sandbox.clock import Clock
from techflow_provider.sandbox.messages import Delivery, Pause, Request

Handle = Callable[[Request], Generator[Pause, None, Delivery]]

BROKEN: dict[str, tuple[type[httpx.TransportError], str]] = {
    "reset": (httpx.ReadError, "[Errno 104] Connection reset by peer"),
    "drop": (httpx.RemoteProtocolError, "Server disconnected without sending a response."),
    "garbage": (httpx.RemoteProtocolError, "illegal status line"),
}


class SandboxTransport(httpx.MockTransport):
    """Carries httpx requests to a sandbox without a socket.

    :param handle: the sandbox's `handle`
    :param clock: the sandbox's clock
    """

    def __init__(self, handle: Handle, clock: Clock) -> None:
        super().__init__(self._respond)
        self._handle = handle
        self._clock = clock

    def _respond(self, request: httpx.Request) -> httpx.Response:
        wait = _Wait(request, self._clock)
        steps = self._handle(_read(request))
        try:
            while True:
                wait.spend(next(steps).seconds)
        except StopIteration as stop:
            delivery: Delivery = stop.value
        finally:
            steps.close()
        return _response(delivery, request, wait)


class _Wait:
    """The time that one request's transport lets pass."""

    def __init__(self, request: httpx.Request, clock: Clock) -> None:
        seconds = request.extensions.get("timeout", {}).get("read")
        self._request = request
        self._clock = clock
        # A wait for ever can't be shown in-process, so it ends like one with a time-out.
        self._longest = math.inf if seconds is None else float(seconds)

    def spend(self, seconds: float) -> None:
        if seconds < self._longest:
            self._clock.elapse(seconds)
            return
        if self._longest < math.inf:
            self._clock.elapse(self._longest)
        raise httpx.ReadTimeout("The read operation timed out", request=self._request)


class _Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that arrives as a socket would bring it."""

    def __init__(self, delivery: Delivery, request: httpx.Request, wait: _Wait) -> None:
        self._delivery = delivery
        self._request = request
        self._wait = wait

    def __iter__(self) -> Iterator[bytes]:
        received = 0
        for piece in self._delivery.pieces():
            self._wait.spend(self._delivery.pauses)
            received += len(piece)
            yield piece
        if self._delivery.missing_bytes:
            message = (
                "peer closed connection without sending complete message body "
                f"(received {received} bytes, expected {self._delivery.length})"
            )
            raise httpx.RemoteProtocolError(message, request=self._request)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


def _read(request: httpx.Request) -> Request:
    headers: dict[str, str] = {}
    for name, value in request.headers.multi_items():
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return Request(request.method, request.url.raw_path.decode("ascii"), headers, request.content)


def _response(delivery: Delivery, request: httpx.Request, wait: _Wait) -> httpx.Response:
    answer = delivery.answer
    if answer is None:
        kind, message = BROKEN[delivery.broken]
        raise kind(message, request=request)
    headers = {**answer.headers, "content-length": str(delivery.length)}
    return httpx.Response(answer.status, headers=headers, stream=_Body(delivery, request, wait), request=request)
