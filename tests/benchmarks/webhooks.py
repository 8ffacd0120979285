"""How long from an execution's end to the trigger's event, with webhooks and without, and what does a flood cost?

The receiver runs in a process of its own, as Airflow's API server does, and shares with the triggers here a SQLite file
or a Redis server alone. Needs Airflow 3 and redis-server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from techflow_provider.sandbox import Sandbox, Webhooks

if TYPE_CHECKING:
    from tests.benchmarks.load import redis_server
else:
    from load import redis_server

KEY = "key-of-the-benchmark"
SECRET = "secret-of-the-benchmark"
SERVER = """
import socket, sys
import uvicorn
from fastapi import FastAPI
from techflow_provider.webhooks.fastapi import app
outer = FastAPI()
outer.mount("/techflow", app)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=2048)
uvicorn.Server(uvicorn.Config(outer, log_level="error")).run(sockets=[listener])
"""
STAGES = ("polling", "webhooks", "lossy", "forged", "genuine")
FLOOD = 10_000
FLOOD_SECONDS = 10.0
CALLERS = 40


@contextlib.contextmanager
def receiver(home: Path) -> Iterator[tuple[str, int]]:
    """Serve the receiver from another process, and give its URL and process id."""
    environment = {**os.environ, "AIRFLOW_HOME": str(home)}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-c", SERVER, str(port)]
    url = f"http://127.0.0.1:{port}/techflow/webhooks/bench"
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            # The first one loads what Airflow needs to look a connection up.
            while _status(url) != HTTPStatus.UNAUTHORIZED:
                time.sleep(0.1)
            yield url, process.pid
        finally:
            process.terminate()


def _status(url: str) -> int:
    try:
        return httpx.post(url, timeout=60).status_code
    except httpx.ConnectError:
        return 0


def megabytes(pid: int) -> float:
    """Return the memory that a process has."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


async def wait_for(execution_id: str, ends: dict[str, float]) -> None:
    """Wait as a deferred task does, and note when its event came."""
    from techflow_provider.triggers.techflow import TechFlowExecutionTrigger

    trigger = TechFlowExecutionTrigger("bench", execution_id=execution_id, poll_interval=5.0)
    async for _ in trigger.run():
        ends[execution_id] = time.monotonic()


def shown(seconds: list[float]) -> str:
    """Return median, 99th percentile and longest."""
    ordered = sorted(seconds)
    p99 = ordered[max(0, round(len(ordered) * 0.99) - 1)]
    return f"n={len(ordered)}  median {statistics.median(ordered):.2f} s  p99 {p99:.2f} s  max {ordered[-1]:.2f} s"


async def latency(sandbox: Sandbox, count: int, pause_seconds: float) -> str:
    """End executions one after the other, and return how long it took until each wait was told."""
    ids = [sandbox.start("wf_1").id for _ in range(count)]
    ends: dict[str, float] = {}
    tasks = [asyncio.create_task(wait_for(each, ends)) for each in ids]
    await asyncio.sleep(4)
    before, began, ended = sandbox.count(), time.monotonic(), {}
    for number, each in enumerate(ids):
        ended[each] = time.monotonic()
        sandbox.finish(each, outcome="completed")
        # Not in step with the looks.
        await asyncio.sleep(pause_seconds * (0.75 + number % 7 / 12))
    await asyncio.gather(*tasks)
    rate = (sandbox.count() - before) / (time.monotonic() - began) * 60
    refused = sandbox.count(status=429)
    return f"{shown([ends[each] - ended[each] for each in ids])}  {rate:.0f} requests a minute, {refused} refused"


async def flood(sandbox: Sandbox, url: str, pid: int, token: str) -> str:
    """Send deliveries as fast as 1,000 a second while something waits, and return what they cost."""
    ends: dict[str, float] = {}
    waiting = asyncio.create_task(wait_for(sandbox.start("wf_1").id, ends))
    await asyncio.sleep(4)
    before, memory, statuses = sandbox.count(), megabytes(pid), Counter[int]()
    began = time.monotonic()

    async def call(client: httpx.AsyncClient, first: int) -> None:
        for number in range(first, FLOOD, CALLERS):
            await asyncio.sleep(began + number * FLOOD_SECONDS / FLOOD - time.monotonic())
            body = json.dumps({"event": "workflow.updated", "workflow_id": f"wf_{number}"})
            response = await client.post(f"{url}?token={token}" if token else url, content=body)
            statuses[response.status_code] += 1

    async with httpx.AsyncClient(timeout=60) as client:
        await asyncio.gather(*(call(client, first) for first in range(CALLERS)))
    seconds = time.monotonic() - began
    spent, memory_after = sandbox.count() - before, megabytes(pid)
    assert not ends
    waiting.cancel()
    return (
        f"{dict(statuses)} in {seconds:.1f} s  requests spent {spent} ({spent / seconds * 60:.0f} a minute)  "
        f"memory {memory:.0f} -> {memory_after:.0f} MiB"
    )


async def measure(name: str, homes: tuple[Path, Path], options: argparse.Namespace) -> None:
    """Print the figures of one place of the state."""
    sandbox = Sandbox(api_keys=(KEY,), execution_seconds=float("inf"), workflows_at_start={"wf_1": "one"})
    with sandbox.serve() as base_url:
        connection = {"conn_type": "techflow", "host": base_url, "password": KEY}
        os.environ["AIRFLOW_CONN_BENCH"] = json.dumps({**connection, "extra": {"webhook_secret": SECRET}})
        os.environ["AIRFLOW_HOME"] = str(homes[1])
        with receiver(homes[0]) as (url, pid):
            sent = {
                "polling": None,
                "webhooks": Webhooks(url, secret=SECRET),
                "lossy": Webhooks(
                    url, secret=SECRET, loss=0.3, delay_seconds=0.5, jitter_seconds=5, duplicates=0.3, forged=0.3
                ),
            }
            for stage, sandbox.webhooks in sent.items():
                if stage in options.stages:
                    print(f"{name}: {stage:15} {await latency(sandbox, options.count, options.pause)}", flush=True)
            sandbox.webhooks = None
            for stage, token in {"forged": "", "genuine": SECRET}.items():
                if stage in options.stages:
                    print(f"{name}: 10,000 {stage:8} {await flood(sandbox, url, pid, token)}", flush=True)


def main() -> None:
    """Measure on SQLite and on Redis."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--pause", type=float, default=4.0)
    parser.add_argument("--only", choices=("sqlite", "redis"))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder, "one"), Path(folder, "two")
        if options.only != "redis":
            asyncio.run(measure("sqlite", (one, one), options))
        if options.only != "sqlite":
            with redis_server() as url:
                if url is None:
                    return
                os.environ["AIRFLOW__TECHFLOW__STATE_URL"] = url
                asyncio.run(measure("redis ", (one, two), options))


if __name__ == "__main__":
    main()
