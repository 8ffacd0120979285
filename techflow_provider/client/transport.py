"""Between httpx and the client: collect a response within bounds, and say in words why none came."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import httpx

from techflow_provider.client.errors import ResponseSizeError, TransportError
from techflow_provider.client.parsing import shorten

# With these the request was never written, so repeating it is safe.
NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
)
WORDS: tuple[tuple[type[Exception], str], ...] = (
    (httpx.ConnectTimeout, "no connection within the time-out"),
    (httpx.PoolTimeout, "no free connection within the time-out"),
    (httpx.WriteTimeout, "the request could not be written within the time-out"),
    (httpx.ReadTimeout, "no answer within the time-out"),
    (httpx.ConnectError, "no connection"),
    (httpx.ProxyError, "the proxy refused"),
    (httpx.ReadError, "the connection broke while the answer was read"),
    (httpx.WriteError, "the connection broke while the request was written"),
    (httpx.RemoteProtocolError, "the server broke HTTP or closed the connection before it had answered"),
    (httpx.DecodingError, "the answer's content encoding is broken"),
)


class ResponseBoundError(httpx.TransportError):
    """A response is slower than the settings allow."""


class ResponseSizeBoundError(ResponseBoundError):
    """A response is larger than the settings allow."""


class Body:
    """The body of one response while it arrives.

    :param max_bytes: bound of the decoded body
    :param max_seconds: bound of the time from the request to the body's end
    :param clock: monotonic seconds
    """

    def __init__(self, max_bytes: int, max_seconds: float, clock: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._clock = clock
        self._began = clock()
        self._chunks: list[bytes] = []
        self._size = 0

    def add(self, chunk: bytes) -> None:
        """Keep the next piece.

        :raises ResponseBoundError: the body is too large, or has taken too long
        """
        self._size += len(chunk)
        if self._size > self._max_bytes:
            raise ResponseSizeBoundError(f"the answer is larger than the bound of {self._max_bytes} bytes")
        if self._clock() - self._began > self._max_seconds:
            raise ResponseBoundError(f"the answer took longer than the bound of {self._max_seconds:g} s")
        self._chunks.append(chunk)

    def of(self, response: httpx.Response) -> httpx.Response:
        """Return the response with its body, decoded, and the time that it took."""
        headers = httpx.Headers(response.headers)
        for name in ("content-encoding", "content-length", "transfer-encoding"):
            headers.pop(name, None)
        whole = httpx.Response(
            response.status_code, headers=headers, content=b"".join(self._chunks), request=response.request
        )
        whole.elapsed = timedelta(seconds=max(0.0, self._clock() - self._began))
        return whole


def transport_error(call: str, error: Exception) -> TransportError:
    """Return why no response came, and whether the request may have reached the server."""
    said = shorten(str(error))
    words = next((text for kind, text in WORDS if isinstance(error, kind)), "")
    reason = f"{words} ({said})" if words and said else words or said or type(error).__name__
    kind = ResponseSizeError if isinstance(error, ResponseSizeBoundError) else TransportError
    result = kind(call, reason, maybe_sent=not isinstance(error, NEVER_SENT))
    result.__cause__ = error
    return result
