"""What a poller records in its schedule, and what it takes from the wake-up counter."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from dataclasses import dataclass, field

import pytest

from techflow_provider.client import UnauthorizedError
from techflow_provider.client.history import History
from techflow_provider.polling import poller as module
from techflow_provider.polling.schedule import PollSchedule
from techflow_provider.sandbox import Fault, Sandbox
from techflow_provider.state.budget import LocalBudget
from techflow_provider.state.store import StoreError
from tests.polling.conftest import RARELY, Connection, Reader, until, wait
from tests.polling.virtual_time import virtual_time


@dataclass
class RecordingSchedule(PollSchedule):
    """A schedule that keeps what is recorded in it, and what it returns."""

    recorded: list[object] = field(default_factory=list)
    began: list[float] = field(default_factory=list)
    woken_dues: list[float] = field(default_factory=list)

    def failed(self) -> None:
        self.recorded.append("failed")
        super().failed()

    def polled(self, *, woken: bool, found: bool) -> None:
        self.recorded.append((woken, found))
        super().polled(woken=woken, found=found)

    def due(self, began: float, ended: float, interval: float) -> float:
        if began not in self.began:
            self.began.append(began)
        return super().due(began, ended, interval)

    def wake(self, began: float) -> float:
        self.woken_dues.append(super().wake(began))
        return self.woken_dues[-1]


@dataclass
class Wakeups:
    """A wake-up counter that a test increments or breaks, and that counts how often it was read."""

    count: int = 7
    reads: int = 0
    broken: bool = False

    def __call__(self) -> int:
        self.reads += 1
        if self.broken:
            raise StoreError("the store is gone")
        return self.count

    async def read_again(self) -> None:
        """Wait until the counter has been read several times more."""
        before = self.reads
        await until(lambda: self.reads >= before + 4)


@pytest.fixture
def schedule(monkeypatch: pytest.MonkeyPatch) -> RecordingSchedule:
    """The schedule of the test's poller."""
    schedule = RecordingSchedule()
    monkeypatch.setattr(module, "PollSchedule", lambda: schedule)
    return schedule


@virtual_time
async def test_only_a_wakeup_causes_a_poll_and_the_schedule_learns_what_it_found(
    sandbox: Sandbox, schedule: RecordingSchedule
) -> None:
    wakeups, first, second = Wakeups(), sandbox.start("wf_1").id, sandbox.start("wf_1").id
    poller = Connection(sandbox, wakeups=wakeups).poller()
    waits = [wait(poller, each, RARELY) for each in (first, second)]
    await until(lambda: schedule.recorded)
    await wakeups.read_again()
    assert schedule.recorded == [(False, False)]
    wakeups.count += 1
    await until(lambda: len(schedule.recorded) == 2)
    await wakeups.read_again()
    sandbox.finish(first, outcome="completed")
    wakeups.count += 1
    await until(lambda: len(schedule.recorded) == 3)
    await wakeups.read_again()
    assert schedule.recorded == [(False, False), (True, False), (True, True)]
    assert [each.done() for each in waits] == [True, False]


@virtual_time
async def test_a_poll_that_was_due_does_not_count_as_one_that_a_webhook_asked_for(
    sandbox: Sandbox, schedule: RecordingSchedule
) -> None:
    wait(Connection(sandbox, wakeups=Wakeups()).poller(), sandbox.start("wf_1").id)
    await until(lambda: len(schedule.recorded) >= 3)
    assert set(schedule.recorded) == {(False, False)}


@virtual_time
async def test_polls_that_webhooks_ask_for_are_spaced(sandbox: Sandbox, schedule: RecordingSchedule) -> None:
    counter = Wakeups()

    def wakeups() -> int:
        counter.count += 1
        return counter()

    wait(Connection(sandbox, wakeups=wakeups).poller(), sandbox.start("wf_1").id, RARELY)
    await until(lambda: len(schedule.began) >= 20)
    assert len(schedule.woken_dues) >= 19
    assert all(began >= due for due, began in zip(schedule.woken_dues, schedule.began[1:], strict=False))
    gaps = [after - before for before, after in zip(schedule.began, schedule.began[1:], strict=False)]
    assert min(gaps) == pytest.approx(1.0, abs=0.1)
    assert max(gaps) == pytest.approx(3.0, abs=0.1)


@virtual_time
async def test_a_broken_wakeup_counter_causes_no_poll(
    sandbox: Sandbox, schedule: RecordingSchedule, caplog: pytest.LogCaptureFixture
) -> None:
    wakeups = Wakeups()
    wait(Connection(sandbox, wakeups=wakeups).poller(), sandbox.start("wf_1").id, RARELY)
    await until(lambda: schedule.recorded)
    for broken in (True, False, True):
        wakeups.broken = broken
        await wakeups.read_again()
    assert schedule.recorded == [(False, False)]
    warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert ["Polling continues without webhooks" in each.getMessage() for each in warnings] == [True, True]


@virtual_time
async def test_the_schedule_learns_of_a_failed_poll(sandbox: Sandbox, schedule: RecordingSchedule) -> None:
    sandbox.faults.add(Fault(path="/executions", times=1))
    wait(Connection(sandbox).poller(), sandbox.start("wf_1").id)
    await until(lambda: len(schedule.recorded) >= 2)
    assert schedule.recorded[:2] == ["failed", (False, False)]


@virtual_time
async def test_a_poller_runs_outside_the_context_of_its_first_observer(sandbox: Sandbox) -> None:
    observed_by = contextvars.ContextVar("observed_by", default="nobody")
    observed_by.set("the first")
    seen: list[str] = []

    class Asking(Reader):
        def update(self, history: History, now: float) -> bool:
            seen.append(observed_by.get())
            return False

    with Connection(sandbox).poller().observed_by(Asking()):
        await until(lambda: seen)
    assert seen[0] == "nobody"


@virtual_time
async def test_a_refused_key_ends_an_observer_once_however_long_it_stays(sandbox: Sandbox) -> None:
    reader = Reader()
    with Connection(sandbox, keys=["another-key"]).poller().observed_by(reader):
        await until(lambda: reader.failed)
        await asyncio.sleep(60)
        assert [type(each) for each in reader.failed] == [UnauthorizedError]
        assert not reader.reported


@virtual_time
async def test_a_poll_that_gets_no_slot_is_given_up(sandbox: Sandbox) -> None:
    budget, reader = LocalBudget(1, 1), Reader()
    budget.cool_down(300.0, budget.admit(0.0))
    with Connection(sandbox, budget=budget).poller().observed_by(reader):
        await until(lambda: reader.reported)
    assert sandbox.count() == 0


@virtual_time
async def test_workflows_come_with_the_history_when_both_are_needed(sandbox: Sandbox) -> None:
    poller, reader = Connection(sandbox).poller(), Reader()
    wait(poller, sandbox.start("wf_1").id)
    with poller.observed_by(reader):
        await until(lambda: reader.histories)
    assert [each.id for each in reader.histories[0].workflows or ()] == ["wf_1"]
    assert len(reader.histories[0]) == 1
