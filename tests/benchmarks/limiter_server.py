"""One server with one rate limiter from PyPI, or with a bucket like Envoy's, for `limiters.py`.

    python limiter_server.py KIND PORT

KIND: `backend` (no limit), `bucket-2-1.2` (so many tokens, refilled at once every so many seconds, as in Envoy's local
rate limit), `flask-fixed-window`, `flask-moving-window`, `flask-sliding-window-counter`, `slowapi`. Flask's limit per
minute is read from the file `conf` in the working directory.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

BODY = b'{"workflows": []}'
KEY_HEADER = "authorization"


class Bucket:
    """Envoy's token bucket: full at first, and filled up by its size at every interval since its beginning.

    See https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/local_rate_limit_filter
    """

    def __init__(self, size: int, interval: float) -> None:
        self.size, self.interval = size, interval
        self.tokens, self.began, self.fills = size, time.monotonic(), 0

    def admit(self) -> bool:
        """Take a token if there is one."""
        fills = int((time.monotonic() - self.began) / self.interval)
        if fills > self.fills:
            self.tokens, self.fills = self.size, fills
        if self.tokens == 0:
            return False
        self.tokens -= 1
        return True


async def serve(port: int, admit: Callable[[], bool]) -> None:
    """Respond to every request with 200 or 429."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                status = b"200 OK" if admit() else b"429 Too Many Requests"
                head = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY)
                writer.write(b"HTTP/1.1 %b\r\n%b%b" % (status, head, BODY))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", port)
    await server.serve_forever()


def flask_app(strategy: str) -> Any:
    """Return a Flask application behind Flask-Limiter."""
    flask, limiter = import_module("flask"), import_module("flask_limiter")
    app = flask.Flask("limited")
    limiter.Limiter(
        lambda: flask.request.headers.get(KEY_HEADER, ""),
        app=app,
        default_limits=[lambda: f"{Path('conf').read_text(encoding='utf-8')} per minute"],
        strategy=strategy,
        headers_enabled=True,
        storage_uri="memory://",
    )
    app.add_url_rule("/workflows", view_func=lambda: (BODY, {"content-type": "application/json"}))
    return app


def slowapi_app() -> Any:
    """Return a Starlette application behind slowapi."""
    slowapi, responses = import_module("slowapi"), import_module("starlette.responses")
    limiter = slowapi.Limiter(key_func=lambda request: request.headers.get(KEY_HEADER, ""), headers_enabled=True)

    @limiter.limit("100/minute")  # type: ignore[untyped-decorator]  # a module without types
    async def workflows(request: Any) -> Any:
        return responses.Response(BODY, media_type="application/json")

    route = import_module("starlette.routing").Route("/workflows", workflows)
    app = import_module("starlette.applications").Starlette(routes=[route])
    app.state.limiter = limiter
    handler = slowapi._rate_limit_exceeded_handler
    app.add_exception_handler(import_module("slowapi.errors").RateLimitExceeded, handler)
    return app


def main(kind: str, port: int) -> None:
    """Serve until the process is ended."""
    if kind == "backend":
        asyncio.run(serve(port, lambda: True))
    elif kind.startswith("bucket-"):
        _, size, interval = kind.split("-")
        asyncio.run(serve(port, Bucket(int(size), float(interval)).admit))
    elif kind == "slowapi":
        import_module("uvicorn").run(slowapi_app(), host="127.0.0.1", port=port, log_level="error")
    else:
        import_module("waitress").serve(flask_app(kind.removeprefix("flask-")), host="127.0.0.1", port=port, threads=4)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
