"""What polling a long execution history does to an event loop, beside reading it in one go.

A poller with 100 waits reads a history of N executions every few seconds while a ticker in the same loop notes by how
much its latest tick was late: on the clock, which a busy machine adds to, and in CPU time of this process, all threads
together, which it doesn't. "in one go" decodes and reads the same bytes whole, in a thread, as often; "nothing" is the
ticker alone. The time is the CPU time of the process for one poll, without the ticker's; the memory is what the
resident size grew by at most.

    python tests/benchmarks/history.py [--sizes 10000 100000] [--seconds 30]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import math
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))

import httpx

from techflow_provider.client import Settings
from techflow_provider.client.history import ExecutionSelector, ExecutionTracker, History
from techflow_provider.client.models import read_executions
from techflow_provider.client.parsing import parse_json
from techflow_provider.polling.poller import Access, Poller
from techflow_provider.state.budget import LocalBudget

if TYPE_CHECKING:
    from tests.benchmarks.rows import Row, add_option, hand_over, line
    from tests.benchmarks.server import KEY, served
    from tests.benchmarks.stalls import Stalls
else:
    from rows import Row, add_option, hand_over, line
    from server import KEY, served
    from stalls import Stalls

WIDTHS = (10, 10, 6, 9, 9, 13, 9)
WAITS = 100
INTERVAL = 3.0
ALLOWED_STALL_MS = 50


async def poll(base_url: str, ids: list[str]) -> None:
    """Wait for some executions in a poller until cancelled."""
    access = Access(Settings(KEY, base_url), LocalBudget(100_000, 1000))

    async def connect() -> Access:
        return access

    poller = Poller(access, connect)
    await asyncio.gather(*(poller.wait(ExecutionTracker(ExecutionSelector(each)), INTERVAL) for each in ids[:WAITS]))


async def in_one_go(base_url: str, _: list[str]) -> None:
    """Read the history as often, decoded and read whole, in a thread."""
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {KEY}"}, timeout=60) as client:
        while True:
            began = time.monotonic()
            response = await client.get(f"{base_url}/executions")
            await asyncio.to_thread(lambda: History(read_executions(parse_json(response.content))))  # noqa: B023
            await asyncio.sleep(max(0.0, began + INTERVAL - time.monotonic()))


async def nothing(_: str, __: list[str]) -> None:
    """Leave the loop to the ticker."""
    await asyncio.sleep(3600)


READERS: dict[str, Callable[[str, list[str]], Awaitable[None]]] = {
    "nothing": nothing,
    "poller": poll,
    "in one go": in_one_go,
}


async def stalls(reader: str, base_url: str, ids: list[str], seconds: float) -> Stalls:
    """Return the longest stalls beside a reader."""
    task = asyncio.ensure_future(READERS[reader](base_url, ids))
    # The first poll makes the client, whose TLS context alone takes 20 ms once.
    await asyncio.sleep(INTERVAL)
    found = Stalls()
    await found.measure(seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return found


def measure(reader: str, base_url: str, ids: list[str], seconds: float, pipe: Any) -> None:
    """Report the longest stalls in milliseconds, the CPU seconds, and the growth in MB."""
    gc.collect()
    before, spent = resident_mb(), time.process_time()
    found = asyncio.run(stalls(reader, base_url, ids, seconds))
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    pipe.send((found.late, found.busy, time.process_time() - spent - found.ticking, growth))


def resident_mb() -> float:
    """Return the resident size of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024 / 1024


@dataclass(frozen=True)
class Figures:
    """What a reader did to the loop of its process.

    :param polls: how often it read the history
    :param late: longest stall on the clock, in milliseconds
    :param busy: the same in CPU time
    :param a_poll: CPU milliseconds of one poll
    :param growth: memory in MB
    """

    polls: int
    late: float
    busy: float
    a_poll: float
    growth: float


def main() -> int:
    """Print the table; 1 when the poller holds the loop up for too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--seconds", type=float, default=30.0)
    add_option(parser)
    asked = parser.parse_args()
    sys.stdout.write(f"longest stall allowed {ALLOWED_STALL_MS} ms, load {os.getloadavg()[0]:.2f}\n")
    line(WIDTHS, "reader", "executions", "polls", "stall ms", "in CPU ms", "CPU ms a poll", "memory MB")
    rows = []
    for size in asked.sizes:
        figures = {reader: run(reader, size, asked.seconds) for reader in READERS}
        rows += rows_of(size, figures["poller"], figures["in one go"])
    hand_over(asked.rows, *rows)
    return 0 if all(row.met for row in rows) else 1


def run(reader: str, size: int, seconds: float) -> Figures:
    """Let a reader read a history in a process of its own, print how it went and return it."""
    context = multiprocessing.get_context("spawn")
    with served(size, 3600, 7200, limit=100_000) as server:
        ours, theirs = context.Pipe()
        arguments = (reader, server.base_url, server.ids[-WAITS:], seconds, theirs)
        process = context.Process(target=measure, args=arguments)
        process.start()
        late, busy, spent, growth = ours.recv()
        process.join()
        polls = sum(server.counts().values())
    figures = Figures(polls, late, busy, spent / polls * 1000 if polls else math.nan, growth)
    a_poll = f"{figures.a_poll:.0f}" if polls else "-"
    line(WIDTHS, reader, size, polls, f"{late:.1f}", f"{busy:.1f}", a_poll, f"{growth:.0f}")
    return figures


def rows_of(size: int, ours: Figures, whole: Figures) -> list[Row]:
    """Return the poller's figures beside those of reading the history in one go."""
    of, n = f"of a history of {size:,}", f"{ours.polls} polls"

    def beside(value: float) -> dict[str, float]:
        return {"read in one go": value}

    return [
        Row(f"longest stall of the loop {of}", ours.busy, "ms", n, limit=ALLOWED_STALL_MS, peers=beside(whole.busy)),
        Row(f"CPU time of a poll {of}", ours.a_poll, "ms", n, peers=beside(whole.a_poll)),
        Row(f"memory of polls {of}", ours.growth, "MB", n, peers=beside(whole.growth)),
    ]


if __name__ == "__main__":
    sys.exit(main())
