"""What a poller tells its pace, and what it takes from the bell and from the key's other pollers."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from techflow_provider.client import Settings, UnauthorizedError
from techflow_provider.client.history import ExecutionSelector, ExecutionTracker, History
from techflow_provider.polling import poller as module
from techflow_provider.polling import schedule as pace_module
from techflow_provider.polling.poller import Access, Poller
from techflow_provider.polling.schedule import PollSchedule
from techflow_provider.sandbox import Fault, Sandbox
from techflow_provider.state.budget import LocalBudget
from techflow_provider.state.snapshot import Snapshot
from techflow_provider.state.store import StoreError
from tests.polling.conftest import INTERVAL, KEY, Reader, until

# Between two looks that no webhook asks for; longer than any test.
RARELY = 3600.0


@dataclass
class NotedPace(PollSchedule):
    """A pace that keeps what it is told, and what it answers."""

    told: list[object] = field(default_factory=list)
    began: list[float] = field(default_factory=list)
    rungs: list[float] = field(default_factory=list)
    pollers: list[int] = field(default_factory=list)

    def failed(self, now: float) -> None:
        self.told.append("failed")
        super().failed(now)

    def polled(self, now: float, *, woken: bool, found: bool) -> None:
        self.told.append((woken, found))
        super().polled(now, woken=woken, found=found)

    def due(self, began: float, ended: float, wanted_seconds: float, budget: Snapshot, pollers: int) -> float:
        if began not in self.began:
            self.began.append(began)
            self.pollers.append(pollers)
        return super().due(began, ended, wanted_seconds, budget, pollers)

    def woken_due(self, began: float) -> float:
        self.rungs.append(super().woken_due(began))
        return self.rungs[-1]


@dataclass
class Bell:
    """Rings when a test says so, can be broken, and counts how often it was asked."""

    rings: int = 7
    asked: int = 0
    broken: bool = False

    def __call__(self) -> int:
        self.asked += 1
        if self.broken:
            raise StoreError("the store is gone")
        return self.rings


@pytest.fixture
def pace(quick: None, monkeypatch: pytest.MonkeyPatch) -> NotedPace:
    """Let looks follow each other at once, by a pace that a test can ask."""
    pace = NotedPace()
    monkeypatch.setattr(module, "PollSchedule", lambda: pace)
    return pace


def poller(
    sandbox: Sandbox,
    bell: Callable[[], int] | None = None,
    attend: Callable[[], int] | None = None,
    key: str = KEY,
    budget: LocalBudget | None = None,
) -> Poller:
    access = Access(Settings(key, sandbox.base_url), budget or LocalBudget(100_000, 50_000), bell, attend)

    async def connect() -> Access:
        return access

    return Poller(access, connect)


def wait(of: Poller, execution_id: str, interval_seconds: float = RARELY) -> asyncio.Future[object]:
    return asyncio.ensure_future(of.wait(ExecutionTracker(ExecutionSelector(execution_id)), interval_seconds))


async def heard(bell: Bell) -> None:
    """Wait until the bell has been asked several times more."""
    before = bell.asked
    await until(lambda: bell.asked >= before + 4)


async def test_only_a_ring_brings_a_look_and_the_pace_is_told_of_it_and_of_news(
    served: Sandbox, pace: NotedPace
) -> None:
    bell, first, second = Bell(), served.start("wf_1").id, served.start("wf_1").id
    observed = poller(served, bell)
    waits = [wait(observed, each) for each in (first, second)]
    await until(lambda: pace.told)
    await heard(bell)
    assert pace.told == [(False, False)]
    bell.rings += 1
    await until(lambda: len(pace.told) == 2)
    await heard(bell)
    served.finish(first, outcome="completed")
    bell.rings += 1
    await until(lambda: len(pace.told) == 3)
    await heard(bell)
    assert pace.told == [(False, False), (True, False), (True, True)]
    assert [each.done() for each in waits] == [True, False]
    waits[1].cancel()


async def test_a_look_whose_time_has_come_is_not_taken_for_one_that_a_webhook_asked_for(
    served: Sandbox, pace: NotedPace
) -> None:
    waiting = wait(poller(served, Bell()), served.start("wf_1").id, INTERVAL)
    await until(lambda: len(pace.told) >= 3)
    assert set(pace.told) == {(False, False)}
    waiting.cancel()


async def test_looks_that_webhooks_ask_for_keep_their_distance(
    served: Sandbox, pace: NotedPace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace_module, "SHORTEST_WOKEN_SECONDS", 0.3)
    bell = Bell()

    def ring() -> int:
        bell.rings += 1
        return bell()

    waiting = wait(poller(served, ring), served.start("wf_1").id)
    await until(lambda: len(pace.began) >= 4)
    assert len(pace.rungs) >= 3
    assert all(began >= earliest for earliest, began in zip(pace.rungs, pace.began[1:], strict=False))
    waiting.cancel()


async def test_a_bell_that_breaks_brings_no_look_and_its_announcements_count_no_more(
    served: Sandbox, pace: NotedPace, caplog: pytest.LogCaptureFixture
) -> None:
    bell = Bell()
    waiting = wait(poller(served, bell), served.start("wf_1").id)
    await until(lambda: pace.told)
    pace.webhook_streak = 3
    for broken in (True, False, True):
        bell.broken = broken
        await heard(bell)
    assert (pace.told, pace.webhook_streak) == ([(False, False)], 0)
    warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert ["Polling continues without webhooks" in each.getMessage() for each in warnings] == [True, True]
    waiting.cancel()


async def test_the_pace_is_told_of_a_look_that_failed(served: Sandbox, pace: NotedPace) -> None:
    served.faults.add(Fault(path="/executions", times=1))
    waiting = wait(poller(served), served.start("wf_1").id, INTERVAL)
    await until(lambda: len(pace.told) >= 2)
    assert pace.told[:2] == ["failed", (False, False)]
    waiting.cancel()


@pytest.mark.parametrize(("attending", "counted"), [(None, 1), (0, 1), (1, 1), (3, 3)])
async def test_a_pace_knows_how_many_pollers_share_the_budget(
    served: Sandbox, pace: NotedPace, attending: int | None, counted: int
) -> None:
    attend = None if attending is None else lambda: attending
    waiting = wait(poller(served, attend=attend), served.start("wf_1").id)
    await until(lambda: pace.pollers)
    assert pace.pollers == [counted]
    waiting.cancel()


async def test_nothing_of_the_observer_that_came_first_belongs_to_the_poller(served: Sandbox, pace: NotedPace) -> None:
    observed_by = contextvars.ContextVar("observed_by", default="nobody")
    observed_by.set("the first")
    seen: list[str] = []

    class Asking(Reader):
        def update(self, history: History, now: float) -> bool:
            seen.append(observed_by.get())
            return False

    with poller(served).observed_by(Asking()):
        await until(lambda: seen)
    assert seen[0] == "nobody"


async def test_a_refused_key_is_no_look_that_is_repeated(served: Sandbox, pace: NotedPace) -> None:
    observed, reader = poller(served, key="another-key"), Reader()
    with observed.observed_by(reader):
        await until(lambda: reader.failed)
        assert isinstance(reader.failed[0], UnauthorizedError)
        assert not reader.missed


async def test_a_look_that_gets_no_slot_comes_to_an_end(
    served: Sandbox, pace: NotedPace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_DEADLINE_SECONDS", 0.05)
    budget, reader = LocalBudget(1, 1), Reader()
    budget.cool_down(300.0, budget.admit(0.0))
    with poller(served, budget=budget).observed_by(reader):
        await until(lambda: reader.missed)
    assert served.count() == 0


async def test_workflows_come_with_the_history_when_both_are_of_interest(served: Sandbox, pace: NotedPace) -> None:
    observed, reader = poller(served), Reader()
    waiting = wait(observed, served.start("wf_1").id, INTERVAL)
    with observed.observed_by(reader):
        await until(lambda: reader.histories)
    assert [each.id for each in reader.histories[0].workflows or ()] == ["wf_1"]
    waiting.cancel()
