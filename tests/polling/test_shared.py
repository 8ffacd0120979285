"""One of the readers of an API key polls at a time, and the others read what it has written for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar

import httpx
import pytest

from techflow_provider.client import AsyncClient, BudgetTimeoutError, Execution, Settings, TechFlowError
from techflow_provider.client.errors import RefusedError
from techflow_provider.client.history import ExecutionSelector, ExecutionTracker, HistoryFilter
from techflow_provider.client.reading import ReadTerms, read_history
from techflow_provider.polling.board import LARGEST_ROWS, MOST_IDS
from techflow_provider.polling.poller import Poller
from techflow_provider.polling.shared import SharedReader
from techflow_provider.sandbox import Fault, Sandbox
from techflow_provider.state.budget import LocalBudget, RequestClass
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.store import Change, Entry, StoreError
from tests.polling.conftest import INTERVAL, KEY, Connection, until, wait
from tests.polling.virtual_time import virtual_time

T = TypeVar("T")


def now() -> float:
    return asyncio.get_running_loop().time()


class CountingStore(MemoryStore):
    """A store that counts its operations, and can be broken."""

    def __init__(self) -> None:
        super().__init__(now)
        self.operations = 0
        self.broken = False

    def update(self, namespace: str, name: str, change: Change[T]) -> T:
        self._use()
        return super().update(namespace, name, change)

    def entries(self, namespace: str, prefix: str = "") -> list[Entry]:
        self._use()
        return super().entries(namespace, prefix)

    def _use(self) -> None:
        self.operations += 1
        if self.broken:
            raise StoreError("the store is gone")

    def texts(self) -> list[str]:
        return [kept[0] for namespace in self._kept.values() for kept in namespace.values()]


@dataclass
class Deployment:
    """Processes that share a store.

    :param sandbox: the server
    :param clients: one per process
    """

    sandbox: Sandbox
    store: CountingStore = field(default_factory=CountingStore)
    clients: list[AsyncClient] = field(default_factory=list)
    wakeups: Callable[[], int] | None = None

    def client(self, transport: httpx.AsyncBaseTransport | None = None, name: str | None = None) -> AsyncClient:
        """Return the client of another process."""
        settings = Settings(KEY, self.sandbox.base_url, verify=False)
        client = AsyncClient(
            settings=settings,
            budget=LocalBudget(100_000, 50_000),
            transport=transport or self.sandbox.transport(),
            clock=now,
            reader=SharedReader(self.store, "account", name, self.wakeups),
        )
        self.clients.append(client)
        return client

    def wait(self, execution_id: str, seconds: float | None = None) -> asyncio.Task[Execution]:
        """Wait for an execution in a process of its own."""
        waiting = self.client().executions.wait(ExecutionSelector(execution_id), INTERVAL, seconds)
        return asyncio.ensure_future(waiting)

    async def poke(self, execution_id: str, max_age_seconds: float = 0.0) -> Execution | None:
        """Poke once, in a process of its own."""
        return await poke(self.client(), execution_id, max_age_seconds)

    def poller(self, name: str) -> Connection:
        """Return the connection of a triggerer's poller."""
        return Connection(self.sandbox, reader=SharedReader(self.store, "account", name))

    @property
    def polls(self) -> int:
        return self.sandbox.count(path="/executions")


async def poke(client: AsyncClient, execution_id: str, max_age_seconds: float = 0.0) -> Execution | None:
    tracker = ExecutionTracker(ExecutionSelector(execution_id))
    terms = ReadTerms(10.0, INTERVAL, max_age_seconds, 180.0)
    history = await read_history(client.context, tracker.history_filter, terms)
    return tracker.update(history, now())


@virtual_time
async def test_waits_of_many_processes_share_one_poll_per_interval(sandbox: Sandbox) -> None:
    deployment = Deployment(sandbox)
    ids = [sandbox.start("wf_1").id for _ in range(20)]
    waits = [deployment.wait(each) for each in ids]
    await asyncio.sleep(600)
    assert 100 <= deployment.polls <= 125
    for each in ids:
        sandbox.finish(each, outcome="completed")
    before = deployment.polls
    began = now()
    assert [each.id for each in await asyncio.gather(*waits)] == ids
    assert deployment.polls - before <= 2
    assert now() - began <= 2 * INTERVAL


@virtual_time
async def test_those_that_do_not_poll_read_the_store_about_twice_per_interval(sandbox: Sandbox) -> None:
    deployment = Deployment(sandbox)
    for _ in range(20):
        deployment.wait(sandbox.start("wf_1").id)
    await asyncio.sleep(60)
    before = deployment.store.operations
    await asyncio.sleep(600)
    per_wait_and_interval = (deployment.store.operations - before) / 20 / 120
    assert per_wait_and_interval < 2.5


