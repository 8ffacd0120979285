"""The waits of one event loop in a process of its own: this package's, and those of others beside them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import math
import multiprocessing
import os
import tempfile
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-"))

import httpx

if TYPE_CHECKING:
    from tests.benchmarks.server import KEY, Served
    from tests.benchmarks.stalls import Stalls
else:
    from server import KEY, Served
    from stalls import Stalls

INTERVAL = 5.0
# Polls during which the CPU time of waiting is measured.
STEADY_LOOKS = 6


@dataclass
class Report:
    """What the process of the waits saw.

    :param latencies: seconds from each end to its event
    :param cpu_seconds: CPU time of the process
    :param seconds: how long it took
    :param wait_bytes: memory of one wait
    :param wait_cpu: microseconds of CPU time that one wait takes in a minute
    :param beginning: how long the loop was held up while the waits began, and by the first polls for them
    :param waiting: and while nothing ended
    """

    latencies: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    seconds: float = 0.0
    wait_bytes: float = 0.0
    wait_cpu: float = 0.0
    beginning: Stalls = field(default_factory=Stalls)
    waiting: Stalls = field(default_factory=Stalls)


def trigger_of(base_url: str, state: str) -> Callable[[str], Any]:
    """Return what makes a trigger for an execution, all of one connection with a budget in a file."""
    from techflow_provider.client import Settings
    from techflow_provider.polling import registry
    from techflow_provider.polling.poller import Access
    from techflow_provider.state.budget import SharedBudget
    from techflow_provider.state.open import open_store
    from techflow_provider.triggers.techflow import TechFlowExecutionTrigger

    async def look_up(conn_id: str) -> Access:
        return Access(Settings(KEY, base_url), SharedBudget(open_store(state), "benchmark"))

    registry.look_up = look_up
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
    """Poll once per wait, as a trigger without a shared poll does; it retries after every other status than 200."""
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
    """Run the HTTP provider's trigger; its event comes with the first response that isn't an error."""
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
    await while_waiting(base_url, ids, lambda: memory(report, ids), tracemalloc.start, Stalls())
    tracemalloc.stop()


async def memory(report: Report, ids: list[str]) -> None:
    """Note the memory of one wait."""
    gc.collect()
    report.wait_bytes = tracemalloc.get_traced_memory()[0] / len(ids)


async def steady(base_url: str, ids: list[str], _: float, report: Report) -> None:
    """Measure what waiting takes while nothing ends."""
    await while_waiting(base_url, ids, lambda: cpu(report, ids), lambda: None, report.beginning)


async def cpu(report: Report, ids: list[str]) -> None:
    """Note the CPU time of one wait, and then the longest stalls, whose ticks take CPU time."""
    spent = time.process_time()
    await asyncio.sleep(STEADY_LOOKS * INTERVAL)
    minutes = STEADY_LOOKS * INTERVAL / 60
    report.wait_cpu = (time.process_time() - spent) / minutes / len(ids) * 1e6
    await report.waiting.measure(STEADY_LOOKS * INTERVAL / 2)


async def while_waiting(
    base_url: str, ids: list[str], act: Callable[[], Awaitable[None]], before: Callable[[], None], beginning: Stalls
) -> None:
    """Do something once all waits have been looked for.

    :param beginning: notes the longest stalls until then
    """
    with tempfile.TemporaryDirectory() as folder:
        make = trigger_of(base_url, f"{folder}/state.db")

        async def wait(trigger: Any) -> None:
            async for _ in trigger.run():
                pass

        first = asyncio.ensure_future(wait(make("another")))
        await asyncio.sleep(INTERVAL)
        gc.collect()
        before()
        ticks, tasks = asyncio.ensure_future(beginning.measure(math.inf)), []
        for each in ids:
            tasks.append(asyncio.ensure_future(wait(make(each))))
            # As a triggerer does.
            await asyncio.sleep(0)
        await asyncio.sleep(3 * INTERVAL)
        ticks.cancel()
        await act()
        for task in (first, *tasks):
            task.cancel()
        await asyncio.gather(ticks, first, *tasks, return_exceptions=True)


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
