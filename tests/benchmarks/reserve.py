"""What the budget costs: the time of one uncontended reserve, and what 200 waiting coroutines do to a loop.

The stall is the median of some rounds, with the worst beside it: a busy machine adds some of its own to both loops.

    python tests/benchmarks/reserve.py [--times 5000] [--seconds 4] [--rounds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

import httpx

from techflow_provider.client import AsyncClient
from techflow_provider.state.budget import RequestClass, SharedBudget
from techflow_provider.state.open import open_store

if TYPE_CHECKING:
    from tests.benchmarks.load import redis_server
    from tests.benchmarks.rows import Row, add_option, hand_over, line, percentile
    from tests.benchmarks.stalls import Stalls
else:
    from load import redis_server
    from rows import Row, add_option, hand_over, line, percentile
    from stalls import Stalls

WIDTHS = (7, 6, 10, 8, 7, 27, 27, 15)
ALLOWED_MICROSECONDS = {"sqlite": 250, "redis": 500}
ALLOWED_STALL_MS = 50
COROUTINES = 200


def reserve(place: str, times: int) -> list[float]:
    """Return the microseconds that each reserve took, each finding a slot."""
    budget, spent = SharedBudget(open_store(place), "reserve", 10_000_000), []
    budget.reserve(RequestClass.COMMAND, 1.0)
    for _ in range(times):
        began = time.perf_counter()
        budget.reserve(RequestClass.COMMAND, 1.0)
        spent.append((time.perf_counter() - began) * 1e6)
    return spent


async def longest_stall(others: Callable[[], Awaitable[object]], seconds: float) -> float:
    """Return the milliseconds by which the latest of a loop's ticks was late beside others."""
    task = asyncio.ensure_future(others())
    found = Stalls()
    await found.measure(seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return found.late


async def stalls(place: str, seconds: float) -> tuple[float, float]:
    """Return the longest stall of a loop with nothing else, and with coroutines that call all the time."""
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"workflows": []}))
    budget = SharedBudget(open_store(place), "stall")
    await asyncio.to_thread(budget.snapshot)
    alone = await longest_stall(lambda: asyncio.sleep(seconds), seconds)
    async with AsyncClient("some-key", budget=budget, transport=transport) as client:

        async def call() -> None:
            while True:
                await client.workflows.list()

        with_others = await longest_stall(lambda: asyncio.gather(*(call() for _ in range(COROUTINES))), seconds)
    return alone, with_others


def main() -> None:
    """Print both figures for each store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    add_option(parser)
    asked = parser.parse_args()
    heads = ("store", "n", "median us", "allowed", "p99 us", "loop alone ms", "with 200 waiting ms", "allowed more ms")
    line(WIDTHS, *heads)
    with tempfile.TemporaryDirectory() as folder, redis_server() as redis_url:
        for store, place in {"sqlite": f"sqlite:///{folder}/state.sqlite", "redis": redis_url}.items():
            if place is None:
                continue
            spent = reserve(place, asked.times)
            rounds = [asyncio.run(stalls(place, asked.seconds)) for _ in range(asked.rounds)]
            hand_over(asked.rows, *show(store, spent, rounds))


def show(store: str, spent: list[float], rounds: list[tuple[float, float]]) -> tuple[Row, Row]:
    """Print the figures of a store and return its rows."""
    alone, with_others = (
        f"{statistics.median(each):.1f} (worst {max(each):.1f}, n={len(rounds)})" for each in zip(*rounds, strict=True)
    )
    median, allowed = statistics.median(spent), ALLOWED_MICROSECONDS[store]
    p99 = f"{percentile(spent, 99):.0f}"
    line(WIDTHS, store, len(spent), f"{median:.0f}", allowed, p99, alone, with_others, ALLOWED_STALL_MS)
    more = statistics.median(others - own for own, others in rounds)
    what = f"longest stall that {COROUTINES} waiting coroutines add to a loop, {store}"
    return (
        Row(f"reserving a slot without contention, {store}", median, "µs", f"median of {len(spent):,}", limit=allowed),
        Row(what, more, "ms", f"median of {len(rounds)} rounds", limit=ALLOWED_STALL_MS),
    )


if __name__ == "__main__":
    main()
