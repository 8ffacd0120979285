"""A server that answers 429 to everything for 90 seconds: what 16 processes send it, and when they recover."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.benchmarks.load import Run, in_processes, techflow
    from tests.benchmarks.local_server import LocalServer, QuietHandler, serving
    from tests.benchmarks.rows import Row
else:
    from load import Run, in_processes, techflow
    from local_server import LocalServer, QuietHandler, serving
    from rows import Row

PROCESSES = 16
# The requests that all of them may send to a server that takes none for 90 seconds.
MOST_SENT = 10
STORM_MINUTES = 1.5
AFTER_MINUTES = 2.0
HTTP_PROVIDER_SECONDS = 3.0
# Time for 16 processes to import the client.
START_SECONDS = 20.0


class Server(LocalServer):
    """Counts requests, and refuses all until a moment."""

    def __init__(self, until: float) -> None:
        super().__init__(Answer)
        self.until = until
        self.refused: list[float] = []
        self.taken: list[float] = []


class Answer(QuietHandler):
    """One answer: a 429 without Retry-After, or an empty list."""

    server: Server

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
        """Answer any path."""
        now = time.monotonic()
        stormy = now < self.server.until
        (self.server.refused if stormy else self.server.taken).append(now)
        self.answer(429 if stormy else 200, b'{"workflows": []}')


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


def storm(places: dict[str, str], minute: float) -> list[Row]:
    """Print how 16 processes come through the storm, and the HTTP provider's trigger beside them."""
    rows, beside = [], http_provider()
    for store, place in places.items():
        begins = time.monotonic() + START_SECONDS
        with serving(Server(begins + STORM_MINUTES * minute)) as server:
            run = Run("techflow", place, minute, server.until + AFTER_MINUTES * minute)
            in_processes([(functools.partial(call, base_url=server.url, begins=begins), run)] * PROCESSES)
            sent = len(server.refused)
            first = (min(server.taken, default=float("inf")) - server.until) / minute * 60
            last_minute = [at for at in server.taken if run.until - minute < at <= run.until]
        sys.stdout.write(
            f"{store}: 90 s of 429: {PROCESSES} processes sent {sent} requests; the first one that was taken "
            f"came {first:.0f} s after the storm; {len(last_minute)} in the last minute, n=1\n"
        )
        sys.stdout.flush()
        n = f"{PROCESSES} processes, 1 storm, a minute of {minute:g} s"
        rows += [
            Row(f"requests of a whole storm, 90 s of 429, {store}", sent, "", n, limit=MOST_SENT, peers=beside),
            Row(f"first request taken after the storm, {store}", first, "s", n),
        ]
    return rows


def http_provider() -> dict[str, float]:
    """Print and return what the HTTP provider's sensor trigger sends to such a server in 3 seconds."""
    if importlib.util.find_spec("airflow") is None or importlib.util.find_spec("airflow.providers.http") is None:
        sys.stdout.write("HttpSensorTrigger: not installed (pip install apache-airflow-providers-http)\n")
        return {}
    with serving(Server(time.monotonic() + 3600)) as server:
        in_processes([(sense, Run("", server.url, 60, 0))])
        sent = len(server.refused)
    sys.stdout.write(f"HttpSensorTrigger on such a server, in 3 s: {sent} requests, n=1\n")
    return {"HttpSensorTrigger in 3 s": sent}


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
