"""The searches that use one API key share one poll, in one event loop and between processes."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from techflow_provider.client import AsyncClient, Settings, TechFlowError
from techflow_provider.client.history import History
from techflow_provider.polling import searches
from techflow_provider.polling.searches import SharedHistory
from techflow_provider.sandbox import Fault, Sandbox
from techflow_provider.state.budget import LocalBudget
from techflow_provider.state.store import Write
from tests.polling.conftest import KEY
from tests.polling.test_shared import CountingStore, now
from tests.polling.virtual_time import virtual_time


class Process:
    """A process that searches.

    :param sandbox: the server
    :param store: what it shares with others
    """

    def __init__(self, sandbox: Sandbox, store: CountingStore) -> None:
        settings = Settings(KEY, sandbox.base_url, verify=False)
        budget = LocalBudget(100_000, 50_000)
        self.client = AsyncClient(settings=settings, budget=budget, transport=sandbox.transport(), clock=now)
        self.history = SharedHistory(store, "account")

    async def poll(self) -> History:
        """Poll for one search."""
        return await self.history.poll(self.client.context, now())


def polls(sandbox: Sandbox) -> int:
    return sandbox.count(path="/executions")


@virtual_time
async def test_the_searches_of_all_processes_share_one_poll_that_began_after_they_asked(sandbox: Sandbox) -> None:
    store = CountingStore()
    execution = sandbox.start("wf_1", {"a": 1})
    processes = [Process(sandbox, store) for _ in range(5)]
    shown = await asyncio.gather(*(each.poll() for each in processes for _ in range(10)))
    # Those that asked while the first poll was under way need another one.
    assert polls(sandbox) <= 2
    for history in shown:
        assert [(each.id, each.raw) for each in history.rows] == [(execution.id, shown[0].rows[0].raw)]
        assert history.at == shown[0].at or polls(sandbox) > 1
    await asyncio.sleep(5)
    later = sandbox.start("wf_1")
    shown = await asyncio.gather(*(each.poll() for each in processes))
    assert all(later.id in {each.id for each in history.rows} for history in shown)


@virtual_time
async def test_polls_for_searches_become_rarer_up_to_one_in_ten_seconds(sandbox: Sandbox) -> None:
    store = CountingStore()

    async def search(process: Process) -> None:
        while True:
            await process.poll()
            await asyncio.sleep(1.0)

    searching = [asyncio.ensure_future(search(Process(sandbox, store))) for _ in range(20)]
    await asyncio.sleep(60)
    begun = polls(sandbox)
    assert begun <= 12
    await asyncio.sleep(600)
    assert 50 <= polls(sandbox) - begun <= 61
    for each in searching:
        each.cancel()


@virtual_time
@pytest.mark.parametrize("kind", ["broken", "large", "key"])
async def test_what_cannot_be_shared_is_read_alone(
    sandbox: Sandbox, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CountingStore()
    store.broken = kind == "broken"
    monkeypatch.setattr(searches, "LARGEST_HISTORY", 10 if kind == "large" else 10**6)
    execution = sandbox.start("wf_1", {"secret": KEY} if kind == "key" else None)
    for _ in range(2):
        history = await Process(sandbox, store).poll()
        assert [each.id for each in history.rows] == [execution.id]
        await asyncio.sleep(0)
    assert not any(KEY in text for text in store.texts())
    assert polls(sandbox) == 2


@virtual_time
async def test_a_poll_that_fails_is_tried_again_by_the_next_search(sandbox: Sandbox) -> None:
    store = CountingStore()
    sandbox.faults.add(Fault(status=404, times=1, path="/executions"))
    with pytest.raises(TechFlowError):
        await Process(sandbox, store).poll()
    assert (await Process(sandbox, store).poll()).rows == ()


@virtual_time
async def test_a_shared_poll_that_cannot_be_read_counts_as_none(sandbox: Sandbox) -> None:
    store = CountingStore()
    await Process(sandbox, store).poll()
    (text,) = store.texts()
    unknown = json.dumps({**json.loads(text), "of version 9": True})
    store.update("account/polls", "searches", lambda *_: (Write(unknown, 60.0), None))
    assert (await Process(sandbox, store).poll()).rows == ()
    assert polls(sandbox) == 2


@virtual_time
async def test_rows_that_cannot_be_read_are_counted_for_those_that_share_the_poll(sandbox: Sandbox) -> None:
    store, process = CountingStore(), None
    for _ in range(2):
        process = Process(sandbox, store)
        found = await process.history.poll(process.client.context, now() - 60.0)
    shared = searches.SharedPoll.of(store.entries("account/polls")[0])
    assert (found.unreadable, polls(sandbox)) == (0, 1)
    unreadable = replace(shared, history={**(shared.history or {}), "unreadable": 3})
    store.update("account/polls", "searches", lambda *_: (unreadable.write(), None))
    process = Process(sandbox, store)
    assert (await process.history.poll(process.client.context, now() - 60.0)).unreadable == 3


@virtual_time
async def test_what_the_records_show_after_a_poll_is_read_by_one_search_for_all_of_the_process(
    sandbox: Sandbox,
) -> None:
    process, earlier_ones = Process(sandbox, CountingStore()), []

    async def read(earlier: str | None) -> str:
        earlier_ones.append(earlier)
        await asyncio.sleep(1)
        return "records"

    first = await process.poll()
    for history in (first, first, await process.poll()):
        found = await asyncio.gather(*(process.history.once(history, "site", read) for _ in range(5)))
        assert found == ["records"] * 5
    assert earlier_ones == [None, "records"]
    await process.history.once(first, "another site", read)
    assert earlier_ones == [None, "records", None]
