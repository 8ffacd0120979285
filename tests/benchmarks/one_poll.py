"""One poll for everything that waits in a deployment, beside each one polling for itself.

Of each kind, so many wait with one API key: sensors that poke every 60 seconds, sensors that are rescheduled, deferred
waits in two triggerers, `wait_for_execution` in workers, and searches for an execution that was started. Each waiter
has a client, a reader and a budget of its own, as a process has; they share a store and a server that allows 100
requests a minute. Executions end at random times.

    python tests/benchmarks/one_poll.py [--store memory|file|redis://...] [--minutes 30] [--waits 200] [--seed 1]

In memory, time is virtual: half an hour takes a minute. A file and a Redis take real time.
Ends with 1 when the shared poll misses a completion, needs too many requests or meets a 429.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import random
import statistics
import sys
import tempfile
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from tests.benchmarks.rows import Row, add_option, hand_over, percentile
else:
    from rows import Row, add_option, hand_over, percentile

KEY = "key-of-the-benchmark"
POKE_SECONDS = 60.0
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
KINDS = ("poke", "reschedule", "deferred", "wait_for_execution", "search")
NAMES = {True: "one poll for all", False: "each for itself"}
# To reach.
MOST_A_MINUTE = 20


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


@dataclass(frozen=True)
class Outcome:
    """How it went.

    :param a_minute: requests for the history
    :param busiest: the most of them in 60 seconds
    :param refused: how many 429s there were
    :param operations: of the store, a second
    :param wanted: how many completions there were, by kind
    :param seen: seconds from each completion to its detection, by kind
    """

    a_minute: float
    busiest: int
    refused: int
    operations: float
    wanted: dict[str, int]
    seen: dict[str, list[float]]

    def print(self, name: str) -> None:
        """Print the figures."""
        requests = f"{self.a_minute:.1f} requests a minute, at most {self.busiest} in one; {self.refused} 429s"
        lines = [f"{name}: {requests}; {self.operations:.1f} store operations a second"]
        for kind, seconds in self.seen.items():
            median, p99 = self.median(kind), percentile(seconds, 99)
            seen = f"{len(seconds):4} of {self.wanted[kind]} seen"
            lines.append(f"  {kind:20} {seen}; median {median:6.1f} s, p99 {p99:6.1f} s")
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()

    def median(self, kind: str) -> float:
        """Return the median from completion to detection."""
        return statistics.median(self.seen[kind]) if self.seen[kind] else math.nan


def outcome(deployment: Deployment, operations: int, waits: int) -> Outcome:
    """Return how it went."""
    sandbox, seconds = deployment.sandbox, deployment.seconds
    at = sorted(each.at.timestamp() for each in sandbox.requests)
    return Outcome(
        a_minute=sandbox.count(path="/executions") / seconds * 60,
        busiest=max((bisect_left(at, each + 60) - number for number, each in enumerate(at)), default=0),
        refused=sandbox.count(status=429),
        operations=operations / seconds,
        wanted={kind: waits // 4 if kind in ("wait_for_execution", "search") else waits for kind in KINDS},
        seen=deployment.seen,
    )


def rows_of(outcomes: dict[str, Outcome], n: str) -> list[Row]:
    """Return the figures of one poll for all, beside each polling for itself."""
    ours, others = outcomes[NAMES[True]], {name: each for name, each in outcomes.items() if name != NAMES[True]}
    wanted, seen = sum(ours.wanted.values()), sum(map(len, ours.seen.values()))
    of = f"{wanted} waits of five kinds"
    a_minute = {name: each.a_minute for name, each in others.items()}
    refused = {name: float(each.refused) for name, each in others.items()}
    seen_by = {name: float(sum(map(len, each.seen.values()))) for name, each in others.items()}
    return [
        Row(f"requests a minute of {of}", ours.a_minute, "", n, limit=MOST_A_MINUTE, peers=a_minute),
        Row(f"429s that {of} meet", ours.refused, "", n, limit=0, bound="=", peers=refused),
        Row(f"completions seen by {of}", seen, "", n, limit=wanted, bound="=", peers=seen_by),
        *(
            Row(
                f"median from completion to detection, {kind}",
                ours.median(kind),
                "s",
                n,
                peers={name: each.median(kind) for name, each in others.items()},
            )
            for kind in KINDS
        ),
    ]


def measure(store_url: str, minutes: float, waits: int, seed: int, *, shares: bool) -> Outcome:
    """Run one deployment."""

    async def run(folder: str) -> Outcome:
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
        return outcome(deployment, counting.operations, waits)

    factory: Callable[[], asyncio.AbstractEventLoop] | None = VirtualTimeLoop if store_url == "memory" else None
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(run(folder))


def main() -> int:
    """Print the figures of both; 1 when those of one poll for all aren't reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="memory")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--waits", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=("shared", "each"))
    add_option(parser)
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    outcomes = {}
    for only, shares in (("shared", True), ("each", False)):
        if asked.only in (None, only):
            name = NAMES[shares]
            outcomes[name] = measure(asked.store, asked.minutes, asked.waits, asked.seed, shares=shares)
            outcomes[name].print(name)
    if NAMES[True] not in outcomes:
        return 0
    rows = rows_of(outcomes, f"{asked.minutes:g} minutes, state in {asked.store.partition(':')[0]}")
    hand_over(asked.rows, *rows)
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
