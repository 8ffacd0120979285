"""A server that sends what it is given, byte by byte, whatever the request."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Serve = Callable[[socket.socket, bytes], None]


def until_blank_line(connection: socket.socket) -> bytes:
    """Return what a client sends up to the end of its headers."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(65536)
        if not chunk:
            break
        received += chunk
    return received


@contextmanager
def serving(serve: Serve, address: str = "127.0.0.1") -> Iterator[int]:
    """Call a function with each connection and its first request, and return the port.

    :param serve: sends the response; the connection is closed when it returns
    :param address: of the loopback
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:

        def handle(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                serve(connection, until_blank_line(connection))

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=handle, args=(server.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield server.getsockname()[1]
        finally:
            # Wakes the thread that waits for a connection.
            server.shutdown(socket.SHUT_RDWR)


def response(*headers: str, body: bytes = b"", status: str = "200 OK") -> bytes:
    """Return the bytes of a response."""
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode("latin-1") + body
