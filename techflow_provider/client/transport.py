"""Between httpx and the client: read a response within limits, and explain why there is none."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import httpx

from techflow_provider.client.errors import ResponseSizeError, TransportError
from techflow_provider.client.parsing import shorten
from techflow_provider.client.settings import Settings

# With these the request was never written, so a retry is safe.
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
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
    (httpx.DecodingError, "the response's content encoding is invalid"),
)


class ResponseLimitError(Exception):
    """A response is slower than the settings allow."""


class ResponseSizeLimitError(ResponseLimitError):
    """A response is larger than the settings allow."""


# All that reading a response can raise.
SEND_ERRORS: tuple[type[Exception], ...] = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, ResponseLimitError)


class Body:
    """The body of one response while it is read.

    :param settings: limits of its decoded size, and of the time from the request to its last byte
    :param clock: monotonic seconds
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._began = clock()
        self._content = bytearray()

    def add(self, chunk: bytes) -> None:
        """Append the next chunk.

        :raises ResponseLimitError: the body is too large, or takes too long
        """
        self._content += chunk
        if len(self._content) > self._settings.max_response_bytes:
            raise ResponseSizeLimitError(
                f"the response is larger than the limit of {self._settings.max_response_bytes} bytes"
            )
        if self._clock() - self._began > self._settings.response_seconds:
            raise ResponseLimitError(
                f"the response took longer than the limit of {self._settings.response_seconds:g} s"
            )

    def complete(self, response: httpx.Response) -> httpx.Response:
        """Return the response with its body, decoded, and the time that it took."""
        headers = httpx.Headers(response.headers)
        for name in ("content-encoding", "content-length", "transfer-encoding"):
            headers.pop(name, None)
        whole = httpx.Response(
            response.status_code, headers=headers, content=bytes(self._content), request=response.request
        )
        whole.elapsed = timedelta(seconds=max(0.0, self._clock() - self._began))
        return whole


def transport_error(call: str, error: Exception) -> TransportError:
    """Return why there is no response, and whether the request may have reached the server."""
    message = shorten(str(error))
    explanation = next((text for kind, text in EXPLANATIONS if isinstance(error, kind)), "")
    reason = f"{explanation} ({message})" if explanation and message else explanation or message or type(error).__name__
    kind = ResponseSizeError if isinstance(error, ResponseSizeLimitError) else TransportError
    result = kind(call, reason, maybe_sent=not isinstance(error, NEVER_SENT))
    result.__cause__ = error
    return result
