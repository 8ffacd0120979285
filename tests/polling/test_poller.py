"""One loop polls the history for every wait."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import pytest

from techflow_provider.client import ExecutionNotFoundError, TechFlowError, UnauthorizedError
from techflow_provider.client.history import ExecutionSelector, ExecutionTracker, History, HistoryFilter
from techflow_provider.sandbox import Fault, Record, Sandbox
from techflow_provider.state.budget import LocalBudget, RequestClass
from techflow_provider.state.store import StoreError
from tests.polling.conftest import INTERVAL, RARELY, Connection, Reader, polls, until, wait
from tests.polling.virtual_time import virtual_time


@virtual_time
async def test_one_poll_serves_all_waits(sandbox: Sandbox) -> None:
    poller = Connection(sandbox).poller()
    ids = [sandbox.start("wf_1").id for _ in range(50)]
    waits = [wait(poller, each) for each in ids]
    await polls(sandbox, 3)
    for each in ids:
        sandbox.finish(each, outcome="completed")
    before = sandbox.count(path="/executions")
    ended = await asyncio.gather(*waits)
    assert [execution.id for execution in ended] == ids
    assert sandbox.count(path="/executions") - before == 1


@virtual_time
async def test_a_poller_ends_with_its_last_wait_and_begins_again_with_the_next(sandbox: Sandbox) -> None:
    ended: list[bool] = []
    poller = Connection(sandbox).poller(lambda: ended.append(True))
    first = wait(poller, sandbox.start("wf_1").id)
    await polls(sandbox, 1)
    first.cancel()
    await until(lambda: ended)
    before = sandbox.count()
    await asyncio.sleep(10 * INTERVAL)
    assert sandbox.count() == before
    wait(poller, sandbox.start("wf_1").id)
    await polls(sandbox, 1)


@virtual_time
async def test_an_observer_that_is_added_while_others_are_ended_is_ended_too(sandbox: Sandbox) -> None:
    poller = Connection(sandbox, keys=["another-key"]).poller()

    async def wait_again_after_an_error() -> list[type[BaseException]]:
        ends: list[type[BaseException]] = []
        for _ in range(3):
            try:
                await wait(poller, "ex_1")
            except UnauthorizedError as error:
                ends.append(type(error))
        return ends

    waits = [wait_again_after_an_error() for _ in range(3)]
    assert await asyncio.gather(*waits) == [[UnauthorizedError] * 3] * 3


@virtual_time
async def test_failed_polls_end_no_wait(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    execution_id = sandbox.start("wf_1").id
    for kind in ("status", "html", "truncated", "drop", "reset"):
        sandbox.faults.add(Fault(kind, path="/executions", times=1))
    waiting = wait(Connection(sandbox).poller(), execution_id)
    with caplog.at_level(logging.WARNING):
        await polls(sandbox, 7)
    assert not waiting.done()
    sandbox.finish(execution_id, outcome="failed", error="disk full")
    assert (await waiting).error == "disk full"
    assert "execution history failed" in caplog.text


@virtual_time
async def test_a_refused_key_ends_every_wait_with_the_reason(sandbox: Sandbox) -> None:
    connection = Connection(sandbox, keys=["another-key"])
    poller = connection.poller()
    ends = await asyncio.gather(*(wait(poller, "ex_1") for _ in range(3)), return_exceptions=True)
    assert [type(end) for end in ends] == [UnauthorizedError] * 3
    assert connection.looked_up == 1


@virtual_time
async def test_a_key_that_has_been_changed_in_the_connection_is_used(sandbox: Sandbox) -> None:
    execution = sandbox.start("wf_1")
    sandbox.finish(execution.id, outcome="completed")
    connection = Connection(sandbox, keys=["old-key", *sandbox.api_keys])
    assert (await wait(connection.poller(), execution.id)).id == execution.id


@virtual_time
async def test_an_execution_that_never_appears_ends_its_own_wait_alone(sandbox: Sandbox) -> None:
    poller = Connection(sandbox).poller()
    missing, other = wait(poller, "ex_unknown", appear_seconds=60.0), wait(poller, sandbox.start("wf_1").id)
    with pytest.raises(ExecutionNotFoundError):
        await missing
    await polls(sandbox, 1)
    assert not other.done()


@virtual_time
async def test_an_unexpected_exception_ends_every_wait_with_the_reason(sandbox: Sandbox) -> None:
    class Broken:
        interval_seconds = INTERVAL
        reason: TechFlowError | None = None

        def add_to(self, history_filter: HistoryFilter) -> None:
            raise KeyError("no filter")

        def update(self, history: History, now: float) -> bool:
            return False

        def report(self, error: TechFlowError) -> None:
            self.reason = error

        fail = report

    poller, broken = Connection(sandbox).poller(), Broken()
    with poller.observed_by(broken), pytest.raises(TechFlowError, match="history could not be read: KeyError"):
        await wait(poller, "ex_1")
    assert "no filter" in str(broken.reason)


@virtual_time
async def test_a_new_wait_receives_an_execution_whose_status_another_one_knows_already(sandbox: Sandbox) -> None:
    poller, execution_id = Connection(sandbox).poller(), sandbox.start("wf_1").id
    first = wait(poller, execution_id)
    await polls(sandbox, 3)
    tracker = ExecutionTracker(ExecutionSelector(execution_id), appear_seconds=0.0)
    second = asyncio.ensure_future(poller.wait(tracker, INTERVAL))
    await polls(sandbox, 3)
    assert tracker.status == "running"
    sandbox.finish(execution_id, outcome="completed")
    assert (await first).id == (await second).id == execution_id


@virtual_time
async def test_a_webhook_makes_the_poller_poll_at_once(sandbox: Sandbox) -> None:
    wakeups = [0]
    execution_id = sandbox.start("wf_1").id
    poller = Connection(sandbox, wakeups=lambda: wakeups[0]).poller()
    waiting = wait(poller, execution_id, RARELY)
    await polls(sandbox, 1)
    sandbox.finish(execution_id, outcome="completed")
    wakeups[0] += 1
    async with asyncio.timeout(5.0):
        assert (await waiting).ended


@virtual_time
async def test_a_wakeup_counter_that_cannot_be_read_is_logged_once_and_polling_continues(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    def wakeups() -> int:
        raise StoreError("the store is gone")

    execution_id = sandbox.start("wf_1").id
    with caplog.at_level(logging.WARNING):
        waiting = wait(Connection(sandbox, wakeups=wakeups).poller(), execution_id)
        await polls(sandbox, 5)
        sandbox.finish(execution_id, outcome="completed")
        assert (await waiting).ended
    message = "Polling continues without webhooks: the wake-up counter can't be read (the store is gone)"
    assert caplog.text.count(message) == 1


@virtual_time
async def test_an_observer_receives_the_workflows_and_nothing_after_it_was_removed(sandbox: Sandbox) -> None:
    ended: list[bool] = []
    poller, reader = Connection(sandbox).poller(lambda: ended.append(True)), Reader()
    with poller.observed_by(reader):
        await until(lambda: reader.histories)
    received = len(reader.histories)
    assert [each.id for each in reader.histories[0].workflows or ()] == ["wf_1"]
    await until(lambda: ended)
    assert len(reader.histories) == received


@virtual_time
async def test_workflows_that_no_observer_needs_are_not_read(sandbox: Sandbox) -> None:
    wait(Connection(sandbox).poller(), sandbox.start("wf_1").id)
    await polls(sandbox, 2)
    assert sandbox.count(path="/workflows") == 0


@virtual_time
async def test_a_repeated_failure_is_reported_once_and_again_after_a_poll_that_succeeded(sandbox: Sandbox) -> None:
    poller, reader = Connection(sandbox).poller(), Reader()
    with poller.observed_by(reader):
        for times in (1, 2):
            sandbox.faults.add(Fault(path="/workflows", times=3))
            await until(lambda: len(reader.reported) == times)  # noqa: B023 - awaited in this round
            received = len(reader.histories)
            await until(lambda: len(reader.histories) > received)  # noqa: B023 - awaited in this round
    assert len(reader.reported) == 2
    assert sandbox.count(path="/workflows", status=500) == 6
    assert not reader.failed


@virtual_time
async def test_a_failed_poll_is_one_request(sandbox: Sandbox) -> None:
    sandbox.faults.add(Fault(path="/workflows", times=1))
    reader = Reader()
    with Connection(sandbox).poller().observed_by(reader):
        await until(lambda: reader.reported)
        assert sandbox.count(path="/workflows") == 1


@virtual_time
async def test_the_end_of_a_poller_is_reported_when_its_last_observer_was_removed(sandbox: Sandbox) -> None:
    ended: list[bool] = []
    poller = Connection(sandbox).poller(lambda: ended.append(True))
    first, second = wait(poller, sandbox.start("wf_1").id), wait(poller, sandbox.start("wf_1").id)
    await polls(sandbox, 2)
    first.cancel()
    await polls(sandbox, 2)
    assert not ended
    second.cancel()
    with suppress(asyncio.CancelledError):
        await second
    await until(lambda: ended)


@virtual_time
async def test_a_completion_on_a_page_before_one_that_fails_is_not_lost(sandbox: Sandbox) -> None:
    sandbox.page_size = 1
    on_second_page, on_first_page = sandbox.start("wf_1").id, sandbox.start("wf_1").id
    poller = Connection(sandbox).poller()
    waiting, other = wait(poller, on_first_page), wait(poller, on_second_page)
    await polls(sandbox, 4)
    before = sandbox.count(path="/executions", status=200)

    def fail_the_next(record: Record) -> None:
        if record.status == 200 and sandbox.count(path="/executions", status=200) == before + 1:
            sandbox.faults.add(Fault(path="/executions", times=1))

    sandbox.on_request = fail_the_next
    sandbox.finish(on_first_page, outcome="completed")
    assert (await waiting).ended
    assert sandbox.count(path="/executions", status=500) == 1
    sandbox.finish(on_second_page, outcome="completed")
    assert (await other).ended


@virtual_time
async def test_a_wait_that_begins_before_a_poll_gets_no_slot_receives_what_has_not_changed(sandbox: Sandbox) -> None:
    budget = LocalBudget(100_000, 50_000, clock=asyncio.get_running_loop().time)
    poller, ended = Connection(sandbox, budget=budget).poller(), sandbox.start("wf_1").id
    wait(poller, sandbox.start("wf_1").id)
    sandbox.finish(ended, outcome="completed")
    await wait(poller, ended)
    budget.cool_down(300.0, budget.reserve(RequestClass.POLL, 0.0))
    async with asyncio.timeout(600):
        assert (await wait(poller, ended)).ended
