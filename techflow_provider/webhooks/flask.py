"""The receiver in Airflow 2's web server: a Flask blueprint below `/techflow`."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace

from flask import Blueprint, request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from techflow_provider.client.webhooks import Delivery
from techflow_provider.webhooks.receiver import (
    BODY_TIMEOUT_SECONDS,
    MAX_BODY_BYTES,
    NO_PROOF,
    Receiver,
    WebhookResponse,
)

# Where the web servers keep the socket of a request.
SOCKETS = ("gunicorn.socket", "werkzeug.socket")


def create_blueprint(receiver: Receiver) -> Blueprint:
    """Return a blueprint that passes deliveries to a receiver."""
    blueprint = Blueprint("techflow_webhooks", __name__, url_prefix="/techflow")

    @blueprint.post("/webhooks/<path:conn_id>")  # type: ignore[untyped-decorator]  # Flask isn't installed with Airflow 3
    def receive(conn_id: str) -> tuple[dict[str, str], int, dict[str, str]]:
        headers = {name.lower(): value for name, value in request.headers.items()}
        delivery = Delivery(headers, token=request.args.get("token"))
        response = _read_body() if receiver.proof(delivery) else receiver.reject(conn_id, NO_PROOF)
        if isinstance(response, bytes):
            response = receiver.handle(conn_id, replace(delivery, body=response))
        return response.body, response.status_code, response.headers

    return blueprint


def airflow_blueprint() -> Blueprint:
    """Return the blueprint for Airflow's web server, exempt from CSRF tokens."""
    from airflow.www.app import csrf

    blueprint = create_blueprint(Receiver())
    csrf.exempt(blueprint)
    return blueprint


def _read_body() -> bytes | WebhookResponse:
    body, until = b"", time.monotonic() + BODY_TIMEOUT_SECONDS
    connection = next((request.environ[name] for name in SOCKETS if name in request.environ), None)
    timer = threading.Timer(BODY_TIMEOUT_SECONDS, _stop_receiving, (connection,))
    timer.daemon = True
    timer.start()
    try:
        while len(body) <= MAX_BODY_BYTES and (chunk := request.stream.read(MAX_BODY_BYTES + 1)):
            body += chunk
    except RequestEntityTooLarge:
        return WebhookResponse.TOO_LARGE
    except (ClientDisconnected, OSError):
        return WebhookResponse.TOO_SLOW
    finally:
        timer.cancel()
    if time.monotonic() >= until:
        return WebhookResponse.TOO_SLOW
    return WebhookResponse.TOO_LARGE if len(body) > MAX_BODY_BYTES else body


def _stop_receiving(connection: object) -> None:
    """Stop reading a body at the timeout; a worker of the web server would wait two minutes for it."""
    if isinstance(connection, socket.socket):
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RD)
