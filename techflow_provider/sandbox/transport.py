"""The sandbox in-process: an httpx transport whose faults raise what httpx would raise on a real socket.

No real time passes: the time that a request waits is added to a manual clock, and a wait longer than the read timeout
raises.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Generator, Iterator

import httpx

from techflow_provider.sandbox.messages import Request, Response
from techflow_provider.sandbox.settings import Clock

Handle = Callable[[Request], Generator[float, None, Response]]

BROKEN: dict[str, tuple[type[httpx.TransportError], str]] = {
    "reset": (httpx.ReadError, "[Errno 104] Connection reset by peer"),
    "drop": (httpx.RemoteProtocolError, "Server disconnected without sending a response."),
    "garbage": (httpx.RemoteProtocolError, "illegal status line"),
}


class SandboxTransport(httpx.MockTransport):
    """Passes httpx requests to a sandbox without a socket.

    :param handle: the sandbox's `handle`
    :param clock: the sandbox's clock
    """

    def __init__(self, handle: Handle, clock: Clock) -> None:
        super().__init__(self._respond)
        self._handle = handle
        self._clock = clock

    def _respond(self, request: httpx.Request) -> httpx.Response:
        timeout = _ReadTimeout(request, self._clock)
        target = request.url.raw_path.decode("ascii")
        steps = self._handle(Request(request.method, target, request.headers, request.content))
        try:
            while True:
                timeout.wait(next(steps))
        except StopIteration as stop:
            response: Response = stop.value
        if response.status is None:
            error, message = BROKEN[response.broken]
            raise error(message, request=request)
        headers = {**response.headers, "content-length": str(response.length)}
        return httpx.Response(response.status, headers=headers, stream=_Body(response, timeout), request=request)


class _ReadTimeout:
    """Lets time pass on the clock, up to the read timeout of a request."""

    def __init__(self, request: httpx.Request, clock: Clock) -> None:
        seconds = request.extensions.get("timeout", {}).get("read")
        self.request = request
        self._clock = clock
        self._seconds = math.inf if seconds is None else float(seconds)

    def wait(self, seconds: float) -> None:
        if seconds < self._seconds:
            self._clock.elapse(seconds)
            return
        # An infinite wait without a timeout cannot be simulated in-process, so it raises, too.
        if self._seconds < math.inf:
            self._clock.elapse(self._seconds)
        raise httpx.ReadTimeout("The read operation timed out", request=self.request)


class _Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that arrives as it would over a socket."""

    def __init__(self, response: Response, timeout: _ReadTimeout) -> None:
        self._response = response
        self._timeout = timeout

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._response.chunks():
            self._timeout.wait(self._response.drip_interval_seconds)
            yield chunk
        if self._response.missing_bytes:
            message = f"peer closed connection without sending {self._response.missing_bytes} bytes of the message body"
            raise httpx.RemoteProtocolError(message, request=self._timeout.request)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk
