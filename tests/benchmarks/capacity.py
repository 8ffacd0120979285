"""How much does a large deployment ask of the shared state: operations a second, and connections?

A simulation in virtual time, with the package's own budget and start: workers of many API keys each start one execution
after the other, as fast as their key's budget lets them. Counts are exact; the machine's speed has no part in them.
What a store can carry out per second comes from `stores.py`.

    python tests/benchmarks/capacity.py [--workers 10000] [--keys 100] [--minutes 10]
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from techflow_provider.client.client import Client
from techflow_provider.client.settings import Settings
from techflow_provider.sandbox import Sandbox
from techflow_provider.state.budget import LocalBudget, RequestClass, Reservation, SharedBudget
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.optimistic import IDLE_SECONDS
from techflow_provider.state.store import Change, Entry, Update
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.model import Attempt, SubmissionPolicy, Submitter
from techflow_provider.submission.start import resolve, send

if TYPE_CHECKING:
    from tests.benchmarks.rows import Row, add_option, hand_over, line
else:
    from rows import Row, add_option, hand_over, line

T = TypeVar("T")

LIMIT = 100
# How long TechFlow takes for a response, and a worker until its next task's request.
RESPONSE_SECONDS, NEXT_TASK_SECONDS = 0.3, (0.5, 5.0)
HEADS = ("", "a second", "in the busiest second")
WIDTHS = (44, 12, 22)


@dataclass
class CountingStore:
    """A store in memory that counts its operations."""

    store: MemoryStore
    operations: int = 0
    location: str = "memory"

    def update(self, namespace: str, name: str, change: Change[T]) -> T:
        """Count an update."""
        self.operations += 1
        return self.store.update(namespace, name, change)

    def update_many(self, updates: Sequence[Update]) -> list[Any]:
        """Count updates that take one round trip as one."""
        self.operations += 1
        return self.store.update_many(updates)

    def entries(self, namespace: str, prefix: str = "") -> list[Entry]:
        """Count a listing."""
        self.operations += 1
        return self.store.entries(namespace, prefix)

    def close(self) -> None:
        """Keep everything."""


def operations_of_a_start() -> int:
    """Return the operations of one start beside the budget's: the record, the claim and what is read before."""
    sandbox = Sandbox()
    sandbox.add_workflow("one", id="wf_1")
    store = CountingStore(MemoryStore())
    settings = Settings(sandbox.api_keys[0], sandbox.base_url)
    with Client(settings=settings, budget=LocalBudget(10_000, 1000), transport=sandbox.transport()) as client:
        attempts = AttemptStore(store, "account", "task")
        attempt = Attempt(client.context, Submitter("task", "1"), attempts, SubmissionPolicy(), "wf_1", None)
        assert client.run(resolve(attempt)) is None
        client.run(send(attempt))
    return store.operations


@dataclass
class Simulation:
    """All keys in virtual time.

    :param operations: how many there were in each second
    :param used: when each worker used the store, in seconds
    :param requests: how many were sent
    """

    now: float = 0.0
    operations: Counter[int] = field(default_factory=Counter)
    connections: Counter[int] = field(default_factory=Counter)
    requests: int = 0

    def run(self, keys: int, workers: int, seconds: float, start_operations: int) -> None:
        """Let workers start executions, each as soon as its key's budget lets it."""
        store = MemoryStore(lambda: self.now)
        chance = random.Random(1)
        budgets = [SharedBudget(store, f"key-{each}", LIMIT, clock=lambda: self.now) for each in range(keys)]
        idle_at = dict.fromkeys(range(workers), 0.0)
        # When, a number that keeps the order, which worker, and its earlier reservation.
        due: list[tuple[float, int, Reservation | None]] = [
            (chance.uniform(0, 5), each, None) for each in range(workers)
        ]
        heapq.heapify(due)
        while due and due[0][0] < seconds:
            self.now, worker, earlier = heapq.heappop(due)
            reservation = budgets[worker % keys].reserve(RequestClass.COMMAND, 1e9, earlier)
            wait = reservation.wait_seconds
            self._count(1)
            if reservation.may_send:
                self.requests += 1
                self._count(start_operations)
                wait, reservation = RESPONSE_SECONDS + chance.uniform(*NEXT_TASK_SECONDS), None  # type: ignore[assignment]
            self._hold(idle_at, worker)
            heapq.heappush(due, (self.now + wait, worker, reservation))

    def _count(self, operations: int) -> None:
        self.operations[int(self.now)] += operations

    def _hold(self, idle_at: dict[int, float], worker: int) -> None:
        """Note the seconds in which a process keeps its connection, unless they are noted already."""
        until = self.now + IDLE_SECONDS
        for second in range(int(max(self.now, idle_at[worker])), int(until)):
            self.connections[second] += 1
        idle_at[worker] = until


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=10_000)
    parser.add_argument("--keys", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=10)
    add_option(parser)
    asked = parser.parse_args()
    seconds, start_operations = asked.minutes * 60, operations_of_a_start()
    simulation = Simulation()
    simulation.run(asked.keys, asked.workers, seconds, start_operations)
    # The first minute fills the queues.
    steady = range(60, int(seconds))
    total = [simulation.operations[second] for second in steady]
    open_ones = [simulation.connections[second] for second in steady]
    size = f"{asked.workers:,} workers, {asked.keys} keys"
    print(f"{size}, {asked.minutes:g} minutes; {start_operations} operations a start")
    line(WIDTHS, *HEADS)
    line(WIDTHS, "requests to TechFlow", f"{simulation.requests / seconds:.0f}", "")
    line(WIDTHS, "operations on the state", f"{sum(total) / len(total):.0f}", max(total))
    line(WIDTHS, "operations on the state per key", f"{sum(total) / len(total) / asked.keys:.1f}", "")
    recent = f"processes that used it in the last {IDLE_SECONDS:g} s"
    line(WIDTHS, recent, f"{sum(open_ones) / len(open_ones):.0f}", max(open_ones))
    hand_over(asked.rows, Row("operations a second on the state", sum(total) / len(total), "/s", f"{size}, simulated"))


if __name__ == "__main__":
    main()
