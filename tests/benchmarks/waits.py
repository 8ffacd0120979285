"""Whether one poll carries all waits of an event loop, beside what others do at the numbers they can carry.

N deferred waits, each for an execution of its own, with the ends spread over a minute and a server that allows 100
requests a minute. Server and waits have a process each. "all CPU" is the CPU time of the waits' process with the
beginning and the end of each wait; "CPU" is that of waiting alone, and the memory is what a wait holds meanwhile: both
are measured in runs of their own, once the history has been read.

    python tests/benchmarks/waits.py [--quick] [--waits 10 100 1000 10000] [--only ours each http]

`--quick` takes up to 1,000 waits with ends spread over 15 seconds. HttpSensorTrigger needs
apache-airflow-providers-http; it can't read the history, and is given a server that answers 429 to show what it does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-"))

import httpx

if TYPE_CHECKING:
    from tests.benchmarks.server import KEY, Served, served
else:
    from server import KEY, Served, served

INTERVAL = 5.0
# The first end comes this long after the start, so that all waits are there.
FIRST_END = 10.0
HTTP_SECONDS = 10.0
EACH_WAITS = (10, 100, 1000)
HTTP_WAITS = (1, 10)
COLUMNS = (
    "what",
    "waits",
    "a minute",
    "429",
    "seen",
    "median s",
    "p99 s",
    "all CPU s/min",
    "CPU us/wait/min",
    "B/wait",
)
# Looks during which the CPU time of waiting is measured.
STEADY_LOOKS = 6


@dataclass
class Report:
    """What the process of the waits saw.

    :param latencies: seconds from each end to its event
    :param cpu_seconds: CPU time of the process
    :param seconds: how long it took
    :param wait_bytes: memory of one wait
    :param wait_cpu: microseconds of CPU time that one wait takes in a minute
    """

    latencies: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    seconds: float = 0.0
    wait_bytes: float = 0.0
    wait_cpu: float = 0.0


def trigger_of(base_url: str, state: str) -> Callable[[str], Any]:
    """Return what makes a trigger for an execution, all of one connection with a budget in a file."""
    from techflow_provider.client import Settings
    from techflow_provider.state.budget import SharedBudget
    from techflow_provider.state.store import open_store
    from techflow_provider.triggers import sharing
    from techflow_provider.triggers.poller import Access
    from techflow_provider.triggers.techflow import TechFlowExecutionTrigger

    async def look_up(_: str) -> Access:
        return Access(Settings(KEY, base_url), SharedBudget(open_store(state), "benchmark"))

    sharing._loops[asyncio.get_running_loop()] = sharing.Sharing(look_up)
    return lambda execution_id: TechFlowExecutionTrigger("c", execution_id=execution_id, poll_interval=INTERVAL)


async def ours(base_url: str, ids: list[str], until: float, report: Report) -> None:
    """Run the package's triggers, all for one poll."""
    with tempfile.TemporaryDirectory() as folder:
        make = trigger_of(base_url, f"{folder}/state.db")

        async def wait(trigger: Any) -> None:
            async for event in trigger.run():
                note_end(report, event.payload["execution"]["finished_at"])

        await until_over([wait(make(each)) for each in ids], until)


async def each_polls(base_url: str, ids: list[str], until: float, report: Report) -> None:
    """Poll once per wait, as a trigger without a shared poll does; whatever is no 200 is tried again."""
    async with httpx.AsyncClient(
        headers={"authorization": f"Bearer {KEY}"}, timeout=30, limits=httpx.Limits(max_connections=None)
    ) as client:

        async def wait(execution_id: str) -> None:
            while True:
                try:
                    response = await client.get(f"{base_url}/executions")
                except httpx.HTTPError:
                    response = httpx.Response(599)
                listed = response.json()["executions"] if response.status_code == 200 else ()
                for execution in listed:
                    if execution["id"] == execution_id and execution["finished_at"]:
                        note_end(report, execution["finished_at"])
                        return
                await asyncio.sleep(INTERVAL)

        await until_over([wait(each) for each in ids], until)


async def http_sensor(base_url: str, ids: list[str], until: float, report: Report) -> None:
    """Run the HTTP provider's trigger; its event comes with the first answer that is no error."""
    from airflow.providers.http.triggers.http import HttpSensorTrigger

    os.environ["AIRFLOW_CONN_HTTP_BENCH"] = json.dumps({"conn_type": "http", "host": base_url})
    headers = {"Authorization": f"Bearer {KEY}"}

    async def wait() -> None:
        trigger = HttpSensorTrigger("executions", "http_bench", "GET", headers=headers, poke_interval=INTERVAL)
        async for _ in trigger.run():
            report.latencies.append(0.0)

    await until_over([wait() for _ in ids], until)


async def until_over(waits: list[Coroutine[Any, Any, None]], until: float) -> None:
    """Run waits until all are over, or the time is."""
    tasks = [asyncio.ensure_future(each) for each in waits]
    await asyncio.wait(tasks, timeout=until - time.time())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def note_end(report: Report, finished_at: str) -> None:
    """Note how long ago an execution ended."""
    report.latencies.append((datetime.now(UTC) - datetime.fromisoformat(finished_at)).total_seconds())


async def held(base_url: str, ids: list[str], _: float, report: Report) -> None:
    """Measure what the waits hold while they wait."""
    await while_waiting(base_url, ids, lambda: memory(report, ids), tracemalloc.start)
    tracemalloc.stop()


async def memory(report: Report, ids: list[str]) -> None:
    """Note the memory of one wait."""
    gc.collect()
    report.wait_bytes = tracemalloc.get_traced_memory()[0] / len(ids)


async def steady(base_url: str, ids: list[str], _: float, report: Report) -> None:
    """Measure what waiting takes while nothing ends."""
    await while_waiting(base_url, ids, lambda: cpu(report, ids), lambda: None)


async def cpu(report: Report, ids: list[str]) -> None:
    """Note the CPU time of one wait."""
    spent = time.process_time()
    await asyncio.sleep(STEADY_LOOKS * INTERVAL)
    minutes = STEADY_LOOKS * INTERVAL / 60
    report.wait_cpu = (time.process_time() - spent) / minutes / len(ids) * 1e6


async def while_waiting(
    base_url: str, ids: list[str], act: Callable[[], Awaitable[None]], before: Callable[[], None]
) -> None:
    """Do something once all waits have been looked for."""
    with tempfile.TemporaryDirectory() as folder:
        make = trigger_of(base_url, f"{folder}/state.db")

        async def wait(trigger: Any) -> None:
            async for _ in trigger.run():
                pass

        first = asyncio.ensure_future(wait(make("another")))
        await asyncio.sleep(INTERVAL)
        gc.collect()
        before()
        tasks = [asyncio.ensure_future(wait(make(each))) for each in ids]
        await asyncio.sleep(3 * INTERVAL)
        await act()
        for task in (first, *tasks):
            task.cancel()
        await asyncio.gather(first, *tasks, return_exceptions=True)


@contextlib.contextmanager
def process_of(kind: str) -> Iterator[Callable[[Served, float], Report]]:
    """Start a process that is ready to run waits; give what runs them there, for at most some seconds."""
    context = multiprocessing.get_context("spawn")
    ours_end, theirs_end = context.Pipe()
    process = context.Process(target=run, args=(kind, theirs_end))
    process.start()
    ours_end.recv()

    def start(server: Served, seconds: float) -> Report:
        ours_end.send((server.base_url, server.ids, seconds))
        report: Report = ours_end.recv()
        return report

    try:
        yield start
    finally:
        process.join(10)
        process.kill()


def run(kind: str, pipe: Any) -> None:
    """Run waits and report what came of them."""
    import techflow_provider.triggers.techflow  # noqa: F401  # not part of what is measured

    logging.disable(logging.CRITICAL)
    # Airflow's own log goes to the output, at 700 lines a second where HttpSensorTrigger meets a 429.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    pipe.send("ready")
    base_url, ids, seconds = pipe.recv()
    report, began, spent = Report(), time.time(), time.process_time()
    asyncio.run(KINDS[kind](base_url, ids, began + seconds, report))
    report.cpu_seconds, report.seconds = time.process_time() - spent, time.time() - began
    pipe.send(report)


KINDS = {"ours": ours, "each": each_polls, "http": http_sensor, "held": held, "steady": steady}


def measure(kind: str, count: int, spread: float) -> None:
    """Run one line and print it."""
    last = FIRST_END + spread
    if kind == "http":
        with process_of(kind) as start, served(count, 3600, 3600) as server:
            server.fault(kind="status", status=429)
            report = start(server, HTTP_SECONDS)
            show("HttpSensorTrigger", count, server.counts(), report)
        return
    with process_of(kind) as start, served(count, FIRST_END, last) as server:
        report = start(server, last + 30)
        counts = server.counts()
    if kind == "ours":
        with process_of("held") as start, served(count, 3600, 3600) as server:
            report.wait_bytes = start(server, last).wait_bytes
        with process_of("steady") as start, served(count, 3600, 3600) as server:
            report.wait_cpu = start(server, last).wait_cpu
    show("one poll for all" if kind == "ours" else "one poll per wait", count, counts, report)


def show(what: str, count: int, counts: dict[int | None, int], report: Report) -> None:
    """Print a line."""
    minutes, ordered = report.seconds / 60, sorted(report.latencies)
    known = bool(ordered) and what != "HttpSensorTrigger"
    row(
        what,
        count,
        f"{sum(counts.values()) / minutes:.1f}",
        counts.get(429, 0),
        len(ordered),
        f"{statistics.median(ordered):.2f}" if known else "-",
        f"{ordered[len(ordered) * 99 // 100]:.2f}" if known else "-",
        f"{report.cpu_seconds / minutes:.2f}",
        f"{report.wait_cpu:.0f}" if report.wait_cpu else "-",
        f"{report.wait_bytes:.0f}" if report.wait_bytes else "-",
    )


def row(*cells: object) -> None:
    """Print a row of the table."""
    widths = (18, 6, 9, 7, 6, 9, 7, 13, 15, 7)
    sys.stdout.write(" ".join(f"{cell!s:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip() + "\n")
    sys.stdout.flush()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--waits", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--only", nargs="+", choices=("ours", "each", "http"), default=("ours", "each", "http"))
    asked = parser.parse_args()
    spread = 15.0 if asked.quick else 60.0
    sys.stdout.write(f"interval {INTERVAL:g} s, ends spread over {spread:g} s, load {os.getloadavg()[0]:.2f}\n")
    row(*COLUMNS)
    fitting = {"ours": asked.waits, "each": EACH_WAITS, "http": HTTP_WAITS}
    for kind in asked.only:
        for count in fitting[kind]:
            if (kind == "http" or count in asked.waits) and not (asked.quick and count > 1000):
                measure(kind, count, spread)


if __name__ == "__main__":
    main()
