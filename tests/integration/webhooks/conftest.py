"""The receiver behind the web server of the installed Airflow's kind, over a socket."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from techflow_provider.compat import has_api_server
from techflow_provider.webhooks.receiver import Receiver

Serve = Callable[[Receiver], tuple[str, int]]


class WebServer:
    """A running server whose application is replaced with every receiver.

    :param host: where it listens
    :param port: and on which port
    :param application: the ASGI or WSGI application that handles the requests
    """

    def __init__(self) -> None:
        self.host, self.port = "", 0
        self.application: Any = None


@pytest.fixture(scope="module")
def web_server() -> Iterator[WebServer]:
    """Run a server while the tests of a module run."""
    with _uvicorn() if has_api_server() else _werkzeug() as server:
        yield server


@pytest.fixture
def serve_receiver(web_server: WebServer) -> Serve:
    """Serve a receiver, and return host and port."""

    def serve(receiver: Receiver) -> tuple[str, int]:
        web_server.application = _asgi(receiver) if has_api_server() else _wsgi(receiver)
        return web_server.host, web_server.port

    return serve


def _asgi(receiver: Receiver) -> Any:
    from fastapi import FastAPI

    from techflow_provider.webhooks.fastapi import create_app

    outer = FastAPI()
    outer.mount("/techflow", create_app(receiver))
    return outer


def _wsgi(receiver: Receiver) -> Any:
    from flask import Flask

    from techflow_provider.webhooks.flask import create_blueprint

    app = Flask(__name__, root_path=".")
    app.register_blueprint(create_blueprint(receiver))
    return app


@contextmanager
def _uvicorn() -> Iterator[WebServer]:
    import uvicorn

    served = WebServer()

    async def dispatch(scope: Any, receive: Any, send: Any) -> None:
        await served.application(scope, receive, send)

    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    served.host, served.port = listener.getsockname()[:2]
    server = uvicorn.Server(uvicorn.Config(dispatch, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield served
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join()
        listener.close()


@contextmanager
def _werkzeug() -> Iterator[WebServer]:
    from werkzeug.serving import make_server

    served = WebServer()

    def dispatch(environ: Any, start_response: Any) -> Any:
        return served.application(environ, start_response)

    server = make_server("127.0.0.1", 0, dispatch, threaded=True)
    served.host, served.port = server.server_address[:2]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
