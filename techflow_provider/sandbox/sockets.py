"""The sandbox over a real socket: HTTP/1.1 with keep-alive, a thread per connection, an end within a bounded time."""

from __future__ import annotations

import ipaddress
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any

from techflow_provider.sandbox.messages import PREFIX, ApiError, Delivery, Pause, Request
from techflow_provider.sandbox.sender import Sender

if TYPE_CHECKING:
    from techflow_provider.sandbox.sandbox import Sandbox

LONGEST_BODY_BYTES = 16 * 1024 * 1024
# A hang looks this often whether its client is still there.
GLANCE_SECONDS = 0.05
LONGEST_STOP_SECONDS = 3.0
GARBAGE = b"\x00\xff\x13 this is no HTTP \xfe\r\n\r\n"


class SandboxServer(ThreadingHTTPServer):
    """Accepts connections for a sandbox.

    :param address: host and port
    :param sandbox: what answers
    """

    daemon_threads = True
    # So many connections may wait to be accepted.
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.stopping = threading.Event()
        self.open: dict[socket.socket, threading.Thread] = {}
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Connection)

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host's name, which can take seconds."""
        TCPServer.server_bind(self)

    def stop(self) -> None:
        """End hung requests, close every connection and wait for their threads, within a bounded time."""
        self.stopping.set()
        self.shutdown()
        self.server_close()
        deadline = time.monotonic() + LONGEST_STOP_SECONDS
        for connection, thread in list(self.open.items()):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(max(0.0, deadline - time.monotonic()))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report what broke, unless the client is gone."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    """One connection; the requests on it come one after the other."""

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
        """Keep quiet: the sandbox tells of its requests by itself."""

    def _respond(self) -> None:
        try:
            request = self._read()
        except ApiError as error:
            self._refuse(error)
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
        """Refuse what is no proper HTTP request with one of the documented status codes."""
        words = explain or message or "this is no HTTP request"
        self._refuse(ApiError(404 if code == HTTPStatus.NOT_IMPLEMENTED else 400, words))

    def _refuse(self, error: ApiError) -> None:
        # What is left of the request can't be told from the next one.
        self.close_connection = True
        with suppress(ConnectionError):
            self._send(self.server.sandbox.stamped(Delivery(error.answer())))

    def _read(self) -> Request:
        headers: dict[str, str] = {}
        for name, value in self.headers.items():
            key = name.lower()
            headers[key] = f"{headers[key]}, {value}" if key in headers else value
        chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        body = self._read_chunks() if chunked else self._read_exactly(_length(headers.get("content-length", "0"), 10))
        return Request(self.command, self.path, headers, body, is_local(self.client_address[0]))

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

    def _run(self, steps: Generator[Pause, None, Delivery]) -> Delivery | None:
        """Return the delivery, or None when the client or the server has gone meanwhile."""
        try:
            while self._wait(next(steps).seconds):
                pass
        except StopIteration as stop:
            delivery: Delivery = stop.value
            return delivery
        self.close_connection = True
        return None

    def _wait(self, seconds: float) -> bool:
        """Let time pass and return whether client and server are both still there."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.server.stopping.wait(min(left, GLANCE_SECONDS)) or self._client_is_gone():
                return False
        return True

    def _client_is_gone(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        if not readable:
            return False
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _send(self, delivery: Delivery) -> None:
        if delivery.answer is None:
            self._break(delivery.broken)
            return
        self.close_connection = self.close_connection or delivery.missing_bytes > 0
        pieces = iter(()) if self.command == "HEAD" else delivery.pieces()
        first = b"" if delivery.drip_seconds else next(pieces, b"")
        self.wfile.write(self._head(delivery) + first)
        for piece in pieces:
            if delivery.drip_seconds and not self._wait(delivery.pauses):
                self.close_connection = True
                return
            self.wfile.write(piece)

    def _head(self, delivery: Delivery) -> bytes:
        answer = delivery.answer
        assert answer is not None  # noqa: S101  # broken deliveries have no head
        fields = {**answer.headers, "content-length": str(delivery.length)}
        if answer.status == HTTPStatus.NOT_MODIFIED:
            del fields["content-length"]
        if self.close_connection:
            fields["connection"] = "close"
        lines = [f"HTTP/1.1 {answer.status} {_phrase(answer.status)}", *(f"{k}: {v}" for k, v in fields.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

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

    :raises ApiError: it is no number, or too large
    """
    if not text.isascii() or not text.isalnum():
        raise ApiError(400, f"{text!r} is no length of a body")
    try:
        length = int(text, base)
    except ValueError as error:
        raise ApiError(400, f"{text!r} is no length of a body") from error
    if length > LONGEST_BODY_BYTES:
        raise ApiError(400, f"the body is longer than {LONGEST_BODY_BYTES} bytes")
    return length


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def is_local(host: str) -> bool:
    """Whether an address is one of this machine's loopback."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


@contextmanager
def serve(sandbox: Sandbox, host: str, port: int) -> Iterator[str]:
    """Serve a sandbox and send its webhooks while the context lasts, which gives the base URL.

    :raises OSError: the port is taken
    """
    server = SandboxServer((host, port), sandbox)
    shown = f"[{host}]" if ":" in host else host
    before, sandbox.base_url = sandbox.base_url, f"http://{shown}:{server.server_address[1]}{PREFIX}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": GLANCE_SECONDS}, daemon=True)
    thread.start()
    sender = Sender(sandbox.due_webhooks, sandbox.keep_delivery, sandbox.clock.now)
    sender.start()
    try:
        yield sandbox.base_url
    finally:
        sandbox.base_url = before
        sender.stop()
        server.stop()
        thread.join(LONGEST_STOP_SECONDS)