@virtual_time
async def test_triggerers_share_one_poll_and_see_every_end(sandbox: Sandbox) -> None:
    deployment = Deployment(sandbox)
    pollers = [deployment.poller(name).poller() for name in "abc"]
    ids = [sandbox.start("wf_1").id for _ in range(30)]
    waits = [wait(pollers[number % 3], each) for number, each in enumerate(ids)]
    await asyncio.sleep(300)
    assert deployment.polls <= 64
    for each in ids:
        sandbox.finish(each, outcome="failed", error="disk full")
        await asyncio.sleep(1.0)
    ended = await asyncio.gather(*waits)
    assert [(each.id, each.error) for each in ended] == [(each, "disk full") for each in ids]
    assert deployment.polls <= 64 + 12


@virtual_time
async def test_a_task_that_comes_back_finds_its_result_without_a_request(sandbox: Sandbox) -> None:
    deployment = Deployment(sandbox)
    wanted, other = sandbox.start("wf_1").id, sandbox.start("wf_1").id
    assert await deployment.poke(wanted) is None
    deployment.wait(other)
    await asyncio.sleep(20)
    sandbox.finish(wanted, outcome="completed")
    await asyncio.sleep(40)
    deployment.sandbox.faults.add(Fault())
    execution = await deployment.poke(wanted)
    assert execution is not None
    assert execution.ended


@virtual_time
async def test_a_poke_gets_no_result_from_before_it(sandbox: Sandbox) -> None:
    deployment = Deployment(sandbox)
    wanted = sandbox.start("wf_1").id
    client = deployment.client()
    assert await poke(client, wanted) is None
    assert await poke(client, wanted) is None
    assert deployment.polls == 2
    assert await poke(client, wanted, max_age_seconds=5.0) is None
    assert deployment.polls == 2
    sandbox.finish(wanted, outcome="completed")
    assert await poke(client, wanted) is not None


@virtual_time
async def test_a_poke_that_gets_no_poll_in_time_says_so(sandbox: Sandbox) -> None:
    deployment = Deployment(sandbox)
    client = deployment.client()
    client.budget.cool_down(300.0, client.budget.reserve(RequestClass.POLL, 0.0))
    with pytest.raises(BudgetTimeoutError):
        await poke(client, "ex_1")


class Stopping(httpx.AsyncBaseTransport):
    """A transport that stops at a request, as the process does, and continues later."""

    def __init__(self, sandbox: Sandbox, at: int) -> None:
        self.inner = sandbox.transport()
        self.requests = 0
        self.at = at
        self.stopped = asyncio.Event()
        self.resumed = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        response = await self.inner.handle_async_request(request)
        if self.requests == self.at:
            self.stopped.set()
            await self.resumed.wait()
        return response


@virtual_time
async def test_a_holder_that_stops_delays_nobody_by_more_than_two_intervals(sandbox: Sandbox) -> None:
    deployment = Deployment(sandbox)
    stopping = Stopping(sandbox, at=3)
    first, second = sandbox.start("wf_1").id, sandbox.start("wf_1").id
    holder = asyncio.ensure_future(
        deployment.client(stopping, name="holder").executions.wait(ExecutionSelector(first), INTERVAL)
    )
    await until(lambda: stopping.requests)
    others = [deployment.wait(second) for _ in range(3)]
    await until(stopping.stopped.is_set)
    began = now()
    sandbox.finish(first, outcome="completed")
    sandbox.finish(second, outcome="completed")
    await asyncio.gather(*others)
    assert now() - began <= 2 * INTERVAL
    await asyncio.sleep(60)
    stopping.resumed.set()
    assert (await holder).ended


@virtual_time
async def test_a_holder_that_dies_delays_nobody_by_more_than_two_intervals(sandbox: Sandbox) -> None:
    deployment = Deployment(sandbox)
    poller = deployment.poller("a").poller()
    leading = wait(poller, sandbox.start("wf_1").id)
    await until(lambda: deployment.polls >= 3)
    waiting = deployment.wait(wanted := sandbox.start("wf_1").id)
    await asyncio.sleep(10)
    leading.cancel()
    sandbox.finish(wanted, outcome="completed")
    began = now()
    await waiting
    assert now() - began <= 2 * INTERVAL


