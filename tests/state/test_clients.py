"""Clients on a shared budget: a 429 begins a cool-down for all, one probe goes first, and no store blocks a loop."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest

from techflow_provider.client import AsyncClient, BudgetTimeoutError, Client, NotFoundError, RateLimitError
from techflow_provider.client.settings import Settings
from techflow_provider.sandbox import ManualClock, Sandbox
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
    assert clock.now - began > 1.5 + 7
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


async def test_calls_that_are_cancelled_while_they_wait_give_their_slots_back(store, key, clock):
    budget, go, all_wait, sleeping = SharedBudget(store, key, clock=clock), asyncio.Event(), asyncio.Event(), []

    async def sleep(seconds: float) -> None:
        sleeping.append(seconds)
        if len(sleeping) == 50:
            all_wait.set()
        await go.wait()
        clock.advance(0.1)

    server = httpx.MockTransport(Server())
    async with AsyncClient("some-key", budget=budget, transport=server, clock=clock, sleep=sleep) as caller:
        calls = [asyncio.ensure_future(caller.workflows.list()) for _ in range(50)]
        await all_wait.wait()
        for call in calls[6:]:
            call.cancel()
        await asyncio.gather(*calls[6:], return_exceptions=True)
        # The slots are given back in the thread that uses the store, after what it has to do already.
        await caller.context.io.use_state(lambda: None)
        assert budget.reserve(COMMAND, 1e9).wait_seconds < 7.5 * 0.7
        go.set()
        assert await asyncio.gather(*calls[:6]) == [[]] * 6


def test_slots_in_the_middle_that_are_given_back_go_to_the_next_calls(store, key, clock):
    budget = SharedBudget(store, key, clock=clock)
    held = [budget.reserve(COMMAND, 1e9) for _ in range(10)]
    for reservation in (held[2], held[5], held[9]):
        budget.release(reservation)
    following = [budget.reserve(COMMAND, 1e9).due for _ in range(4)]
    interval = held[1].due - held[0].due
    assert following[:3] == [held[2].due, held[5].due, held[9].due]
    assert following[3] == pytest.approx(held[9].due + interval)


def test_a_slot_that_is_void_is_not_given_back(store, key, clock):
    budget = SharedBudget(store, key, clock=clock)
    held = [budget.reserve(COMMAND, 1e9) for _ in range(3)]
    budget.cool_down(5.0, held[0])
    before = budget.snapshot()
    budget.release(held[1])
    assert budget.snapshot() == before


def test_a_call_that_is_interrupted_while_it_waits_gives_its_slot_back(budget, clock):
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    settings, server = Settings("some-key"), Server()
    transport = httpx.MockTransport(server)
    with Client(settings=settings, budget=budget, transport=transport, clock=clock, sleep=interrupt) as caller:
        for _ in range(5):
            with pytest.raises(KeyboardInterrupt):
                caller.workflows.list()
    assert server.requests == 0
    assert budget.reserve(COMMAND, 1e9).wait_seconds < 0.7


def test_a_probe_that_is_given_up_lets_the_next_one_be_sent(budget, clock):
    budget.cool_down(3.0, budget.reserve(COMMAND, 1e9))
    clock.advance(3)
    probe = budget.reserve(COMMAND, 1e9)
    assert probe.probe
    budget.release(probe)
    clock.advance(1)
    assert budget.reserve(COMMAND, 1e9).probe


def test_what_responses_state_reaches_the_budget(budget, clock):
    headers = {"x-ratelimit-limit": "100", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "40"}
    with client(budget, clock, Server(httpx.Response(200, json={"workflows": []}, headers=headers))) as caller:
        caller.workflows.list()
        began = clock.now
        caller.workflows.list()
    assert clock.now - began > 39.9


def test_a_429_without_retry_after_waits_until_the_reset_that_it_states(budget, clock):
    headers = {"ratelimit": '"default";r=0;t=25', "ratelimit-policy": '"default";q=100;w=60'}
    with client(budget, clock, Server(httpx.Response(429, headers=headers))) as caller:
        began = clock.now
        caller.workflows.list()
    assert 25 < clock.now - began < 30


@pytest.mark.parametrize(("algorithm", "bucket"), [("token_bucket", 1), ("token_bucket", 3), ("gcra", 1), ("gcra", 4)])
@pytest.mark.parametrize("retry_after", [True, False])
def test_a_bucket_of_the_sandbox_that_is_smaller_than_our_burst_is_learned(algorithm, bucket, retry_after):
    clock = ManualClock()
    sandbox = Sandbox(api_keys=("some-key",), clock=clock, algorithm=algorithm, burst=bucket, retry_after=retry_after)
    budget = SharedBudget(MemoryStore(clock.monotonic), "key", clock=clock.monotonic)
    with Client(
        "some-key",
        base_url=sandbox.base_url,
        budget=budget,
        transport=sandbox.transport(),
        clock=clock.monotonic,
        sleep=clock.advance,
    ) as caller:
        for _ in range(8):
            clock.advance(30)
            for _ in range(10):
                caller.workflows.list()
        assert sandbox.count(status=429) == 1
        assert budget.snapshot().burst == bucket
        began = clock.monotonic()
        for _ in range(200):
            caller.workflows.list()
    assert sandbox.count(status=429) == 1
    assert clock.monotonic() - began < 200 / 90 * 60
