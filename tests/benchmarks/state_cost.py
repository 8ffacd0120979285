"""What do many waits and starts cost the shared state in a minute?

Waits of one triggerer, with webhooks on, and starts of fresh processes, all with one key, against a sandbox that admits
100 requests a minute. Counts operations: each is one request to the API server, and a statement on its database.
The counts don't depend on the machine as long as it keeps up.

    python tests/benchmarks/state_cost.py [--waits 1000] [--starts 92] [--seconds 60]
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from techflow_provider.client.client import Client
from techflow_provider.client.history import ExecutionSelector, ExecutionTracker
from techflow_provider.client.settings import Settings
from techflow_provider.polling.poller import Access, Poller
from techflow_provider.polling.shared import SharedReader
from techflow_provider.sandbox import Sandbox
from techflow_provider.state.budget import SharedBudget
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.records import Records
from techflow_provider.state.store import Change, Entry, Update
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.model import Attempt, SubmissionPolicy, Submitter
from techflow_provider.submission.start import resolve, send

if TYPE_CHECKING:
    from tests.benchmarks.rows import Row, add_option, hand_over, line
else:
    from rows import Row, add_option, hand_over, line

T = TypeVar("T")

KEY, LIMIT, INTERVAL = "sandbox-key", 100, 5.0
WIDTHS = (34, 12, 12)


@dataclass
class CountingStore:
    """One user's view of a store that all share.

    :param store: what all share
    :param operations: how many there were, by the namespace's last part
    """

    store: MemoryStore
    operations: Counter[str] = field(default_factory=Counter)
    location: str = "memory"

    def update(self, namespace: str, name: str, change: Change[T]) -> T:
        """Count an update."""
        self.operations[namespace.partition("/")[2] or name] += 1
        return self.store.update(namespace, name, change)

    def update_many(self, updates: Sequence[Update]) -> list[Any]:
        """Count updates that take one round trip as one."""
        self.operations[updates[0][0].partition("/")[2]] += 1
        return self.store.update_many(updates)

    def entries(self, namespace: str, prefix: str = "") -> list[Entry]:
        """Count a listing."""
        self.operations[namespace.partition("/")[2]] += 1
        return self.store.entries(namespace, prefix)

    def close(self) -> None:
        """Keep everything."""


def start(store: CountingStore, base_url: str, name: str) -> None:
    """Start one execution, as a fresh process does."""
    settings = Settings(KEY, base_url)
    with Client(settings=settings, budget=SharedBudget(store, settings.account, LIMIT)) as client:
        attempts = AttemptStore(store, settings.account, name)
        attempt = Attempt(client.context, Submitter(name, "1"), attempts, SubmissionPolicy(), "started", None)
        assert client.run(resolve(attempt)) is None
        client.run(send(attempt))


async def run(base_url: str, ids: list[str], starts: int, seconds: float) -> tuple[CountingStore, CountingStore]:
    """Wait and start for some seconds, and return the views of the waits and of the starts."""
    shared = MemoryStore()
    waits, starters = CountingStore(shared), CountingStore(shared)
    settings = Settings(KEY, base_url)
    records = Records(waits, settings.account)
    reader = SharedReader(waits, settings.account, "triggerer", records.wakeups)
    access = Access(settings, SharedBudget(waits, settings.account, LIMIT), reader)

    async def connect() -> Access:
        return access

    poller = Poller(access, connect)
    tasks = [asyncio.ensure_future(poller.wait(ExecutionTracker(ExecutionSelector(each)), INTERVAL)) for each in ids]
    began = time.monotonic()
    await asyncio.gather(
        *(start_later(starters, base_url, number, number * seconds / starts) for number in range(starts)),
        asyncio.sleep(seconds),
    )
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    late = time.monotonic() - began - seconds
    print(f"the last start ended {max(0.0, late):.1f} s after the time")
    return waits, starters


async def start_later(store: CountingStore, base_url: str, number: int, seconds: float) -> None:
    """Start an execution in a while."""
    await asyncio.sleep(seconds)
    await asyncio.to_thread(start, store, base_url, f"task-{number}")


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waits", type=int, default=1000)
    parser.add_argument("--starts", type=int, default=92)
    parser.add_argument("--seconds", type=float, default=60.0)
    add_option(parser)
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    sandbox = Sandbox(api_keys=(KEY,), limit=LIMIT, algorithm="sliding_log", execution_seconds=float("inf"))
    for name in ("waited", "started"):
        sandbox.add_workflow(name, id=name)
    ids = [sandbox.start("waited").id for _ in range(asked.waits)]
    with sandbox.serve() as base_url:
        waits, starts = asyncio.run(run(base_url, ids, asked.starts, asked.seconds))
    line(WIDTHS, "operations", "in all", "a second")
    for what, view in ((f"{asked.waits} waits", waits), (f"{asked.starts} starts", starts)):
        total = view.operations.total()
        line(WIDTHS, what, total, f"{total / asked.seconds:.2f}")
        for name, count in view.operations.most_common():
            line(WIDTHS, f"  {name}", count, f"{count / asked.seconds:.2f}")
        hand_over(
            asked.rows, Row(f"operations a second of {what}", total / asked.seconds, "/s", f"{asked.seconds:g} s")
        )
    print(f"requests to TechFlow {sandbox.count()}, of them polls {sandbox.count(path='/executions')}")
    print(f"429s {sandbox.count(status=429)}")


if __name__ == "__main__":
    main()
