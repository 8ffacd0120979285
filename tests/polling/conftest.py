"""What the tests of the poller share: looks without pauses, a sandbox over a socket, and an observer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from techflow_provider.client import TechFlowError
from techflow_provider.client.history import History, HistoryFilter
from techflow_provider.polling import poller
from techflow_provider.polling import schedule as pace
from techflow_provider.sandbox import Sandbox

KEY = "key-of-the-poller-tests"
INTERVAL = 0.02


@dataclass(eq=False)
class Reader:
    """Observes the workflows, and keeps what it is told."""

    interval_seconds: float = INTERVAL
    histories: list[History] = field(default_factory=list)
    missed: list[TechFlowError] = field(default_factory=list)
    failed: list[TechFlowError] = field(default_factory=list)

    def add_to(self, history_filter: HistoryFilter) -> None:
        history_filter.wants_workflows = True

    def update(self, history: History, now: float) -> bool:
        self.histories.append(history)
        return False

    def report(self, error: TechFlowError) -> None:
        self.missed.append(error)

    def fail(self, error: TechFlowError) -> None:
        self.failed.append(error)


async def until(happened: Callable[[], object]) -> None:
    """Wait until something has happened."""
    async with asyncio.timeout(30):
        while not happened():  # noqa: ASYNC110 - the sandbox answers in another thread
            await asyncio.sleep(INTERVAL / 2)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let looks follow each other at once."""
    monkeypatch.setattr(pace, "SHORTEST_INTERVAL_SECONDS", INTERVAL)
    monkeypatch.setattr(pace, "SHORTEST_WOKEN_SECONDS", INTERVAL)
    monkeypatch.setattr(poller, "WAKEUP_CHECK_SECONDS", INTERVAL)


@pytest.fixture
def served() -> Iterator[Sandbox]:
    """Serve a sandbox with one workflow, whose executions end when a test says so."""
    sandbox = Sandbox(api_keys=(KEY,), limit=100_000, execution_seconds=3600, workflows_at_start={"wf_1": "one"})
    with sandbox.serve():
        yield sandbox
