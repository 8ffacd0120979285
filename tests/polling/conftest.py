"""What the tests of the poller share: a sandbox in-process, an observer, and the connection of a poller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from techflow_provider.client import Execution, Settings, TechFlowError
from techflow_provider.client.history import ExecutionSelector, ExecutionTracker, History, HistoryFilter
from techflow_provider.polling.poller import Access, Poller
from techflow_provider.polling.shared import SharedReader
from techflow_provider.sandbox import Sandbox
from techflow_provider.state.budget import LocalBudget
from techflow_provider.state.memory import MemoryStore

KEY = "key-of-the-poller-tests"
INTERVAL = 5.0
# Between two polls that no webhook asks for; longer than any test.
RARELY = 24 * 3600.0


@dataclass(eq=False)
class Reader:
    """Observes the workflows, and keeps what it receives."""

    interval_seconds: float = INTERVAL
    histories: list[History] = field(default_factory=list)
    reported: list[TechFlowError] = field(default_factory=list)
    failed: list[TechFlowError] = field(default_factory=list)

    def add_to(self, history_filter: HistoryFilter) -> None:
        history_filter.wants_workflows = True

    def update(self, history: History, now: float) -> bool:
        self.histories.append(history)
        return False

    def report(self, error: TechFlowError) -> None:
        self.reported.append(error)

    def fail(self, error: TechFlowError) -> None:
        self.failed.append(error)


@dataclass
class Connection:
    """Looks a connection up, counts how often, and can have its key changed."""

    sandbox: Sandbox
    keys: list[str] = field(default_factory=lambda: [KEY])
    budget: LocalBudget = field(default_factory=lambda: LocalBudget(100_000, 50_000))
    wakeups: Callable[[], int] | None = None
    reader: SharedReader | None = None
    looked_up: int = 0

    def access(self) -> Access:
        key = self.keys[min(self.looked_up, len(self.keys) - 1)]
        # Nothing here speaks TLS, and loading the certificates takes longer than a test.
        settings = Settings(key, self.sandbox.base_url, verify=False)
        clock = asyncio.get_running_loop().time
        reader = self.reader or SharedReader(MemoryStore(clock), "account", "poller", self.wakeups)
        return Access(settings, self.budget, reader, self.sandbox.transport())

    async def __call__(self) -> Access:
        self.looked_up += 1
        return self.access()

    def poller(self, ended: Callable[[], None] = lambda: None) -> Poller:
        return Poller(self.access(), self, ended)


def wait(
    poller: Poller, execution_id: str, interval_seconds: float = INTERVAL, appear_seconds: float = 60.0
) -> asyncio.Task[Execution]:
    """Begin to wait for an execution."""
    tracker = ExecutionTracker(ExecutionSelector(execution_id), appear_seconds)
    return asyncio.ensure_future(poller.wait(tracker, interval_seconds))


async def until(happened: Callable[[], object]) -> None:
    """Wait until something has happened, an hour at most."""
    async with asyncio.timeout(3600):
        while not happened():  # noqa: ASYNC110 - anything can be waited for
            await asyncio.sleep(0.25)


async def polls(sandbox: Sandbox, count: int, path: str | None = "/executions") -> None:
    """Wait until there were so many more polls."""
    wanted = sandbox.count(path=path) + count
    await until(lambda: sandbox.count(path=path) >= wanted)


@pytest.fixture
def sandbox() -> Sandbox:
    """A sandbox with one workflow, whose executions end when a test says so."""
    return Sandbox(api_keys=(KEY,), limit=1_000_000, execution_seconds=3600, workflows_at_start={"wf_1": "one"})
