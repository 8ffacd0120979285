"""Clients on a shared budget: a 429 begins a cool-down for all, one probe goes first, and no store blocks a loop."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest

from techflow_provider.client import AsyncClient, BudgetTimeoutError, Client, NotFoundError, RateLimitError
from techflow_provider.client.settings import Settings
from techflow_provider.state.budget import RequestClass, SharedBudget
from techflow_provider.state.memory import MemoryStore

COMMAND = RequestClass.COMMAND


class Server:
    """Sends prepared responses, then empty lists."""

    def __init__(self, *responses: httpx.Response) -> None:
        self.responses = list(responses)
        self.requests = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        return self.responses.pop(0) if self.responses else httpx.Response(200, json={"workflows": []})


@pytest.fixture
def budget(store, key, clock) -> SharedBudget:
    return SharedBudget(store, key, clock=clock)


def client(budget, clock, server, deadline: float = 600.0) -> Client:
    settings = Settings("some-key", deadline_seconds=deadline)
    transport = httpx.MockTransport(server)
    return Client(settings=settings, budget=budget, transport=transport, clock=clock, sleep=clock.advance)


def test_a_rejected_call_is_sent_again_as_a_probe_and_ends_the_cool_down(budget, clock):
    server = Server(httpx.Response(429), httpx.Response(429, headers={"retry-after": "7"}))
    with client(budget, clock, server) as caller:
        began = clock.now
        assert caller.workflows.list() == []
    assert server.requests == 3
    assert clock.now - began > 5 + 7
    clock.advance(10)
    reservations = [budget.reserve(COMMAND, 0.0) for _ in range(2)]
    assert [(reservation.may_send, reservation.probe) for reservation in reservations] == [(True, False)] * 2


def test_a_429_holds_back_other_clients(budget, clock):
    with client(budget, clock, Server(httpx.Response(429, headers={"retry-after": "30"})), 5.0) as caller:
        with pytest.raises(RateLimitError):
            caller.workflows.list()
        with pytest.raises(BudgetTimeoutError, match=r"next slot in the rate budget is 30\.0 s away"):
            caller.workflows.list()


def test_others_follow_a_probe_that_meets_an_error(budget, clock):
    with (
        client(budget, clock, Server(httpx.Response(429), httpx.Response(404))) as caller,
        pytest.raises(NotFoundError),
    ):
        caller.workflows.list()
    clock.advance(10)
    assert not budget.reserve(COMMAND, 1e9).probe


async def test_a_store_that_hangs_does_not_block_the_loop():
    release = threading.Event()

    class Slow(MemoryStore):
        def update(self, namespace, name, change):
            release.wait(300)
            return super().update(namespace, name, change)

    # A limit that lets the first request be sent at once, so that only the store is waited for.
    budget = SharedBudget(Slow(), "key", 10_000_000)
    async with AsyncClient("some-key", budget=budget, transport=httpx.MockTransport(Server())) as caller:
        call = asyncio.ensure_future(caller.workflows.list())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not call.done()
        release.set()
        assert await call == []
