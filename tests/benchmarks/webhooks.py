"""How long from an execution's end to the trigger's event, with webhooks and without, and what does a flood cost?

The receiver runs in a process of its own, as Airflow's API server does, and shares with the triggers here a SQLite file
or a Redis server alone. Needs Airflow 3 and redis-server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from techflow_provider.sandbox import Sandbox, Webhooks

if TYPE_CHECKING:
    from tests.benchmarks.load import redis_server
    from tests.benchmarks.receiver import calling, megabytes, receiver
    from tests.benchmarks.rows import Row, add_option, hand_over, percentile
else:
    from load import redis_server
    from receiver import calling, megabytes, receiver
    from rows import Row, add_option, hand_over, percentile

KEY = "key-of-the-benchmark"
SECRET = "secret-of-the-benchmark"
STAGES = ("polling", "webhooks", "lossy", "forged", "genuine")
FLOOD = 10_000
FLOOD_SECONDS = 10.0
CALLERS = 40
POLL_SECONDS = 5.0
MOST_MEDIAN_SECONDS = 1.0


async def wait_for(execution_id: str, ends: dict[str, float]) -> None:
    """Wait as a deferred task does, and note when its event came."""
    from techflow_provider.triggers.techflow import TechFlowExecutionTrigger

    trigger = TechFlowExecutionTrigger("bench", execution_id=execution_id, poll_interval=POLL_SECONDS)
    async for _ in trigger.run():
        ends[execution_id] = time.monotonic()


@dataclass(frozen=True)
class Latency:
    """How long it took from each end to its event.

    :param seconds: of each
    :param a_minute: requests a minute meanwhile
    :param refused: how many 429s there were
    """

    seconds: list[float]
    a_minute: float
    refused: int

    def __str__(self) -> str:
        median, p99, longest = self.median, percentile(self.seconds, 99), max(self.seconds)
        return (
            f"n={len(self.seconds)}  median {median:.2f} s  p99 {p99:.2f} s  max {longest:.2f} s  "
            f"{self.a_minute:.0f} requests a minute, {self.refused} refused"
        )

    @property
    def median(self) -> float:
        """The median, in seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Flood:
    """What many deliveries cost.

    :param statuses: how often each came back
    :param seconds: how long they took
    :param spent: requests to the API meanwhile
    :param memory: of the receiver before and after, in MiB
    """

    statuses: Counter[int]
    seconds: float
    spent: int
    memory: tuple[float, float]

    def __str__(self) -> str:
        before, after = self.memory
        return (
            f"{dict(self.statuses)} in {self.seconds:.1f} s  requests spent {self.spent} "
            f"({self.spent / self.seconds * 60:.0f} a minute)  memory {before:.0f} -> {after:.0f} MiB"
        )


async def latency(sandbox: Sandbox, count: int, spacing_seconds: float) -> Latency:
    """End executions one after the other, and return how long it took until each wait saw that."""
    ids = [sandbox.start("wf_1").id for _ in range(count)]
    ends: dict[str, float] = {}
    tasks = [asyncio.create_task(wait_for(each, ends)) for each in ids]
    await asyncio.sleep(4)
    before, began, ended = sandbox.count(), time.monotonic(), {}
    for number, each in enumerate(ids):
        ended[each] = time.monotonic()
        sandbox.finish(each, outcome="completed")
        # Not in step with the polls.
        await asyncio.sleep(spacing_seconds * (0.75 + number % 7 / 12))
    await asyncio.gather(*tasks)
    rate = (sandbox.count() - before) / (time.monotonic() - began) * 60
    return Latency([ends[each] - ended[each] for each in ids], rate, sandbox.count(status=429))


