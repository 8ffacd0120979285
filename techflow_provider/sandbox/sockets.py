"""The sandbox over a real socket: HTTP/1.1 with keep-alive, and one thread per connection."""

from __future__ import annotations

import ipaddress
import os
import select
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from techflow_provider.sandbox.messages import PREFIX, ApiError, Request, Response
from techflow_provider.sandbox.webhooks import WebhookSender

if TYPE_CHECKING:
    from techflow_provider.sandbox.sandbox import Sandbox

MAX_BODY_BYTES = 16 * 1024 * 1024
POLL_SECONDS = 0.05
STOP_TIMEOUT_SECONDS = 3.0
GARBAGE = b"\x00\xff\x13 this isn't HTTP \xfe\r\n\r\n"


class SandboxServer(ThreadingHTTPServer):
    """Accepts connections for a sandbox.

    :param address: host and port
    :param sandbox: handles the requests
    """

    # The number of connections that may wait to be accepted.
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.connections: set[Any] = set()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Connection)

    def server_bind(self) -> None:
        """Bind without HTTPServer's lookup of the host's name, which can take seconds."""
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a thread, and keep it until it is closed."""
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        self.connections.discard(request)
        super().shutdown_request(request)

    def stop(self) -> None:
        """Close every connection, which aborts hanging requests."""
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report an exception, unless the connection has ended."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    """One connection; it handles its requests one by one."""

    default_request_version = protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: SandboxServer

    def log_message(self, *_: Any) -> None:
        """Log nothing: the sandbox reports its requests itself."""

    def _respond(self) -> None:
        try:
            steps = self.server.sandbox.handle(self._read())
        except ApiError as error:
            self._reject(error)
            return
        try:
            while True:
                self._wait(next(steps))
        except StopIteration as stop:
            self._send(stop.value)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _respond  # noqa: N815  # http.server's names

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Reject a malformed HTTP request with one of the documented status codes."""
        reason = explain or message or "this isn't an HTTP request"
        self._reject(ApiError(404 if code == HTTPStatus.NOT_IMPLEMENTED else 400, reason))

    def _reject(self, error: ApiError) -> None:
        # The rest of this request cannot be distinguished from the next one.
        self.close_connection = True
        self._send(self.server.sandbox.dated(error.response()))

    def _read(self) -> Request:
        length = self.headers.get("content-length", "0")
        expected = f"a number up to {MAX_BODY_BYTES}, and no Transfer-Encoding"
        is_valid = length.isascii() and length.isdecimal() and len(length) <= len(str(MAX_BODY_BYTES))
        if not is_valid or int(length) > MAX_BODY_BYTES or "transfer-encoding" in self.headers:
            raise ApiError(400, f"Content-Length: received {length!r}, expected {expected}")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ApiError(400, "the body is shorter than announced")
        headers = httpx.Headers(self.headers.items(), encoding="latin-1")
        local = is_local(self.client_address[0]) and not is_from_web_page(headers)
        return Request(self.command, self.path, headers, body, local)

    def _wait(self, seconds: float) -> None:
        """Wait.

        :raises ConnectionAbortedError: the client has disconnected, or the server is stopping
        """
        # A client that waits for a response sends nothing: what can be read is the end.
        if select.select([self.connection], [], [], min(seconds, threading.TIMEOUT_MAX))[0]:
            raise ConnectionAbortedError

    def _send(self, response: Response) -> None:
        if response.status is None:
            self._break(response.broken)
            return
        self._send_head(response.status, response)
        if self.command == "HEAD":
            return
        for chunk in response.chunks():
            if response.drip_seconds:
                self._wait(response.drip_interval_seconds)
            self.wfile.write(chunk)

    def _send_head(self, status: int, response: Response) -> None:
        self.close_connection = self.close_connection or response.missing_bytes > 0
        self.send_response_only(status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(response.length))
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()

    def _break(self, broken: str) -> None:
        self.close_connection = True
        if broken == "garbage":
            self.wfile.write(GARBAGE)
        if broken == "reset":
            # Closed with a linger of 0 seconds and without a shutdown, a socket sends RST instead of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())


def is_local(host: str) -> bool:
    """Whether an address is a loopback address."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def names_this_machine(location: str) -> bool:
    """Whether a host, with or without a port, is `localhost` or a loopback address; another name may lead anywhere."""
    try:
        name = urlsplit(f"//{location}").hostname or ""
        return name == "localhost" or is_local(name)
    except ValueError:
        return False


def is_from_web_page(headers: Mapping[str, str]) -> bool:
    """Whether a browser sent a request for a web page, be it under a name of its own that leads to this machine."""
    host = headers.get("host", "localhost")
    return not names_this_machine(host) or headers.get("origin", f"http://{host}") != f"http://{host}"


@contextmanager
def serve(sandbox: Sandbox, host: str, port: int) -> Iterator[str]:
    """Serve a sandbox and send its webhooks while the context is open; it yields the base URL.

    :raises OSError: the port is in use
    """
    server = SandboxServer((host, port), sandbox)
    location = f"[{host}]" if ":" in host else host
    before, sandbox.base_url = sandbox.base_url, f"http://{location}:{server.server_address[1]}{PREFIX}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": POLL_SECONDS}, daemon=True)
    thread.start()
    sender = WebhookSender(sandbox)
    sender.start()
    try:
        yield sandbox.base_url
    finally:
        sandbox.base_url = before
        sender.stop()
        server.stop()
        thread.join(STOP_TIMEOUT_SECONDS)
