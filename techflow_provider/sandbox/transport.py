"""The sandbox in-process: an httpx transport whose faults raise what httpx would raise on a real socket.

No real time passes: the time that a request waits is added to a manual clock, and a wait longer than the read timeout
raises.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass

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
        target = request.url.raw_path.decode("ascii")
        steps = self._handle(Request(request.method, target, request.headers, request.content))
        try:
            while True:
                self._wait(request, next(steps))
        except StopIteration as stop:
            response: Response = stop.value
        if response.status is None:
            error, message = BROKEN[response.broken]
            raise error(message, request=request)
        headers = {**response.headers, "content-length": str(response.length)}
        body = _Body(response, request, self._wait)
        return httpx.Response(response.status, headers=headers, stream=body, request=request)

    def _wait(self, request: httpx.Request, seconds: float) -> None:
        """Let time pass on the clock, up to the read timeout of a request."""
        limit = request.extensions.get("timeout", {}).get("read")
        passed = seconds if limit is None else min(seconds, limit)
        if passed < math.inf:
            self._clock.elapse(passed)
        # An infinite wait without a timeout cannot be simulated in-process, so it raises, too.
        if seconds == math.inf or passed == limit:
            raise httpx.ReadTimeout("The read operation timed out", request=request)


@dataclass
class _Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that arrives as it would over a socket."""

    response: Response
    request: httpx.Request
    wait: Callable[[httpx.Request, float], None]

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.response.chunks():
            self.wait(self.request, self.response.drip_interval_seconds)
            yield chunk
        if self.response.missing_bytes:
            message = f"peer closed connection without sending {self.response.missing_bytes} bytes of the message body"
            raise httpx.RemoteProtocolError(message, request=self.request)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk
