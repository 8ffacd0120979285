"""The receiver in Airflow 2's web server: a Flask blueprint below `/techflow`."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from techflow_provider.client.webhooks import Delivery
from techflow_provider.webhooks.receiver import (
    BODY_SECONDS,
    LONGEST_BODY_BYTES,
    TOO_LARGE,
    TOO_SLOW,
    Answer,
    Receiver,
)

# Where the web servers keep the connection of a request.
SOCKETS = ("gunicorn.socket", "werkzeug.socket")


def create_blueprint(receiver: Receiver) -> Blueprint:
    """Return a blueprint that hands deliveries to a receiver."""
    blueprint = Blueprint("techflow_webhooks", __name__, url_prefix="/techflow")

    @blueprint.post("/webhooks/<path:conn_id>")  # type: ignore[untyped-decorator]  # Flask is not there for Airflow 3
    def receive(conn_id: str) -> Response:
        body = _body()
        if isinstance(body, Answer):
            return _response(body)
        headers = {name.lower(): value for name, value in request.headers.items()}
        return _response(receiver.answer(conn_id, Delivery(headers, body, request.args.get("token"))))

    return blueprint


def airflow_blueprint() -> Blueprint:
    """Return the blueprint for Airflow's web server, where a webhook needs no token of a form."""
    from airflow.www.app import csrf

    from techflow_provider.webhooks.subscribers import find_subscriber

    blueprint = create_blueprint(Receiver(find_subscriber))
    csrf.exempt(blueprint)
    return blueprint


def _body() -> bytes | Answer:
    if (request.content_length or 0) > LONGEST_BODY_BYTES:
        return TOO_LARGE
    body = b""
    try:
        with _bounded_time() as late:
            while len(body) <= LONGEST_BODY_BYTES and (piece := request.stream.read(LONGEST_BODY_BYTES + 1)):
                body += piece
    except RequestEntityTooLarge:
        return TOO_LARGE
    except (ClientDisconnected, OSError):
        return TOO_SLOW
    if late.is_set():
        return TOO_SLOW
    return TOO_LARGE if len(body) > LONGEST_BODY_BYTES else body


@contextmanager
def _bounded_time() -> Iterator[threading.Event]:
    """Let a body that takes too long end where it is; a worker of the web server would wait two minutes for it."""
    late = threading.Event()
    connection = next((request.environ[name] for name in SOCKETS if name in request.environ), None)

    def end() -> None:
        late.set()
        if isinstance(connection, socket.socket):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)

    timer = threading.Timer(BODY_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _response(answer: Answer) -> Response:
    response = jsonify({"status": answer.word})
    response.status_code = answer.status
    if answer in (TOO_LARGE, TOO_SLOW):
        # After a body that was not read to its end, the connection is of no further use.
        response.headers["connection"] = "close"
    return response
