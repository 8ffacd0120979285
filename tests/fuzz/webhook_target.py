"""The webhook receivers of both web frameworks: deliveries that are forged, broken, genuine or nearly so."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any
from urllib.parse import quote

from techflow_provider.client.webhooks import WebhookSecret
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.records import Records
from techflow_provider.webhooks.receiver import Receiver, Subscriber
from tests.fuzz import values
from tests.fuzz.driver import ViolationError, quiet

SECRET = "fuzz-secret-0123456789"
NAMES = ("one", "off", "unknown", "a/b", "", "%00", "..", "é")
EVENTS = ("execution.completed", "workflow.deleted", "execution.", "x", None)
# What a receiver may respond with; the framework itself rejects other methods and paths.
RESPONSES = frozenset({200, 400, 401, 404, 405, 408, 413, 503})
Request = tuple[str, str, list[tuple[bytes, bytes]], bytes]


def _find(store: MemoryStore) -> Callable[[str], Subscriber | None]:
    secrets = {"one": WebhookSecret(SECRET), "off": None, "a/b": WebhookSecret(SECRET)}
    return lambda name: Subscriber(secrets[name], Records(store, name)) if name in secrets else None


def _request(random: Random) -> Request:
    """Return a method, a path with its query, headers and a body."""
    payload: Any = {"event": random.choice(EVENTS), "execution_id": values.text(random), "data": values.value(random)}
    content = values.encoded(random, random.choice((payload, values.changed(random, payload), values.value(random))))
    body = content if random.random() < 0.7 else values.damaged(random, content)
    if random.random() < 0.01:
        body += b" " * 70_000
    query = (
        f"?token={quote(random.choice((SECRET, values.text(random))), errors='replace')}"
        if random.random() < 0.3
        else ""
    )
    path = f"/techflow/webhooks/{quote(random.choice(NAMES), safe='/%')}{query}"
    headers = [*_proof(random, body)]
    for _ in range(random.randrange(3)):
        name = random.choice(
            ("content-length", "content-type", "user-agent", "transfer-encoding", "x-y", "authorization")
        )
        headers.append((name.encode(), _header(random)))
    return random.choice(("POST",) * 12 + ("GET", "PUT")), path, headers, body


def _header(random: Random) -> bytes:
    return values.text(random).encode("latin-1", "replace").replace(b"\r", b" ").replace(b"\n", b" ")


def _proof(random: Random, body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the headers of one way to prove the origin, right or nearly."""
    now = random.choice((str(int(time.time())), "0", "9" * 50, "x", "-1"))
    way = random.randrange(6)
    if way < 2:
        prefix = random.choice((b"webhook", b"svix"))
        signed = hmac.new(SECRET.encode(), b"msg_1." + now.encode() + b"." + body, hashlib.sha256).digest()
        signature = random.choice((b"v1," + base64.b64encode(signed), b"v1,%%%", b"v2,x", _header(random)))
        yield prefix + b"-id", random.choice((b"msg_1", _header(random)))
        yield prefix + b"-timestamp", now.encode()
        yield prefix + b"-signature", signature
    elif way == 2:
        digest = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest().encode()
        yield b"x-hub-signature-256", random.choice((b"sha256=" + digest, b"sha256=\xff", _header(random)))
    elif way == 3:
        digest = hmac.new(SECRET.encode(), now.encode() + b"." + body, hashlib.sha256).hexdigest().encode()
        yield b"stripe-signature", random.choice((b"t=" + now.encode() + b",v1=" + digest, b"t=,v1=", _header(random)))
    elif way == 4:
        yield b"authorization", b"Bearer " + random.choice((SECRET.encode(), _header(random)))


def _check(status: int, text: bytes) -> str:
    if status not in RESPONSES:
        raise ViolationError(f"response {status}: {text[:100]!r}")
    if SECRET.encode() in text:
        raise ViolationError("the secret is in the response")
    return f"response {status}"


@contextmanager
def open_fastapi_case() -> Iterator[Callable[[Random], str]]:
    """Return what sends one delivery to the application of Airflow 3."""
    from techflow_provider.webhooks.fastapi import create_app

    app: Any = create_app(Receiver(_find(MemoryStore())))
    with quiet(), asyncio.Runner() as runner:

        def case(random: Random) -> str:
            return runner.run(_call(app, random, _request(random)))

        yield case


async def _call(app: Any, random: Random, request: Request) -> str:
    method, target, headers, body = request
    path, _, query = target.removeprefix("/techflow").partition("?")
    at = random.randrange(len(body) + 1)
    pieces = [body[:at], body[at:]]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not pieces or random.random() < 0.02:
            return {"type": "http.disconnect"}
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "asgi": {"version": "3.0"},
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    content = b"".join(each.get("body", b"") for each in sent)
    return _check(sent[0]["status"], content)


@contextmanager
def open_flask_case() -> Iterator[Callable[[Random], str]]:
    """Return what sends one delivery to the blueprint of Airflow 2."""
    from flask import Flask

    from techflow_provider.webhooks.flask import create_blueprint

    app: Any = Flask("fuzz")
    app.register_blueprint(create_blueprint(Receiver(_find(MemoryStore()))))
    app.config["PROPAGATE_EXCEPTIONS"] = True
    with quiet():
        yield lambda random: _call_wsgi(app, _request(random))


def _call_wsgi(app: Any, request: Request) -> str:
    method, target, headers, body = request
    path, _, query = target.partition("?")
    statuses: list[str] = []
    environment: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_NAME": "h",
        "SERVER_PORT": "80",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input": io.BytesIO(body),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_LENGTH": str(len(body)),
    }
    for name, value in headers:
        key = name.decode().upper().replace("-", "_")
        # The web servers reject a length that isn't a number.
        if key != "CONTENT_LENGTH":
            environment[key if key == "CONTENT_TYPE" else f"HTTP_{key}"] = value.decode("latin-1")
    chunks = app(environment, lambda status, *_: statuses.append(status))
    content = b"".join(chunks)
    with contextlib.suppress(AttributeError):
        chunks.close()
    return _check(int(statuses[0].split()[0]), content)
