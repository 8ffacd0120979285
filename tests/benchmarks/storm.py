"""A server that answers 429 to everything for 90 seconds: what 16 processes send it, and when they recover."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.benchmarks.load import Run, in_processes, techflow
else:
    from load import Run, in_processes, techflow

STORM_MINUTES = 1.5
AFTER_MINUTES = 2.0
HTTP_PROVIDER_SECONDS = 3.0
# Time for 16 processes to import the client.
START_SECONDS = 20.0


class Server(ThreadingHTTPServer):
    """Counts requests, and refuses all until a moment."""

    daemon_threads = True

    def __init__(self, until: float) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.until = until
        self.refused: list[float] = []
        self.taken: list[float] = []

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    """One answer: a 429 without Retry-After, or an empty list."""

    server: Server

    def do_GET(self) -> None:
        """Answer any path."""
        now = time.monotonic()
        stormy = now < self.server.until
        (self.server.refused if stormy else self.server.taken).append(now)
        body = b'{"workflows": []}'
        self.send_response(429 if stormy else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


def call(run: Run, results: Any, base_url: str, begins: float) -> None:
    """List workflows again and again until the end of the run."""
    from techflow_provider.client import Client, TechFlowError

    budget = techflow(run)
    # Loads what the store needs.
    budget.snapshot()
    time.sleep(max(0.0, begins - time.monotonic()))
    with Client("some-key", base_url=base_url, budget=budget) as client:
        while time.monotonic() < run.until:
            with contextlib.suppress(TechFlowError):
                client.workflows.list()
    results.put([])


@contextlib.contextmanager
def serving(seconds: float) -> Iterator[Server]:
    server = Server(time.monotonic() + seconds)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def storm(places: dict[str, str | None], minute: float) -> None:
    """Print how 16 processes come through the storm, and the HTTP provider's trigger beside them."""
    for store, place in places.items():
        if place is None:
            continue
        begins = time.monotonic() + START_SECONDS
        with serving(START_SECONDS + STORM_MINUTES * minute) as server:
            run = Run("techflow", place, minute, server.until + AFTER_MINUTES * minute)
            in_processes([(functools.partial(call, base_url=server.url, begins=begins), run)] * 16)
            first = min(server.taken, default=float("inf")) - server.until
            last_minute = [at for at in server.taken if run.until - minute < at <= run.until]
            sys.stdout.write(
                f"{store}: 90 s of 429: 16 processes sent {len(server.refused)} requests; the first one that was taken "
                f"came {first / minute * 60:.0f} s after the storm; {len(last_minute)} in the last minute, n=1\n"
            )
            sys.stdout.flush()
    http_provider()


def http_provider() -> None:
    """Print what the HTTP provider's sensor trigger sends to the same server in 3 seconds."""
    if importlib.util.find_spec("airflow") is None or importlib.util.find_spec("airflow.providers.http") is None:
        sys.stdout.write("HttpSensorTrigger: not installed (pip install apache-airflow-providers-http)\n")
        return
    with serving(60) as server:
        in_processes([(sense, Run("", server.url, 60, 0))])
        sys.stdout.write(f"HttpSensorTrigger on the same server, in 3 s: {len(server.refused)} requests, n=1\n")


def sense(run: Run, results: Any) -> None:
    """Let the HTTP provider's trigger wait for the server; it writes a line for each refusal, which nobody reads."""
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    os.environ["AIRFLOW_CONN_STORM"] = run.place
    from airflow.providers.http.triggers.http import HttpSensorTrigger

    async def first_event() -> None:
        trigger = HttpSensorTrigger(endpoint="executions", http_conn_id="storm", poke_interval=5)
        async for _ in trigger.run():
            break

    with contextlib.suppress(asyncio.TimeoutError):
        asyncio.run(asyncio.wait_for(first_event(), HTTP_PROVIDER_SECONDS))
    results.put([])
