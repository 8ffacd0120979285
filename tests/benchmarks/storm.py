"""A server that responds with 429 to everything for 90 seconds: what 16 processes send it, and when they recover."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.benchmarks.load import Gate, Run, in_processes, techflow
    from tests.benchmarks.local_server import LocalServer, QuietHandler, serving
    from tests.benchmarks.rows import Row
else:
    from load import Gate, Run, in_processes, techflow
    from local_server import LocalServer, QuietHandler, serving
    from rows import Row

PROCESSES = 16
# The requests that all of them may send to a server that accepts none for 90 seconds.
MOST_SENT = 10
STORM_MINUTES = 1.5
AFTER_MINUTES = 2.0
HTTP_PROVIDER_SECONDS = 3.0


class Server(LocalServer):
    """Counts requests, and rejects all for some seconds from its beginning."""

    def __init__(self, seconds: float) -> None:
        super().__init__(Handler)
        self.seconds = seconds
        self.until = math.inf
        self.rejected: list[float] = []
        self.accepted: list[float] = []

    def begin(self, now: float) -> None:
        """Let the storm last from now on."""
        self.until = now + self.seconds


class Handler(QuietHandler):
    """One response: a 429 without Retry-After, or an empty list."""

    server: Server

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
        """Respond to any path."""
        now = time.monotonic()
        stormy = now < self.server.until
        (self.server.rejected if stormy else self.server.accepted).append(now)
        self.respond(429 if stormy else 200, b'{"workflows": []}')


def call(run: Run, gate: Gate, base_url: str) -> list[float]:
    """List workflows again and again until the end of the run."""
    from techflow_provider.client import Client, TechFlowError

    budget = techflow(run)
    # Loads what the store needs.
    budget.snapshot()
    with Client("some-key", base_url=base_url, budget=budget) as client:
        until = gate() + run.seconds
        while time.monotonic() < until:
            with contextlib.suppress(TechFlowError):
                client.workflows.list()
    return []


def storm(places: dict[str, str], minute: float) -> list[Row]:
    """Print how 16 processes come through the storm, all stores at once, and the HTTP provider's trigger alone."""
    beside = http_provider()
    with ThreadPoolExecutor(max(1, len(places))) as threads:
        each = threads.map(lambda store: one_storm(store, places[store], minute, beside), places)
        return [row for rows in each for row in rows]


def one_storm(store: str, place: str, minute: float, beside: dict[str, float]) -> tuple[Row, Row]:
    """Print how 16 processes come through the storm with one store, and return its rows."""
    run = Run("techflow", place, minute, (STORM_MINUTES + AFTER_MINUTES) * minute)
    with serving(Server(STORM_MINUTES * minute)) as server:
        in_processes([(functools.partial(call, base_url=server.url), run)] * PROCESSES, server.begin)
        sent, end = len(server.rejected), server.until + AFTER_MINUTES * minute
        first = (min(server.accepted, default=math.inf) - server.until) / minute * 60
        last_minute = [at for at in server.accepted if end - minute < at <= end]
    sys.stdout.write(
        f"{store}: 90 s of 429: {PROCESSES} processes sent {sent} requests; the first one that was accepted "
        f"came {first:.0f} s after the storm; {len(last_minute)} in the last minute, n=1\n"
    )
    sys.stdout.flush()
    n = f"{PROCESSES} processes, 1 storm, a minute of {minute:g} s"
    return (
        Row(f"requests of a whole storm, 90 s of 429, {store}", sent, "", n, limit=MOST_SENT, peers=beside),
        Row(f"first request accepted after the storm, {store}", first, "s", n),
    )


def http_provider() -> dict[str, float]:
    """Print and return what the HTTP provider's sensor trigger sends to such a server in 3 seconds."""
    if importlib.util.find_spec("airflow") is None or importlib.util.find_spec("airflow.providers.http") is None:
        sys.stdout.write("HttpSensorTrigger: not installed (pip install apache-airflow-providers-http)\n")
        return {}
    with serving(Server(math.inf)) as server:
        in_processes([(sense, Run("", server.url, 60, HTTP_PROVIDER_SECONDS))])
        sent = len(server.rejected)
    sys.stdout.write(f"HttpSensorTrigger on such a server, in 3 s: {sent} requests, n=1\n")
    return {"HttpSensorTrigger in 3 s": sent}


def sense(run: Run, gate: Gate) -> list[float]:
    """Let the HTTP provider's trigger wait for the server; it writes a line for each rejection, which nobody reads."""
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    os.environ["AIRFLOW_CONN_STORM"] = run.place
    from airflow.providers.http.triggers.http import HttpSensorTrigger

    async def first_event() -> None:
        trigger = HttpSensorTrigger(endpoint="executions", http_conn_id="storm", poke_interval=5)
        async for _ in trigger.run():
            break

    gate()
    with contextlib.suppress(asyncio.TimeoutError):
        asyncio.run(asyncio.wait_for(first_event(), run.seconds))
    return []
