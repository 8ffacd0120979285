"""Clients on a shared budget: a refusal pauses all of them, one probe goes first, and no store holds up a loop."""

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
    """Gives prepared answers, then empty lists."""

    def __init__(self, *answers: httpx.Response) -> None:
        self.answers = list(answers)
        self.requests = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        return self.answers.pop(0) if self.answers else httpx.Response(200, json={"workflows": []})


@pytest.fixture
def budget(store, key, clock) -> SharedBudget:
    return SharedBudget(store, key, clock=clock)


def client(budget, clock, server, deadline: float = 600.0) -> Client:
    settings = Settings("some-key", deadline_seconds=deadline)
    transport = httpx.MockTransport(server)
    return Client(settings=settings, budget=budget, transport=transport, clock=clock, sleep=clock.advance)


def test_a_refused_call_goes_again_as_a_probe_and_ends_the_pause(budget, clock):
    server = Server(httpx.Response(429), httpx.Response(429, headers={"retry-after": "7"}))
    with client(budget, clock, server) as caller:
        began = clock.now
        assert caller.workflows.list() == []
    assert server.requests == 3
    assert clock.now - began > 5 + 7
    clock.advance(10)
    answers = [budget.reserve(COMMAND, 0.0) for _ in range(2)]
    assert [(answer.may_send, answer.probe) for answer in answers] == [(True, False)] * 2


def test_a_refusal_pauses_other_clients(budget, clock):
    with client(budget, clock, Server(httpx.Response(429, headers={"retry-after": "30"})), 5.0) as caller:
        with pytest.raises(RateLimitError):
            caller.workflows.list()
        with pytest.raises(BudgetTimeoutError, match=r"next slot in the rate budget is 30\.0 s away"):
            caller.workflows.list()


def test_a_probe_that_finds_an_error_lets_others_follow(budget, clock):
    with (
        client(budget, clock, Server(httpx.Response(429), httpx.Response(404))) as caller,
        pytest.raises(NotFoundError),
    ):
        caller.workflows.list()
    clock.advance(10)
    assert not budget.reserve(COMMAND, 1e9).probe


async def test_a_store_that_hangs_does_not_hold_up_the_loop():
    release = threading.Event()

    class Slow(MemoryStore):
        def take(self, *arguments):
            release.wait(10)
            return super().take(*arguments)

    budget = SharedBudget(Slow(full=True), "key")
    async with AsyncClient("some-key", budget=budget, transport=httpx.MockTransport(Server())) as caller:
        call = asyncio.ensure_future(caller.workflows.list())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not call.done()
        release.set()
        assert await call == []