@virtual_time
async def test_a_process_that_cannot_reach_the_server_leaves_the_polls_to_others(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    class Partitioned(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await asyncio.sleep(30.0)
            raise httpx.ConnectTimeout("no route to host", request=request)

    deployment = Deployment(sandbox)
    wanted = sandbox.start("wf_1").id
    cut_off = deployment.client(Partitioned())
    waits = [
        asyncio.ensure_future(cut_off.executions.wait(ExecutionSelector(wanted), INTERVAL)),
        *(deployment.wait(wanted) for _ in range(3)),
    ]
    await asyncio.sleep(300)
    assert deployment.polls >= 45
    sandbox.finish(wanted, outcome="completed")
    began = now()
    await asyncio.gather(*waits[1:])
    assert now() - began <= 2 * INTERVAL
    assert (await waits[0]).ended


@virtual_time
async def test_without_a_usable_store_each_process_polls_for_itself(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    deployment = Deployment(sandbox)
    deployment.store.broken = True
    wanted = sandbox.start("wf_1").id
    waits = [deployment.wait(wanted) for _ in range(3)]
    with caplog.at_level(logging.WARNING):
        await asyncio.sleep(60)
    assert caplog.text.count("so this process polls for itself") == 3
    deployment.store.broken = False
    sandbox.finish(wanted, outcome="completed")
    assert all(each.ended for each in await asyncio.gather(*waits))


@virtual_time
async def test_a_permanent_refusal_ends_every_wait_with_few_requests(sandbox: Sandbox) -> None:
    deployment = Deployment(sandbox)
    waits = [deployment.wait(sandbox.start("wf_1").id) for _ in range(20)]
    await asyncio.sleep(20)
    before = deployment.polls
    sandbox.faults.add(Fault(status=403, path="/executions"))
    ends = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(each) for each in ends] == [RefusedError] * 20
    assert deployment.polls - before <= 2


@virtual_time
async def test_a_failed_poll_is_logged_by_each_wait_and_ends_none(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    deployment = Deployment(sandbox)
    wanted = sandbox.start("wf_1").id
    waits = [deployment.wait(wanted) for _ in range(3)]
    await asyncio.sleep(20)
    sandbox.faults.add(Fault(status=503, path="/executions"))
    with caplog.at_level(logging.WARNING):
        await asyncio.sleep(30)
    assert caplog.text.count("failed and is retried") >= 3
    sandbox.faults.clear()
    sandbox.finish(wanted, outcome="completed")
    assert all(each.ended for each in await asyncio.gather(*waits))


@virtual_time
async def test_an_execution_that_is_not_listed_ends_the_wait_of_a_process_that_does_not_poll(sandbox: Sandbox) -> None:
    deployment = Deployment(sandbox)
    deployment.wait(sandbox.start("wf_1").id)
    await asyncio.sleep(10)
    began = now()
    with pytest.raises(TechFlowError, match="did not appear in the execution history within 12"):
        await deployment.wait("ex_none")
    assert 120 <= now() - began <= 150


@virtual_time
async def test_the_next_execution_of_a_workflow_is_found_by_a_process_that_does_not_poll(sandbox: Sandbox) -> None:
    deployment = Deployment(sandbox)
    deployment.wait(sandbox.start("wf_1").id)
    await asyncio.sleep(10)
    since = datetime.now(UTC)
    selector = ExecutionSelector(workflow_id="wf_1", started_after=since)
    waiting = asyncio.ensure_future(deployment.client().executions.wait(selector, INTERVAL))
    await asyncio.sleep(30)
    wanted = sandbox.start("wf_1").id
    await asyncio.sleep(30)
    sandbox.start("wf_1")
    sandbox.finish(wanted, outcome="completed")
    assert (await waiting).id == wanted


@virtual_time
async def test_a_search_gets_all_candidates_of_each_poll(sandbox: Sandbox) -> None:
    deployment = Deployment(sandbox)
    deployment.wait(sandbox.start("wf_1").id)
    await asyncio.sleep(10)
    search = deployment.client()
    history_filter = HistoryFilter()
    since = datetime.now(UTC)
    history_filter.add_workflow("wf_1", since)
    found: list[tuple[int, bool]] = []
    for _ in range(4):
        began = now()
        history = await read_history(search.context, history_filter, ReadTerms(120.0, INTERVAL))
        found.append((len(history.possible("wf_1", since)), history.began >= began))
        sandbox.start("wf_1")
    assert found == [(0, True), (1, True), (2, True), (3, True)]
    assert deployment.polls <= now() / INTERVAL + 3


@virtual_time
async def test_a_webhook_wakes_a_wait_in_a_worker(sandbox: Sandbox) -> None:
    count = [0]
    deployment = Deployment(sandbox, wakeups=lambda: count[0])
    wanted = sandbox.start("wf_1").id
    waiting = asyncio.ensure_future(deployment.client().executions.wait(ExecutionSelector(wanted), 600.0))
    await asyncio.sleep(60)
    sandbox.finish(wanted, outcome="completed")
    count[0] += 1
    began = now()
    await waiting
    assert now() - began <= 2 * INTERVAL


@virtual_time
async def test_two_triggerers_with_more_waits_than_a_registration_holds_share_one_poll(sandbox: Sandbox) -> None:
    deployment = Deployment(sandbox)
    pollers = [deployment.poller(name).poller() for name in "ab"]
    ids = [sandbox.start("wf_1").id for _ in range(2 * MOST_IDS + 100)]
    waits = [wait(pollers[number % 2], each) for number, each in enumerate(ids)]
    await asyncio.sleep(60)
    before = deployment.polls
    await asyncio.sleep(300)
    assert deployment.polls - before <= 64
    late = sandbox.start("wf_1").id
    sandbox.finish(late, outcome="completed")
    assert [(await wait(each, late)).id for each in pollers] == [late, late]
    for each in ids[:50]:
        sandbox.finish(each, outcome="completed")
    began = now()
    ended = await asyncio.gather(*waits[:50])
    assert {each.id for each in ended} == set(ids[:50])
    assert now() - began <= 2 * INTERVAL
    assert max(map(len, deployment.store.texts())) < 2 * LARGEST_ROWS


@virtual_time
async def test_a_page_at_which_one_process_stopped_is_read_by_the_next(sandbox: Sandbox) -> None:
    deployment = Deployment(sandbox)
    sandbox.page_size = 1
    wanted = sandbox.start("wf_1").id
    for _ in range(30):
        sandbox.start("wf_1")
    sandbox.finish(wanted, outcome="completed")
    found = None
    while found is None:
        found = await deployment.poke(wanted)
        await asyncio.sleep(INTERVAL)
    assert deployment.polls <= 50


@virtual_time
async def test_a_row_that_repeats_the_key_is_not_stored(sandbox: Sandbox) -> None:
    deployment = Deployment(sandbox)
    deployment.wait(sandbox.start("wf_1").id)
    await asyncio.sleep(10)
    waiting = deployment.wait(wanted := sandbox.start("wf_1").id)
    await asyncio.sleep(30)
    sandbox.finish(wanted, outcome="failed", error=f"rejected: {KEY}")
    assert (await waiting).ended
    assert not any(KEY in text for text in deployment.store.texts())


@virtual_time
async def test_what_cannot_be_read_in_the_store_counts_as_nothing(sandbox: Sandbox) -> None:
    deployment = Deployment(sandbox)
    wanted = sandbox.start("wf_1").id
    assert await deployment.poke(wanted) is None
    for namespace in deployment.store._kept.values():
        for name, kept in namespace.items():
            for text in ("", "null", "[]", '{"want": 1}', '{"number": "x", "unknown": 1}'):
                namespace[name] = (text, *kept[1:])
                assert await deployment.poke(wanted) is None
    sandbox.finish(wanted, outcome="completed")
    assert await deployment.poke(wanted) is not None


@virtual_time
async def test_a_process_that_is_alone_polls_again_soon_after_a_failed_poll(sandbox: Sandbox) -> None:
    deployment = Deployment(sandbox)
    wait(deployment.poller("a").poller(), sandbox.start("wf_1").id)
    await until(lambda: deployment.polls)
    sandbox.faults.add(Fault(path="/executions", times=1))
    await until(lambda: sandbox.count(path="/executions", status=500))
    before, began = deployment.polls, now()
    await until(lambda: deployment.polls > before)
    assert now() - began <= 2 * INTERVAL + 1


@virtual_time
async def test_waits_distinguish_executions_whose_ids_count_per_workflow(sandbox: Sandbox) -> None:
    deployment, rows = Deployment(sandbox), [row("wf_2", "completed"), row("wf_1", "running")]

    def respond(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"executions": rows}, request=request)

    transport, selector = httpx.MockTransport(respond), ExecutionSelector("1", "wf_1")
    poller = Poller(replace(deployment.poller("a").access(), transport=transport), deployment.poller("a"))
    waits = [
        asyncio.ensure_future(poller.wait(ExecutionTracker(selector), INTERVAL)),
        *(asyncio.ensure_future(deployment.client(transport).executions.wait(selector, INTERVAL)) for _ in range(2)),
    ]
    await asyncio.sleep(60)
    assert not any(each.done() for each in waits)
    rows[1] = row("wf_1", "failed")
    assert [(each.workflow_id, each.status) for each in await asyncio.gather(*waits)] == [("wf_1", "failed")] * 3


def row(workflow_id: str, status: str) -> dict[str, str]:
    return {"id": "1", "workflow_id": workflow_id, "status": status, "started_at": "2026-01-01T00:00:00Z"}
