"""Where the kinds of client can differ: sending, waiting, using the state and decoding; tests run with every kind."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
from typing import Any

import httpx
import pytest

from techflow_provider.client import AsyncClient, Client, RetryPolicy, Settings, TransportError, UnexpectedResponseError
from techflow_provider.client.history import ExecutionSelector
from techflow_provider.sandbox import Fault, ManualClock, Sandbox
from techflow_provider.state.budget import LocalBudget

BROKEN = ["reset", "drop", "lost_response", "garbage", "wrong_length"]
# More than enough for anything that is not stuck.
STUCK_SECONDS = 120


def create(client: Any) -> Any:
    return client.workflows.create("n")


def list_workflows(client: Any) -> Any:
    return client.workflows.list()


def test_one_flow_has_the_same_results_and_requests_with_every_kind(connect_each, sandbox, clock):
    sandbox.page_size = 2
    ask = connect_each()
    created = ask(lambda client: client.workflows.create("Report", "daily", ["manual"]))
    renamed = ask(lambda client: client.workflows.update(created.id, name="Renamed"))
    started = [ask(lambda client: client.workflows.execute(created.id, {"day": 1})).id for _ in range(3)]
    ended = ask(lambda client: client.executions.wait(ExecutionSelector(started[0])))
    listed = ask(lambda client: client.executions.list(created.id, "completed"))
    assert ask(lambda client: client.executions.get(started[2])).id == started[2]
    assert ask(lambda client: client.workflows.get(created.id)) == renamed
    assert ask(lambda client: client.workflows.delete(created.id)) is None
    assert ask(list_workflows) == []

    assert (renamed.name, renamed.description) == ("Renamed", "daily")
    assert (ended.id, str(ended.state), clock.monotonic()) == (started[0], "completed", 5)
    assert {each.id for each in listed} == set(started)
    assert {record.status // 100 for record in sandbox.requests} == {2}
    assert [f"{record.method} {record.path.replace(created.id, 'ID')}" for record in sandbox.requests] == [
        "POST /workflows",
        "GET /workflows/ID",
        "PUT /workflows/ID",
        *["POST /workflows/ID/execute"] * 3,
        # A wait polls twice, a list and a lookup read once, all of them two pages.
        *["GET /executions"] * 8,
        "GET /workflows/ID",
        "DELETE /workflows/ID",
        "GET /workflows",
    ]


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_connection_is_retried_for_a_list_and_reported_for_a_command(
    connect_each, sandbox, workflow_id, fault
):
    ask = connect_each()
    sandbox.faults.add(Fault(fault, times=2))
    assert [each.id for each in ask(list_workflows)] == [workflow_id]
    assert sandbox.count("GET") == 3

    sandbox.faults.add(Fault(fault))
    with pytest.raises(TransportError, match=r"the request (may have )?reached the server") as caught:
        ask(lambda client: client.workflows.execute(workflow_id))
    assert caught.value.maybe_sent
    assert caught.value.was_accepted == (caught.value.status_code is not None) == (fault == "wrong_length")
    assert sandbox.count("POST") == 1


def test_a_lost_response_leaves_one_execution(connect_each, sandbox, workflow_id):
    sandbox.faults.add(Fault("lost_response"))
    with pytest.raises(TransportError):
        connect_each()(lambda client: client.workflows.execute(workflow_id))
    assert len(sandbox.executions) == 1


def test_a_closed_port_certainly_never_received_the_request(connect_each, clock):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(
            TransportError, match=r"no connection \(.*\); the request never reached the server"
        ) as caught:
            connect_each(base_url=url)(create)
    assert not caught.value.maybe_sent
    assert clock.monotonic() > 0


def test_a_hang_ends_with_the_timeout(connect_each, sandbox):
    sandbox.faults.add(Fault("hang"))
    ask = connect_each(timeout_seconds=0.2, retry=RetryPolicy(max_attempts=1))
    with pytest.raises(TransportError, match="no response within the timeout"):
        ask(list_workflows)
    assert sandbox.count() == 1


def test_a_response_over_the_size_limit_is_not_read(connect_each, sandbox):
    sandbox.faults.add(Fault("huge", size=300_000))
    ask = connect_each(max_response_bytes=200_000)
    with pytest.raises(
        TransportError, match=r"larger than the limit of 200000 bytes; the request reached the server at .*, .* 20\d$"
    ):
        ask(create)
    assert len(sandbox.workflows) == sandbox.count("POST") == 1


def compressed(content: bytes) -> Any:
    def respond(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(content))

    return respond


def test_a_compressed_response_is_read(connect_each):
    respond = compressed(gzip.compress(b'{"id": "wf_1"}'))
    assert connect_each(respond=respond)(create).id == "wf_1"


def test_the_size_limit_applies_to_the_decompressed_body(connect_each):
    packed = gzip.compress(b" " * 10_000_000)
    assert len(packed) < 200_000
    with pytest.raises(TransportError, match="larger than the limit"):
        connect_each(respond=compressed(packed), max_response_bytes=200_000)(create)


def test_a_response_with_an_invalid_compression_is_a_broken_one(connect_each):
    with pytest.raises(TransportError, match="content encoding is invalid"):
        connect_each(respond=compressed(b"no gzip"))(create)


def test_a_response_that_arrives_too_slowly_is_not_read(connect, sandbox):
    sandbox.faults.add(Fault("slow", seconds=200))
    with pytest.raises(
        TransportError, match=r"longer than the limit of 120 s; the request reached the server at .*, .* 20\d$"
    ):
        connect()(create)
    assert sandbox.count("POST") == 1


def test_a_large_body_has_the_same_result_as_a_small_one(connect_each, sandbox, workflow_id):
    sandbox.faults.add(Fault("huge", size=400_000, times=1))
    ask = connect_each()
    assert [each.id for each in ask(list_workflows)] == ["wf_1"]
    sandbox.faults.add(Fault(status=200, body="[5" + " " * 400_000 + "]"))
    with pytest.raises(UnexpectedResponseError, match="expected a workflow object, got a number: 5"):
        ask(list_workflows)


class WatchedBudget(LocalBudget):
    """Notes the thread of each reservation."""

    def __init__(self) -> None:
        super().__init__(100_000, 50_000)
        self.threads: set[int] = set()

    def reserve(self, *args: Any) -> Any:
        self.threads.add(threading.get_ident())
        return super().reserve(*args)


def test_an_event_loop_uses_the_state_in_one_thread_of_its_own(sandbox: Sandbox, api_key: str) -> None:
    budget = WatchedBudget()

    async def run() -> None:
        settings = Settings(api_key, sandbox.base_url, verify=False)
        async with AsyncClient(settings=settings, budget=budget, transport=sandbox.transport()) as client:
            await asyncio.gather(*(client.workflows.list() for _ in range(5)))

    asyncio.run(run())
    assert len(budget.threads) == 1
    assert threading.get_ident() not in budget.threads


class Hanging(httpx.AsyncBaseTransport):
    """Never responds to the first request, and to all others with an empty list."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()

    async def handle_async_request(self, _: httpx.Request) -> httpx.Response:
        if not self.arrived.is_set():
            self.arrived.set()
            await asyncio.Event().wait()
        return httpx.Response(200, json=[])


