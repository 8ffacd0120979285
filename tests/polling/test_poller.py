"""One loop reads the history for every wait, against the sandbox over a socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

import pytest

from techflow_provider.client import Execution, ExecutionNotFoundError, Settings, TechFlowError, UnauthorizedError
from techflow_provider.client.history import ExecutionSelector, ExecutionTracker, History, HistoryFilter
from techflow_provider.polling.poller import Access, Poller
from techflow_provider.sandbox import Fault, Record, Sandbox
from techflow_provider.state.budget import LocalBudget
from techflow_provider.state.store import StoreError
from tests.polling.conftest import INTERVAL, KEY, Reader, until

pytestmark = pytest.mark.usefixtures("quick")


@dataclass
class Connections:
    """Looks a connection up again, counts how often, and can have its key changed."""

    url: str
    keys: list[str] = field(default_factory=lambda: [KEY])
    looked_up: int = 0
    bell: Callable[[], int] | None = None

    def access(self) -> Access:
        key = self.keys[min(self.looked_up, len(self.keys) - 1)]
        return Access(Settings(key, self.url), LocalBudget(100_000, 50_000), self.bell)

    async def __call__(self) -> Access:
        self.looked_up += 1
        return self.access()

    def poller(self) -> Poller:
        return Poller(self.access(), self)


async def looks(sandbox: Sandbox, count: int) -> None:
    """Wait until the history has been read so many times more."""
    wanted = sandbox.count(path="/executions") + count
    while sandbox.count(path="/executions") < wanted:  # noqa: ASYNC110 - the sandbox counts in another thread
        await asyncio.sleep(INTERVAL / 2)


def wait(poller: Poller, execution_id: str, appear_seconds: float = 60.0) -> asyncio.Task[Execution]:
    return asyncio.ensure_future(
        poller.wait(ExecutionTracker(ExecutionSelector(execution_id), appear_seconds), INTERVAL)
    )


async def test_one_poll_serves_all_waits(served: Sandbox) -> None:
    poller = Connections(served.base_url).poller()
    ids = [served.start("wf_1").id for _ in range(50)]
    waits = [wait(poller, each) for each in ids]
    await looks(served, 3)
    for each in ids:
        served.finish(each, outcome="completed")
    before = served.count(path="/executions")
    ended = await asyncio.gather(*waits)
    assert [execution.id for execution in ended] == ids
    assert served.count(path="/executions") - before <= 3


async def test_a_poller_ends_with_its_last_wait_and_begins_again_with_the_next(served: Sandbox) -> None:
    poller = Connections(served.base_url).poller()
    first = wait(poller, served.start("wf_1").id)
    await looks(served, 1)
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    assert poller._task is not None
    await poller._task
    second = wait(poller, served.start("wf_1").id)
    await looks(served, 1)
    second.cancel()


async def test_a_wait_that_joins_while_the_others_are_told_of_an_error_is_told_too(served: Sandbox) -> None:
    poller = Connections(served.base_url, keys=["another-key"]).poller()

    async def wait_again_after_an_error() -> list[type[BaseException]]:
        ends: list[type[BaseException]] = []
        for _ in range(3):
            try:
                await poller.wait(ExecutionTracker(ExecutionSelector("ex_1")), INTERVAL)
            except UnauthorizedError as error:
                ends.append(type(error))
        return ends

    waits = [wait_again_after_an_error() for _ in range(3)]
    assert await asyncio.gather(*waits) == [[UnauthorizedError] * 3] * 3


async def test_failing_looks_end_no_wait(served: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    execution_id = served.start("wf_1").id
    for kind in ("status", "html", "truncated", "drop", "reset"):
        served.faults.add(Fault(kind, path="/executions", times=1))
    waiting = wait(Connections(served.base_url).poller(), execution_id)
    with caplog.at_level(logging.WARNING):
        await looks(served, 7)
    assert not waiting.done()
    served.finish(execution_id, outcome="failed", error="disk full")
    assert (await waiting).error == "disk full"
    assert "Polling the execution history failed and is retried" in caplog.text


async def test_a_refused_key_ends_every_wait_with_the_reason(served: Sandbox) -> None:
    connect = Connections(served.base_url, keys=["another-key"])
    poller = connect.poller()
    waits = [wait(poller, "ex_1") for _ in range(3)]
    ends = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(end) for end in ends] == [UnauthorizedError] * 3
    assert connect.looked_up == 1


async def test_a_key_that_was_changed_meanwhile_is_taken_up(served: Sandbox) -> None:
    execution = served.start("wf_1")
    served.finish(execution.id, outcome="completed")
    connect = Connections(served.base_url, keys=["old-key", KEY])
    assert (await wait(connect.poller(), execution.id)).id == execution.id


async def test_an_execution_that_never_appears_ends_its_own_wait_alone(served: Sandbox) -> None:
    poller = Connections(served.base_url).poller()
    missing, other = wait(poller, "ex_unknown", appear_seconds=0.0), wait(poller, served.start("wf_1").id)
    with pytest.raises(ExecutionNotFoundError):
        await missing
    assert not other.done()
    other.cancel()


async def test_a_look_that_breaks_in_an_unknown_way_ends_every_wait_with_the_reason(served: Sandbox) -> None:
    class Broken:
        interval_seconds = INTERVAL
        reason: TechFlowError | None = None

        def add_to(self, history_filter: HistoryFilter) -> None:
            raise KeyError("no interest")

        def update(self, history: History, now: float) -> bool:
            return False

        def report(self, error: TechFlowError) -> None:
            self.reason = error

        fail = report

    poller, broken = Connections(served.base_url).poller(), Broken()
    with poller.observed_by(broken), pytest.raises(TechFlowError, match="history could not be read: KeyError"):
        await wait(poller, "ex_1")
    assert "no interest" in str(broken.reason)


async def test_a_wait_that_joins_is_told_of_an_execution_that_another_one_knows_already(served: Sandbox) -> None:
    served.etags = True
    poller, execution_id = Connections(served.base_url).poller(), served.start("wf_1").id
    first = wait(poller, execution_id)
    await looks(served, 3)
    watch = ExecutionTracker(ExecutionSelector(execution_id), appear_seconds=0.0)
    second = asyncio.ensure_future(poller.wait(watch, INTERVAL))
    await looks(served, 3)
    assert watch.status == "running"
    served.finish(execution_id, outcome="completed")
    assert (await first).id == (await second).id == execution_id


async def test_a_history_that_has_not_changed_is_not_sent_again(served: Sandbox) -> None:
    served.etags = True
    execution_id = served.start("wf_1").id
    waiting = wait(Connections(served.base_url).poller(), execution_id)
    await looks(served, 5)
    assert served.count(path="/executions", status=304) >= 3
    served.finish(execution_id, outcome="completed")
    assert (await waiting).ended


async def test_a_bell_brings_a_look_at_once(served: Sandbox) -> None:
    rings = [0]
    execution_id = served.start("wf_1").id
    poller = Connections(served.base_url, bell=lambda: rings[0]).poller()
    waiting = asyncio.ensure_future(poller.wait(ExecutionTracker(ExecutionSelector(execution_id)), 3600.0))
    await looks(served, 1)
    served.finish(execution_id, outcome="completed")
    rings[0] += 1
    async with asyncio.timeout(30):
        assert (await waiting).ended


async def test_a_bell_that_cannot_be_read_is_told_once_and_the_looks_go_on(
    served: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    def bell() -> int:
        raise StoreError("the store is gone")

    execution_id = served.start("wf_1").id
    with caplog.at_level(logging.WARNING):
        waiting = wait(Connections(served.base_url, bell=bell).poller(), execution_id)
        await looks(served, 5)
        served.finish(execution_id, outcome="completed")
        assert (await waiting).ended
    assert (
        caplog.text.count("Polling continues without webhooks: the wake-up counter can't be read (the store is gone)")
        == 1
    )


async def test_several_pollers_of_a_key_look_less_often(served: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def attend() -> int:
        asked.append(served.count(path="/executions"))
        return 10**9

    connect = Connections(served.base_url)
    poller = Poller(replace(connect.access(), heartbeat=attend), connect)
    waiting = wait(poller, served.start("wf_1").id)
    await looks(served, 1)
    await until(lambda: asked)
    await asyncio.sleep(5 * INTERVAL)
    assert served.count(path="/executions") == 1
    waiting.cancel()


async def test_pollers_that_cannot_be_counted_are_as_many_as_before(served: Sandbox) -> None:
    counts: Iterator[int | StoreError] = iter([1, StoreError("the store is gone"), 1])

    def attend() -> int:
        count = next(counts, 1)
        if isinstance(count, StoreError):
            raise count
        return count

    connect = Connections(served.base_url)
    execution_id = served.start("wf_1").id
    waiting = wait(Poller(replace(connect.access(), heartbeat=attend), connect), execution_id)
    await looks(served, 4)
    served.finish(execution_id, outcome="completed")
    assert (await waiting).ended


async def test_an_observer_of_workflows_is_handed_them_and_nothing_after_it_left(served: Sandbox) -> None:
    poller, reader = Connections(served.base_url).poller(), Reader()
    with poller.observed_by(reader):
        await until(lambda: reader.histories)
    handed = len(reader.histories)
    assert [each.id for each in reader.histories[0].workflows or ()] == ["wf_1"]
    assert poller._task is not None
    await poller._task
    assert len(reader.histories) == handed


async def test_without_an_interest_in_workflows_none_are_read(served: Sandbox) -> None:
    waiting = wait(Connections(served.base_url).poller(), served.start("wf_1").id)
    await looks(served, 2)
    assert served.count(path="/workflows") == 0
    waiting.cancel()


async def test_the_same_failure_is_told_once_and_again_after_a_look_that_succeeded(served: Sandbox) -> None:
    poller, reader = Connections(served.base_url).poller(), Reader()
    with poller.observed_by(reader):
        for times in (1, 2):
            served.faults.add(Fault(path="/workflows", times=3))
            await until(lambda: len(reader.missed) == times)  # noqa: B023 - awaited in this round
            seen = len(reader.histories)
            await until(lambda: len(reader.histories) > seen)  # noqa: B023 - awaited in this round
    assert len(reader.missed) == 2
    assert not reader.failed


async def test_a_failed_look_is_one_request(served: Sandbox) -> None:
    waiting = wait(Connections(served.base_url).poller(), served.start("wf_1").id)
    await looks(served, 1)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    served.faults.add(Fault(path="/workflows", times=1))
    poller, reader = Connections(served.base_url).poller(), Reader()
    with poller.observed_by(reader):
        await until(lambda: reader.missed)
        assert served.count(path="/workflows") == 1


async def test_the_end_of_a_poller_is_told_when_its_last_observer_has_left(served: Sandbox) -> None:
    ended: list[bool] = []
    connect = Connections(served.base_url)
    poller = Poller(connect.access(), connect, lambda: ended.append(True))
    first, second = wait(poller, served.start("wf_1").id), wait(poller, served.start("wf_1").id)
    await looks(served, 2)
    first.cancel()
    await looks(served, 2)
    assert not ended
    second.cancel()
    await until(lambda: ended)


async def test_an_end_on_a_page_before_one_that_fails_is_not_lost(served: Sandbox) -> None:
    served.etags, served.page_size = True, 1
    served.start("wf_1")
    on_first_page = served.start("wf_1").id
    waiting = wait(Connections(served.base_url).poller(), on_first_page)
    await looks(served, 4)
    before = served.count(path="/executions", status=200)

    def fail_the_next(record: Record) -> None:
        if record.status == 200 and served.count(path="/executions", status=200) == before + 1:
            served.faults.add(Fault(path="/executions", times=1))

    served.on_request = fail_the_next
    served.finish(on_first_page, outcome="completed")
    async with asyncio.timeout(30):
        assert (await waiting).ended
    assert served.count(path="/executions", status=500) == 1
