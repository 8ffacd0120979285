"""The sandbox over a real socket: HTTP/1.1 with keep-alive, one thread per connection, and a bounded shutdown."""

from __future__ import annotations

import ipaddress
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.client import responses as reasons
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from techflow_provider.sandbox.messages import PREFIX, ApiError, Delivery, Request, join_headers
from techflow_provider.sandbox.webhooks import WebhookSender

if TYPE_CHECKING:
    from techflow_provider.sandbox.sandbox import Sandbox

MAX_BODY_BYTES = 16 * 1024 * 1024
# How often a hanging request checks whether its client is still connected.
POLL_SECONDS = 0.05
STOP_TIMEOUT_SECONDS = 3.0
GARBAGE = b"\x00\xff\x13 this isn't HTTP \xfe\r\n\r\n"


class SandboxServer(ThreadingHTTPServer):
    """Accepts connections for a sandbox.

    :param address: host and port
    :param sandbox: handles the requests
    """

    daemon_threads = True
    # The number of connections that may wait to be accepted.
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.stopping: threading.Event = threading.Event()
        self.open: dict[socket.socket, threading.Thread] = {}
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Connection)

    def server_bind(self) -> None:
        """Bind without HTTPServer's lookup of the host's name, which can take seconds."""
        TCPServer.server_bind(self)

    def stop(self) -> None:
        """Abort hanging requests, close every connection and wait for their threads, within a bounded time."""
        self.stopping.set()
        self.shutdown()
        self.server_close()
        deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
        for connection, thread in list(self.open.items()):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(max(0.0, deadline - time.monotonic()))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report an exception, unless the client has disconnected."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    """One connection; it handles its requests one by one."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: SandboxServer

    def setup(self) -> None:
        super().setup()
        self.server.open[self.connection] = threading.current_thread()
        if self.server.stopping.is_set():
            self.connection.shutdown(socket.SHUT_RDWR)

    def finish(self) -> None:
        self.server.open.pop(self.connection, None)
        super().finish()

    def log_message(self, *_: Any) -> None:
        """Log nothing: the sandbox reports its requests itself."""

    def _respond(self) -> None:
        try:
            request = self._read()
        except ApiError as error:
            self._reject(error)
            return
        steps = self.server.sandbox.handle(request)
        try:
            delivery = self._run(steps)
            if delivery is not None:
                self._send(delivery)
        except ConnectionError:
            self.close_connection = True
        finally:
            steps.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _respond  # noqa: N815  # http.server's names

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Reject a malformed HTTP request with one of the documented status codes."""
        reason = explain or message or "this isn't an HTTP request"
        self._reject(ApiError(404 if code == HTTPStatus.NOT_IMPLEMENTED else 400, reason))

    def _reject(self, error: ApiError) -> None:
        # The rest of this request cannot be distinguished from the next one.
        self.close_connection = True
        with suppress(ConnectionError):
            self._send(self.server.sandbox.with_date(Delivery(error.response())))

    def _read(self) -> Request:
        headers = join_headers(iter(self.headers.items()))
        chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        body = self._read_chunks() if chunked else self._read_exactly(_length(headers.get("content-length", "0"), 10))
        local = is_local(self.client_address[0]) and not is_from_web_page(headers)
        return Request(self.command, self.path, headers, body, local)

    def _read_exactly(self, length: int) -> bytes:
        body = self.rfile.read(length)
        if len(body) < length:
            raise ApiError(400, "the body is shorter than announced")
        return body

    def _read_chunks(self) -> bytes:
        body = b""
        while size := _length(self.rfile.readline(1024).decode("latin-1").partition(";")[0].strip(), 16):
            body += self._read_exactly(size)
            self.rfile.readline(1024)
            _length(str(len(body)), 10)
        while self.rfile.readline(65536).strip():
            pass
        return body

    def _run(self, steps: Generator[float, None, Delivery]) -> Delivery | None:
        """Return the delivery, or None if the client has disconnected or the server is stopping."""
        try:
            while self._wait(next(steps)):
                pass
        except StopIteration as stop:
            delivery: Delivery = stop.value
            return delivery
        self.close_connection = True
        return None

    def _wait(self, seconds: float) -> bool:
        """Wait, and return whether the client is still connected and the server isn't stopping."""
        until = time.monotonic() + seconds
        while (remaining := until - time.monotonic()) > 0:
            if self.server.stopping.wait(min(remaining, POLL_SECONDS)) or self._client_has_disconnected():
                return False
        return True

    def _client_has_disconnected(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        if not readable:
            return False
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _send(self, delivery: Delivery) -> None:
        if delivery.response is None:
            self._break(delivery.broken)
            return
        self.close_connection = self.close_connection or delivery.missing_bytes > 0
        chunks = iter(()) if self.command == "HEAD" else delivery.chunks()
        first = b"" if delivery.drip_seconds else next(chunks, b"")
        self.wfile.write(self._head(delivery) + first)
        for chunk in chunks:
            if delivery.drip_seconds and not self._wait(delivery.drip_interval_seconds):
                self.close_connection = True
                return
            self.wfile.write(chunk)

    def _head(self, delivery: Delivery) -> bytes:
        response = delivery.response
        assert response is not None  # noqa: S101  # broken deliveries have no head
        fields = {**response.headers, "content-length": str(delivery.length)}
        if response.status == HTTPStatus.NOT_MODIFIED:
            del fields["content-length"]
        if self.close_connection:
            fields["connection"] = "close"
        status_line = f"HTTP/1.1 {response.status} {reasons.get(response.status, 'Unknown')}"
        return "\r\n".join([status_line, *(f"{k}: {v}" for k, v in fields.items()), "", ""]).encode("latin-1")

    def _break(self, broken: str) -> None:
        self.close_connection = True
        if broken == "garbage":
            self.wfile.write(GARBAGE)
        if broken == "reset":
            # Closed with a linger of 0 seconds and without a shutdown, a socket sends RST instead of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.server.open.pop(self.connection, None)
            self.rfile.close()
            self.connection.close()


def _length(text: str, base: int) -> int:
    """Return the length of a body or chunk.

    :raises ApiError: it isn't a number, or is too large
    """
    if not text.isascii() or not text.isalnum():
        raise ApiError(400, f"{text!r} isn't the length of a body")
    try:
        length = int(text, base)
    except ValueError as error:
        raise ApiError(400, f"{text!r} isn't the length of a body") from error
    if length > MAX_BODY_BYTES:
        raise ApiError(400, f"the body is longer than {MAX_BODY_BYTES} bytes")
    return length


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
    sender = WebhookSender(sandbox.due_webhooks, sandbox.complete_webhook, sandbox.clock.now)
    sender.start()
    try:
        yield sandbox.base_url
    finally:
        sandbox.base_url = before
        sender.stop()
        server.stop()
        thread.join(STOP_TIMEOUT_SECONDS)