def test_a_cancelled_call_ends_at_once_and_leaves_the_client_usable(api_key: str) -> None:
    async def run() -> list[Any]:
        transport = Hanging()
        async with AsyncClient(settings=Settings(api_key, verify=False), transport=transport) as client:
            task = asyncio.create_task(client.workflows.list())
            await asyncio.wait_for(transport.arrived.wait(), STUCK_SECONDS)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, STUCK_SECONDS)
            return await client.workflows.list()

    assert asyncio.run(run()) == []


def test_a_cancelled_wait_sends_no_further_poll(sandbox: Sandbox, api_key: str, workflow_id: str) -> None:
    execution_id = sandbox.start(workflow_id).id

    async def run() -> None:
        sleeping = asyncio.Event()

        async def sleep(_: float) -> None:
            sleeping.set()
            await asyncio.Event().wait()

        settings = Settings(api_key, sandbox.base_url, verify=False)
        async with AsyncClient(settings=settings, transport=sandbox.transport(), sleep=sleep) as client:
            task = asyncio.create_task(client.executions.wait(ExecutionSelector(execution_id)))
            await asyncio.wait_for(sleeping.wait(), STUCK_SECONDS)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    assert sandbox.count() == 1


def test_a_synchronous_client_rejects_a_flow_that_waits_for_anything_else(
    sandbox: Sandbox, clock: ManualClock, api_key: str
) -> None:
    with (
        Client(api_key, transport=sandbox.transport(), clock=clock.monotonic) as client,
        pytest.raises(RuntimeError, match="waited for something other than its IO"),
    ):
        client.run(asyncio.sleep(0))