async def flood(sandbox: Sandbox, url: str, pid: int, token: str) -> Flood:
    """Send deliveries, 1,000 a second, while something waits, and return what they cost."""
    ends: dict[str, float] = {}
    waiting = asyncio.create_task(wait_for(sandbox.start("wf_1").id, ends))
    await asyncio.sleep(4)
    before, memory, statuses = sandbox.count(), megabytes(pid), Counter[int]()
    began = time.monotonic()

    async def call(first: int) -> None:
        async with calling(f"{url}?token={token}" if token else url) as post:
            for number in range(first, FLOOD, CALLERS):
                await asyncio.sleep(began + number * FLOOD_SECONDS / FLOOD - time.monotonic())
                statuses[await post({"event": "workflow.updated", "workflow_id": f"wf_{number}"})] += 1

    await asyncio.gather(*(call(first) for first in range(CALLERS)))
    seconds = time.monotonic() - began
    spent = sandbox.count() - before
    assert not ends
    waiting.cancel()
    return Flood(statuses, seconds, spent, (memory, megabytes(pid)))


async def measure(name: str, homes: tuple[Path, Path], options: argparse.Namespace) -> list[Row]:
    """Print the figures of one place of the state, and return its rows."""
    sandbox = Sandbox(api_keys=(KEY,), execution_seconds=float("inf"), workflows_at_start={"wf_1": "one"})
    latencies: dict[str, Latency] = {}
    floods: dict[str, Flood] = {}
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
                    latencies[stage] = await latency(sandbox, options.count, options.spacing)
                    print(f"{name:6}: {stage:15} {latencies[stage]}", flush=True)
            sandbox.webhooks = None
            for stage, token in {"forged": "", "genuine": SECRET}.items():
                if stage in options.stages:
                    floods[stage] = await flood(sandbox, url, pid, token)
                    print(f"{name:6}: {FLOOD:,} {stage:8} {floods[stage]}", flush=True)
    return [*latency_rows(name, latencies), *flood_rows(name, floods)]


def latency_rows(name: str, latencies: dict[str, Latency]) -> Iterator[Row]:
    """Say how long waits took to learn of their end by webhooks, beside those without."""
    polling = latencies.get("polling")
    for stage, words, limit in (
        ("webhooks", "webhooks", MOST_MEDIAN_SECONDS),
        ("lossy", "webhooks of which 30 % are lost, late, sent twice or forged", None),
    ):
        if found := latencies.get(stage):
            n = f"median of {len(found.seconds)}"
            peers = {f"polling every {POLL_SECONDS:g} s": polling.median} if polling else {}
            yield Row(f"from completion to event by {words}, {name}", found.median, "s", n, limit=limit, peers=peers)


def flood_rows(name: str, floods: dict[str, Flood]) -> Iterator[Row]:
    """Say what floods cost."""
    for stage, found in floods.items():
        before, after = found.memory
        of, n = f"{FLOOD:,} {stage} deliveries, {name}", f"1 flood, 1,000 a second, handled in {found.seconds:.1f} s"
        good = HTTPStatus.UNAUTHORIZED if stage == "forged" else HTTPStatus.OK
        yield Row(f"responses with {good.value} of {of}", found.statuses[good], "", n, limit=FLOOD, bound="=")
        # Forged ones cost no more polls than the waits take anyway.
        most = math.ceil(found.seconds / POLL_SECONDS) + 1 if stage == "forged" else None
        yield Row(f"requests spent on {of}", found.spent, "", n, limit=most)
        yield Row(f"growth of the receiver by {of}", after - before, "MiB", n)


def main() -> None:
    """Measure on SQLite and on Redis."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--spacing", type=float, default=4.0)
    parser.add_argument("--only", choices=("sqlite", "redis"))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    add_option(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder, "one"), Path(folder, "two")
        if options.only != "redis":
            hand_over(options.rows, *asyncio.run(measure("sqlite", (one, one), options)))
        if options.only != "sqlite":
            with redis_server() as url:
                if url is None:
                    return
                os.environ["AIRFLOW__TECHFLOW__STATE_URL"] = url
                hand_over(options.rows, *asyncio.run(measure("redis", (one, two), options)))


if __name__ == "__main__":
    main()
