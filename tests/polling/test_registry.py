"""Waits of one event loop share a poller when their connections have the same key and base URL."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from techflow_provider.client import Settings, TechFlowError
from techflow_provider.client.history import ExecutionSelector, ExecutionTracker
from techflow_provider.polling.poller import Access
from techflow_provider.polling.registry import PollerRegistry
from techflow_provider.sandbox import Sandbox
from techflow_provider.state.budget import LocalBudget

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore")]

KEYS = {"one": "key-1", "same": "key-1", "other": "key-2"}


class Connections:
    """Looks connections up and counts how often."""

    def __init__(self, base_url: str = "http://techflow.example/v2") -> None:
        self.base_url = base_url
        self.looked_up: Counter[str] = Counter()

    async def __call__(self, conn_id: str) -> Access:
        self.looked_up[conn_id] += 1
        await asyncio.sleep(0)
        return Access(Settings(KEYS[conn_id], self.base_url), LocalBudget(100_000, 50_000))


async def test_waits_of_one_connection_look_it_up_once() -> None:
    connections = Connections()
    sharing = PollerRegistry(connections)
    pollers = await asyncio.gather(*(sharing.poller("one") for _ in range(100)))
    assert len(set(pollers)) == 1
    assert connections.looked_up == {"one": 1}


async def test_connections_share_a_poller_by_their_key() -> None:
    sharing = PollerRegistry(Connections())
    one, same, other = [await sharing.poller(each) for each in ("one", "same", "other")]
    assert one is same
    assert one is not other


async def test_a_connection_is_looked_up_again_when_its_poller_has_ended() -> None:
    with Sandbox(api_keys=("key-1",), workflows_at_start={"wf_1": "one"}, execution_seconds=0).serve() as url:
        connections = Connections(url)
        sharing = PollerRegistry(connections)
        poller = await sharing.poller("one")
        with pytest.raises(TechFlowError):
            await poller.wait(ExecutionTracker(ExecutionSelector("ex_1"), appear_seconds=0.0), 1.0)
        assert poller._task is not None
        await poller._task
        assert await sharing.poller("one") is not poller
        assert connections.looked_up == {"one": 2}


async def test_a_connection_that_cannot_be_looked_up_is_named_to_all_and_tried_again_by_the_next() -> None:
    connections = Connections()
    sharing = PollerRegistry(connections)
    failed = await asyncio.gather(*(sharing.poller("missing") for _ in range(3)), return_exceptions=True)
    assert {str(each) for each in failed} == {"the connection 'missing' could not be read: KeyError: 'missing'"}
    assert connections.looked_up == {"missing": 1}
    with pytest.raises(TechFlowError):
        await sharing.poller("missing")
    assert connections.looked_up == {"missing": 2}


async def test_who_leaves_during_the_look_up_does_not_end_it_for_the_others() -> None:
    sharing = PollerRegistry(Connections())
    leaving, staying = (asyncio.ensure_future(sharing.poller("one")) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying) is not None
