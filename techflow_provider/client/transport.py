"""Between httpx and the client: read a response within limits, and explain why there is none."""

from __future__ import annotations

import io
import os
import sys
import zlib
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Generic, TypeVar

import httpx

from techflow_provider.client.errors import ResponseSizeError, TransportError, forget_frames
from techflow_provider.client.parsing import shorten
from techflow_provider.client.settings import Settings

T = TypeVar("T")

# With these the request was never written, so a retry is safe.
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)
EXPLANATIONS: tuple[tuple[type[Exception], str], ...] = (
    (httpx.ConnectTimeout, "no connection within the timeout"),
    (httpx.PoolTimeout, "no free connection within the timeout"),
    (httpx.WriteTimeout, "the request could not be written within the timeout"),
    (httpx.ReadTimeout, "no response within the timeout"),
    (httpx.ConnectError, "no connection"),
    (httpx.ProxyError, "the proxy refused the request"),
    (httpx.ReadError, "the connection broke while the response was read"),
    (httpx.WriteError, "the connection broke while the request was written"),
    (httpx.RemoteProtocolError, "the server violated HTTP or closed the connection before it responded"),
    (zlib.error, "the response's content encoding is invalid"),
)
# So much is decompressed at once.
PIECE_BYTES = 64 * 1024
# Decompresses gzip and zlib, whichever it is.
GZIP_OR_ZLIB = zlib.MAX_WBITS | 32


class ResponseLimitError(Exception):
    """A response is slower than the settings allow, or compressed in a way that can't be bounded."""


class ResponseSizeLimitError(ResponseLimitError):
    """A response is larger than the settings allow."""


# Httpx lets a few kinds of ValueError pass.
SEND_ERRORS: tuple[type[Exception], ...] = (
    httpx.HTTPError,
    httpx.StreamError,
    httpx.InvalidURL,
    ResponseLimitError,
    ValueError,
    zlib.error,
    # A SOCKS proxy that sends anything.
    AssertionError,
)


def send_errors() -> tuple[type[Exception], ...]:
    """Return all that sending a request and reading its response can raise."""
    socks: Any = sys.modules.get("socksio")
    return (*SEND_ERRORS, socks.SOCKSError) if socks else SEND_ERRORS


class PerProcess(Generic[T]):
    """A value of which each process has its own, since processes that fork must not share sockets and threads.

    :param make: makes it, at once and in each process that uses it later
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._value, self._pid = make(), os.getpid()

    def get(self) -> T:
        """Return the value of this process."""
        if self._pid != os.getpid():
            self._value, self._pid = self._make(), os.getpid()
        return self._value

    def end(self, close: Callable[[T], object]) -> None:
        """Close the value if this process has made it."""
        if self._pid == os.getpid():
            close(self._value)


class Exchange:
    """One request and the body of its response while it is read.

    :param settings: limits of the body's size, as received and decompressed, and of the time to its last byte
    :param clock: monotonic seconds
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._began = clock()
        self._content = io.BytesIO()
        self._received = 0
        self._response: httpx.Response | None = None
        self._decompress: Any = None
        self._is_written: bool | None = None

    def trace(self, event: str, details: Mapping[str, Any]) -> None:
        """Observe httpx: a request to open a tunnel through a proxy isn't the request yet."""
        is_request = event.endswith("send_request_headers.started") and details["request"].method != b"CONNECT"
        self._is_written = bool(self._is_written) or is_request

    async def trace_async(self, event: str, details: Mapping[str, Any]) -> None:
        """Observe httpx in an event loop."""
        self.trace(event, details)

    def begin(self, response: httpx.Response) -> bool:
        """Take the response, and return whether its body is still to be received.

        :raises ResponseLimitError: its body is compressed several times, or in an unknown way
        """
        self._response = response
        if response.is_stream_consumed:
            self._append(response.content)
            return False
        coding = response.headers.get("content-encoding", "").strip().lower()
        if coding in ("gzip", "x-gzip", "deflate"):
            self._decompress = zlib.decompressobj(GZIP_OR_ZLIB)
        elif coding not in ("", "identity"):
            raise ResponseLimitError(f"the response has the content coding {shorten(coding, 40)!r}, not gzip")
        return True

    def add(self, chunk: bytes) -> None:
        """Append the next chunk as it was received.

        :raises ResponseLimitError: the body is too large, or takes too long
        """
        self._received += len(chunk)
        self._check(self._received)
        while self._decompress is not None and not self._decompress.eof:
            piece = self._decompress.decompress(chunk, PIECE_BYTES)
            self._append(piece)
            chunk = self._decompress.unconsumed_tail
            if not chunk and len(piece) < PIECE_BYTES:
                return
        if self._decompress is None:
            self._append(chunk)

    def _append(self, piece: bytes) -> None:
        self._content.write(piece)
        self._check(self._content.tell())

    def _check(self, size: int) -> None:
        if size > self._settings.max_response_bytes:
            raise ResponseSizeLimitError(
                f"the response is larger than the limit of {self._settings.max_response_bytes} bytes"
            )
        if self._clock() - self._began > self._settings.response_seconds:
            raise ResponseLimitError(
                f"the response took longer than the limit of {self._settings.response_seconds:g} s"
            )

    def complete(self) -> httpx.Response:
        """Return the response with its body, decompressed, and the time that it took."""
        if self._response is None:
            raise RuntimeError("there is no response")
        headers = httpx.Headers(self._response.headers)
        for name in ("content-encoding", "content-length", "transfer-encoding"):
            headers.pop(name, None)
        request, status, content = self._response.request, self._response.status_code, self._content.getvalue()
        whole = httpx.Response(status, headers=headers, content=content, request=request)
        whole.elapsed = timedelta(seconds=max(0.0, self._clock() - self._began))
        return whole

    def failed(self, call: str, error: Exception) -> httpx.Response | TransportError:
        """Return why there is no response, or the one that says enough without the rest of its body."""
        if self._response is not None and not self._response.is_success:
            return self.complete()
        status = self._response.status_code if self._response is not None else None
        return transport_error(call, error, status, maybe_sent=self._is_written is not False)


def transport_error(
    call: str, error: Exception, status_code: int | None = None, *, maybe_sent: bool = True
) -> TransportError:
    """Return why there is no response, and whether the request may have reached the server.

    :param status_code: what the response began with
    :param maybe_sent: False when it was observed that no request was written
    """
    message = shorten(str(error))
    explanation = next((text for kind, text in EXPLANATIONS if isinstance(error, kind)), "")
    reason = f"{explanation} ({message})" if explanation and message else explanation or message or type(error).__name__
    kind = ResponseSizeError if isinstance(error, ResponseSizeLimitError) else TransportError
    result = kind(call, reason, maybe_sent and not isinstance(error, NEVER_SENT), status_code)
    # Its frames hold the request, with the key.
    forget_frames(error)
    result.__cause__ = error
    return result
