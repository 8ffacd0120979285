"""The receiver behind the web server of the installed Airflow's kind, over a socket."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from techflow_provider.compat import has_api_server
from techflow_provider.webhooks.receiver import Receiver


@pytest.fixture
def serve_receiver() -> Callable[[Receiver], AbstractContextManager[tuple[str, int]]]:
    """What serves a receiver, and gives host and port."""
    return _by_fastapi if has_api_server() else _by_flask


@contextmanager
def _by_fastapi(receiver: Receiver) -> Iterator[tuple[str, int]]:
    import uvicorn
    from fastapi import FastAPI

    from techflow_provider.webhooks.fastapi import create_app

    outer = FastAPI()
    outer.mount("/techflow", create_app(receiver))
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    server = uvicorn.Server(uvicorn.Config(outer, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield listener.getsockname()[:2]
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(10)
        listener.close()


@contextmanager
def _by_flask(receiver: Receiver) -> Iterator[tuple[str, int]]:
    from flask import Flask
    from werkzeug.serving import make_server

    from techflow_provider.webhooks.flask import create_blueprint

    app = Flask(__name__, root_path=".")
    app.register_blueprint(create_blueprint(receiver))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[:2]
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
