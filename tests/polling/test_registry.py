"""Waits of one event loop share a poller when their connections have the same key and base URL."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from techflow_provider.client import Settings, TechFlowError
from techflow_provider.client.history import ExecutionSelector, ExecutionTracker
from techflow_provider.client.models import StatusWords
from techflow_provider.polling.poller import Access
from techflow_provider.polling.registry import PollerRegistry
from techflow_provider.sandbox import Sandbox
from techflow_provider.state.budget import LocalBudget
from tests.polling.conftest import INTERVAL, wait
from tests.polling.virtual_time import virtual_time

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore")]

KEYS = {"one": "key-1", "same": "key-1", "other": "key-2", "own words": "key-1"}
WORDS = {"own words": StatusWords(completed=frozenset({"finalised"}))}


class Connections:
    """Looks connections up and counts how often."""

    def __init__(self) -> None:
        self.sandbox = Sandbox(api_keys=tuple(KEYS.values()))
        self.looked_up: Counter[str] = Counter()

    async def __call__(self, conn_id: str) -> Access:
        self.looked_up[conn_id] += 1
        await asyncio.sleep(0)
        words = WORDS.get(conn_id, StatusWords())
        settings = Settings(KEYS[conn_id], self.sandbox.base_url, verify=False, status_words=words)
        return Access(settings, LocalBudget(100_000, 50_000), transport=self.sandbox.transport())


async def test_waits_of_one_connection_look_it_up_once() -> None:
    connections = Connections()
    registry = PollerRegistry(connections)
    pollers = await asyncio.gather(*(registry.poller("one") for _ in range(100)))
    assert len(set(pollers)) == 1
    assert connections.looked_up == {"one": 1}


async def test_connections_share_a_poller_by_their_key() -> None:
    registry = PollerRegistry(Connections())
    one, same, other = [(await registry.poller(each))[0] for each in ("one", "same", "other")]
    assert one is same
    assert one is not other


@virtual_time
async def test_a_connection_is_looked_up_again_when_its_poller_has_ended() -> None:
    connections = Connections()
    registry = PollerRegistry(connections)
    poller, _ = await registry.poller("one")
    with pytest.raises(TechFlowError):
        await wait(poller, "ex_1", appear_seconds=0.0)
    await asyncio.sleep(INTERVAL)
    assert (await registry.poller("one"))[0] is not poller
    assert connections.looked_up == {"one": 2}


@virtual_time
async def test_each_wait_has_the_status_words_of_its_own_connection_whichever_came_first() -> None:
    connections = Connections()
    sandbox = connections.sandbox = Sandbox(
        api_keys=tuple(KEYS.values()), status_words={"completed": "finalised"}, execution_seconds=0
    )
    execution = sandbox.start(sandbox.add_workflow("any"))
    registry = PollerRegistry(connections)
    waits = []
    for conn_id in ("same", "own words"):
        poller, words = await registry.poller(conn_id)
        tracker = ExecutionTracker(ExecutionSelector(execution.id), words=words)
        waits.append(asyncio.ensure_future(poller.wait(tracker, INTERVAL)))
    assert (await waits[1]).status == "finalised"
    assert not waits[0].done()
    waits[0].cancel()


async def test_an_error_names_the_connection_to_all_waits_and_the_next_wait_retries() -> None:
    connections = Connections()
    registry = PollerRegistry(connections)
    failed = await asyncio.gather(*(registry.poller("missing") for _ in range(3)), return_exceptions=True)
    assert {str(each) for each in failed} == {"the connection 'missing' could not be read: KeyError: 'missing'"}
    assert connections.looked_up == {"missing": 1}
    with pytest.raises(TechFlowError):
        await registry.poller("missing")
    assert connections.looked_up == {"missing": 2}


async def test_a_wait_that_is_cancelled_during_the_lookup_does_not_cancel_it_for_the_others() -> None:
    registry = PollerRegistry(Connections())
    leaving, staying = (asyncio.ensure_future(registry.poller("one")) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying) is not None
