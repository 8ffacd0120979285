"""One poll for everything that waits in a deployment, beside each one polling for itself.

Of each kind, so many wait with one API key: sensors that poke every 60 seconds, sensors that are rescheduled, deferred
waits in two triggerers, `wait_for_execution` in workers, and searches for an execution that was started. Each waiter
has a client, a reader and a budget of its own, as a process has; they share a store and a server that allows 100
requests a minute. Executions end at random times.

    python tests/benchmarks/one_poll.py [--store memory|file|redis://...] [--minutes 30] [--waits 200] [--seed 1]

In memory, time is virtual: half an hour takes a minute. A file and a Redis take real time.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from techflow_provider.client import AsyncClient, Settings, TechFlowError
from techflow_provider.client.history import ExecutionSelector, ExecutionTracker, HistoryFilter
from techflow_provider.client.reading import ReadTerms, read_history, sleep_until_woken
from techflow_provider.polling.poller import Access, Poller
from techflow_provider.polling.shared import SharedReader
from techflow_provider.sandbox import Sandbox
from techflow_provider.sandbox.settings import Clock
from techflow_provider.state.budget import SharedBudget
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.open import open_store
from techflow_provider.state.store import Store
from tests.polling.virtual_time import VirtualTimeLoop

KEY = "key-of-the-benchmark"
POKE_SECONDS = 60.0
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
KINDS = ("poke", "reschedule", "deferred", "wait_for_execution", "search")


class LoopClock(Clock):
    """The clock of the running loop."""

    def now(self) -> datetime:
        return BEGIN + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


class Counting:
    """A store that counts its operations.

    :param store: the store
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.location = store.location
        self.operations = 0

    def __getattr__(self, name: str) -> object:
        self.operations += name in ("update", "entries")
        return getattr(self._store, name)


@dataclass
class Deployment:
    """Waiters of one API key.

    :param store: what they share
    :param sandbox: the server
    :param shares: whether they share one poll
    :param seconds: how long it lasts
    :param seen: seconds from each completion to its detection, by kind
    """

    store: Store
    sandbox: Sandbox
    shares: bool
    seconds: float
    random: random.Random
    seen: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    ended: dict[str, float] = field(default_factory=dict)

    def access(self, name: str | None = None) -> Access:
        """Return how another process reaches the server."""
        settings = Settings(KEY, self.sandbox.base_url, verify=False)
        clock = asyncio.get_running_loop().time
        budget = SharedBudget(self.store, settings.account, clock=clock)
        reader = SharedReader(self.store, settings.account, name) if self.shares else None
        return Access(settings, budget, reader, self.sandbox.transport())

    def client(self) -> AsyncClient:
        """Return the client of another process."""
        access, loop = self.access(), asyncio.get_running_loop()
        return AsyncClient(
            settings=access.settings,
            budget=access.budget,
            transport=access.transport,
            reader=access.reader,
            clock=loop.time,
        )

    async def run(self, waits: int) -> None:
        """Run all waiters until the time is up."""
        pollers = [self.poller(name) for name in ("home-a", "home-b")]
        tasks = [asyncio.ensure_future(self.search()) for _ in range(waits // 4)]
        for number in range(waits):
            acts = (self.poke, self.reschedule, partial(self.deferred, pollers[number % 2]))
            tasks += [asyncio.ensure_future(act(self.execution())) for act in acts]
        tasks += [asyncio.ensure_future(self.wait(self.execution())) for _ in range(waits // 4)]
        await asyncio.wait(tasks, timeout=self.seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def poller(self, name: str) -> Poller:
        """Return the poller of a triggerer."""
        access = self.access(name)

        async def connect() -> Access:
            return access

        return Poller(access, connect)

    def execution(self) -> str:
        """Start an execution that ends before the last three minutes."""
        execution_id = self.sandbox.start("wf_1").id
        loop = asyncio.get_running_loop()
        at = self.random.uniform(60.0, self.seconds - 180.0)

        def finish() -> None:
            self.ended[execution_id] = loop.time()
            self.sandbox.finish(execution_id, outcome="completed")

        loop.call_later(at, finish)
        return execution_id

    def note(self, kind: str, execution_id: str) -> None:
        """Note a detection."""
        self.seen[kind].append(asyncio.get_running_loop().time() - self.ended[execution_id])

    async def deferred(self, poller: Poller, execution_id: str) -> None:
        await asyncio.sleep(self.random.uniform(0.0, 30.0))
        await poller.wait(ExecutionTracker(ExecutionSelector(execution_id)), 5.0)
        self.note("deferred", execution_id)

    async def wait(self, execution_id: str) -> None:
        await asyncio.sleep(self.random.uniform(0.0, 30.0))
        await self.client().executions.wait(ExecutionSelector(execution_id), 5.0)
        self.note("wait_for_execution", execution_id)

    async def poke(self, execution_id: str) -> None:
        await asyncio.sleep(self.random.uniform(0.0, POKE_SECONDS))
        client = self.client()
        while not await self.poked(client, execution_id, 0.0):
            await sleep_until_woken(client.context, POKE_SECONDS)
        self.note("poke", execution_id)

    async def reschedule(self, execution_id: str) -> None:
        await asyncio.sleep(self.random.uniform(0.0, POKE_SECONDS))
        while True:
            async with self.client() as client:
                if await self.poked(client, execution_id, 5.0):
                    return self.note("reschedule", execution_id)
            await asyncio.sleep(POKE_SECONDS)

    async def poked(self, client: AsyncClient, execution_id: str, max_age: float) -> bool:
        """Poke as the sensor does."""
        tracker = ExecutionTracker(ExecutionSelector(execution_id))
        terms = ReadTerms(10.0, 5.0, max_age, 60 + 2 * POKE_SECONDS)
        try:
            history = await read_history(client.context, tracker.history_filter, terms)
            return tracker.update(history, 0.0) is not None
        except TechFlowError:
            return False

    async def search(self) -> None:
        """Search for an execution as the recovery of a lost response does."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self.random.uniform(60.0, self.seconds - 180.0))
        workflow_id = self.sandbox.add_workflow("lost")
        execution_id = self.sandbox.start(workflow_id).id
        self.ended[execution_id] = loop.time()
        client, history_filter, delay = self.client(), HistoryFilter(), 1.0
        history_filter.add_workflow(workflow_id)
        while True:
            with suppress(TechFlowError):
                history = await read_history(client.context, history_filter, ReadTerms(120.0, 5.0))
                if history.get(execution_id) is not None:
                    return self.note("search", execution_id)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 15.0)


def figures(deployment: Deployment, counting: Counting, waits: int) -> Iterator[str]:
    """Say how it went."""
    sandbox, minutes = deployment.sandbox, deployment.seconds / 60
    polls = sandbox.count(path="/executions")
    busiest = max(
        (
            sum(0 <= (other.at - each.at).total_seconds() < 60 for other in sandbox.requests)
            for each in sandbox.requests
        ),
        default=0,
    )
    name = "one poll for all" if deployment.shares else "each for itself"
    yield (
        f"{name}: {polls / minutes:.1f} requests a minute, at most {busiest} in one; {sandbox.count(status=429)} 429s; "
        f"{counting.operations / minutes / 60:.1f} store operations a second"
    )
    for kind, seconds in deployment.seen.items():
        wanted = waits // 4 if kind in ("wait_for_execution", "search") else waits
        ordered = sorted(seconds) or [float("nan")]
        p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        median = statistics.median(ordered)
        yield f"  {kind:20} {len(seconds):4} of {wanted} seen; median {median:6.1f} s, p99 {p99:6.1f} s"


def measure(store_url: str, minutes: float, waits: int, seed: int, *, shares: bool) -> None:
    """Run one deployment and print its figures."""

    async def run(folder: str) -> None:
        loop = asyncio.get_running_loop()
        store: Store = MemoryStore(loop.time)
        if store_url != "memory":
            store = open_store(f"{folder}/state.db" if store_url == "file" else store_url)
        counting = Counting(store)
        sandbox = Sandbox(
            api_keys=(KEY,), limit=100, clock=LoopClock(), execution_seconds=10**6, workflows_at_start={"wf_1": "one"}
        )
        deployment = Deployment(counting, sandbox, shares, minutes * 60, random.Random(seed))  # type: ignore[arg-type]  # as a store
        await deployment.run(waits)
        for line in figures(deployment, counting, waits):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    factory: Callable[[], asyncio.AbstractEventLoop] | None = VirtualTimeLoop if store_url == "memory" else None
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run(folder))


def main() -> None:
    """Print the figures of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="memory")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--waits", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=("shared", "each"))
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    for name, shares in (("shared", True), ("each", False)):
        if asked.only in (None, name):
            began = time.monotonic()
            measure(asked.store, asked.minutes, asked.waits, asked.seed, shares=shares)
            sys.stdout.write(f"  ({time.monotonic() - began:.0f} s)\n")


if __name__ == "__main__":
    main()
