"""Between httpx and the client: certificates and proxies, a response within limits, and why there is none."""

from __future__ import annotations

import io
import os
import ssl
import sys
import zlib
from collections.abc import Callable, Mapping
from datetime import timedelta
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any, Generic, TypeVar

import httpx

from techflow_provider.client.errors import InvalidParameterError, ResponseSizeError, TransportError, forget_frames
from techflow_provider.client.parsing import shorten
from techflow_provider.client.settings import Settings, is_proxy_url

T = TypeVar("T")
HttpClient = TypeVar("HttpClient", httpx.Client, httpx.AsyncClient)

# Those of requests, which the rest of Airflow uses, and those of OpenSSL.
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
# They wouldn't be sent back, and would only fill the memory.
NO_COOKIES = DefaultCookiePolicy(allowed_domains=())
SOCKS_EXTRA = "an HTTP proxy; for SOCKS, first: pip install 'airflow-provider-techflow[socks]'"

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
# How much is decompressed at a time.
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
    # What a proxy sends that does not speak SOCKS.
    AssertionError,
)


def send_errors() -> tuple[type[Exception], ...]:
    """Return all that sending a request and reading its response can raise."""
    socks: Any = sys.modules.get("socksio")
    return (*SEND_ERRORS, socks.SOCKSError) if socks else SEND_ERRORS


class PerProcess(Generic[T]):
    """A value of which each process has its own, since processes that fork must not share sockets and threads.

    :param make: makes it, at once and in each process that uses it later
    :param close: closes it
    """

    def __init__(self, make: Callable[[], T], close: Callable[[T], object] | None = None) -> None:
        self._make, self._close = make, close
        self._value, self._pid = make(), os.getpid()

    def get(self) -> T:
        """Return the value of this process."""
        if self._pid != os.getpid():
            self._value, self._pid = self._make(), os.getpid()
        return self._value

    def close(self) -> None:
        """Close the value if this process has made it."""
        if self._close is not None and self._pid == os.getpid():
            self._close(self._value)


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
        # What httpx reports of the connection, the last of each kind.
        self.events: dict[str, Mapping[str, Any]] = {}

    async def trace(self, event: str, details: Mapping[str, Any]) -> None:
        """Observe httpx in an event loop."""
        self.events[event] = details

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
        if self._decompress is None:
            self._append(chunk)
            return
        self._received += len(chunk)
        self._check(self._received)
        while not self._decompress.eof:
            piece = self._decompress.decompress(chunk, PIECE_BYTES)
            self._append(piece)
            chunk = self._decompress.unconsumed_tail
            if not chunk and len(piece) < PIECE_BYTES:
                return

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
        written = [self.events[name]["request"] for name in self.events if name.endswith("request_headers.started")]
        # A request to open a tunnel through a proxy isn't the request yet.
        maybe_sent = not self.events or any(request.method != b"CONNECT" for request in written)
        return transport_error(call, error, status, maybe_sent=maybe_sent, server=self._settings.server)


def transport_error(
    call: str, error: Exception, status_code: int | None = None, *, maybe_sent: bool = True, server: str = ""
) -> TransportError:
    """Return why there is no response, and whether the request may have reached the server.

    :param status_code: what the response began with
    :param maybe_sent: False when it was observed that no request was written
    :param server: where the request was sent
    """
    message = shorten(str(error))
    explanation = next((text for kind, text in EXPLANATIONS if isinstance(error, kind)), "")
    reason = f"{explanation} ({message})" if explanation and message else explanation or message or type(error).__name__
    kind = ResponseSizeError if isinstance(error, ResponseSizeLimitError) else TransportError
    result = kind(call, reason, maybe_sent and not isinstance(error, NEVER_SENT), status_code, server)
    # Its frames hold the request, with the key.
    forget_frames(error)
    result.__cause__ = error
    return result


def open_http(kind: type[HttpClient], settings: Settings, transport: Any = None) -> HttpClient:
    """Return a client of httpx that uses the settings and the environment, or else a transport.

    :raises InvalidParameterError: a setting or a variable of the environment can't be used
    """
    if transport is not None:
        return kind(transport=transport)
    verify = ssl_context(settings)
    # The timeouts are set on each request. Redirects are not followed: the key must not go elsewhere.
    try:
        return kind(verify=verify, proxy=settings.proxy, cookies=CookieJar(NO_COOKIES))
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        problem = _proxy_problem(settings, error)
    # Not chained: the cause may show a proxy's password.
    raise problem


def ssl_context(settings: Settings) -> ssl.SSLContext:
    """Return what verifies the server's certificate, and shows the client's.

    :raises InvalidParameterError: a file can't be read
    """
    paths = {"verify": settings.verify} if isinstance(settings.verify, str) else _certificates_in_environment()
    if paths and settings.verify:
        context = _trusting(paths)
    else:
        # Reading all the usual certificates takes longer than a request, and plain HTTP needs none.
        verify = bool(settings.verify) and settings.base_url.startswith("https:")
        context = httpx.create_ssl_context(verify=verify, trust_env=False)
    if settings.client_cert:
        try:
            # Without a password, OpenSSL would ask for one on the terminal.
            password = settings.client_key_password or ""
            context.load_cert_chain(settings.client_cert, settings.client_key, lambda: password)
        except (OSError, ValueError) as error:
            received = f"{settings.client_cert!r} with the key {settings.client_key!r} ({error})"
            expected = "files in PEM format with the certificate and its key"
            raise InvalidParameterError("client_cert", received, expected) from error
    return context


def _certificates_in_environment() -> dict[str, str]:
    return {f"environment variable {name}": value for name in CA_VARIABLES if (value := os.environ.get(name))}


def _trusting(paths: Mapping[str, str]) -> ssl.SSLContext:
    context: ssl.SSLContext | None = None
    for name, path in paths.items():
        cafile, capath = (None, path) if Path(path).is_dir() else (path, None)
        try:
            if context is None:
                context = ssl.create_default_context(cafile=cafile, capath=capath)
            else:
                context.load_verify_locations(cafile, capath)
        except (OSError, ValueError) as error:
            expected = "a file of certificates in PEM format, or a directory of them"
            raise InvalidParameterError(name, f"{path!r} ({error})", expected) from error
    return context or ssl.create_default_context()


def _proxy_problem(settings: Settings, error: Exception) -> InvalidParameterError:
    """Return what is wrong, without a value: it may have a password."""
    named = {name: value for name, value in os.environ.items() if name.lower() in PROXY_VARIABLES and value}
    values = {f"environment variable {name}": value for name, value in named.items()}
    if settings.proxy:
        values = {"proxy": settings.proxy}
    for name, value in values.items():
        scheme, separator, _ = value.partition("://")
        received = f"a URL with the scheme {scheme!r}" if separator else "an invalid URL"
        if isinstance(error, ImportError) and scheme.startswith("socks"):
            return InvalidParameterError(name, received, SOCKS_EXTRA)
        if not is_proxy_url(value if separator else f"http://{value}"):
            return InvalidParameterError(name, received, "a URL such as http://proxy.example:3128 or socks5://…")
    variable = next((name for name in os.environ if name.lower() == "no_proxy"), "NO_PROXY")
    expected = "names and addresses separated by commas, and IPv6 addresses without brackets, such as ::1"
    return InvalidParameterError(f"environment variable {variable}", repr(os.environ.get(variable)), expected)
