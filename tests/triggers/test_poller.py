"""One loop reads the history for every wait, against the sandbox over a socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from techflow_provider.client import Execution, ExecutionNotFoundError, Settings, UnauthorizedError
from techflow_provider.client.history import Target, Watch
from techflow_provider.sandbox import Fault, Sandbox
from techflow_provider.state.budget import Budget, LocalBudget
from techflow_provider.triggers import poller as module
from techflow_provider.triggers.poller import Poller, shared_poller

KEY = "key-of-the-poller-tests"
INTERVAL = 0.02


@dataclass
class Connections:
    """Looks a connection up, counts how often, and can have its key changed."""

    url: str
    keys: list[str] = field(default_factory=lambda: [KEY])
    looked_up: int = 0

    async def __call__(self) -> tuple[Settings, Budget]:
        key = self.keys[min(self.looked_up, len(self.keys) - 1)]
        self.looked_up += 1
        return Settings(key, self.url), LocalBudget(100_000, 50_000)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let looks follow each other at once."""
    monkeypatch.setattr(module, "SHORTEST_INTERVAL_SECONDS", INTERVAL)


@pytest.fixture
def served() -> Iterator[Sandbox]:
    """Serve a sandbox with one workflow, whose executions end when a test says so."""
    sandbox = Sandbox(api_keys=(KEY,), limit=100_000, execution_seconds=3600, workflows_at_start={"wf_1": "one"})
    with sandbox.serve():
        yield sandbox


async def looks(sandbox: Sandbox, count: int) -> None:
    """Wait until the history has been read so many times more."""
    wanted = sandbox.count(path="/executions") + count
    while sandbox.count(path="/executions") < wanted:  # noqa: ASYNC110 - the sandbox counts in another thread
        await asyncio.sleep(INTERVAL / 2)


def wait(poller: Poller, execution_id: str, appear_seconds: float = 60.0) -> asyncio.Task[Execution]:
    return asyncio.ensure_future(poller.wait(Watch(Target(execution_id), appear_seconds), INTERVAL))


async def test_all_waits_of_a_loop_share_one_poll_and_one_connection_look_up(served: Sandbox) -> None:
    connect = Connections(served.base_url)
    ids = [served.start("wf_1").id for _ in range(50)]
    waits = [wait(shared_poller("c", connect), each) for each in ids]
    await looks(served, 3)
    assert connect.looked_up == 1
    for each in ids:
        served.finish(each, outcome="completed")
    before = served.count(path="/executions")
    ended = await asyncio.gather(*waits)
    assert [execution.id for execution in ended] == ids
    assert served.count(path="/executions") - before <= 3


async def test_a_poller_ends_with_its_last_wait_and_begins_again_with_the_next(served: Sandbox) -> None:
    connect = Connections(served.base_url)
    poller = shared_poller("c", connect)
    first = wait(poller, served.start("wf_1").id)
    await looks(served, 1)
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    assert poller._task is not None
    await poller._task
    second = wait(shared_poller("c", connect), served.start("wf_1").id)
    await looks(served, 1)
    assert connect.looked_up == 2
    second.cancel()


async def test_a_wait_that_joins_while_the_others_are_told_of_an_error_is_told_too(served: Sandbox) -> None:
    poller = shared_poller("c", Connections(served.base_url, keys=["another-key"]))

    async def wait_again_after_an_error() -> list[type[BaseException]]:
        ends: list[type[BaseException]] = []
        for _ in range(3):
            try:
                await poller.wait(Watch(Target("ex_1")), INTERVAL)
            except UnauthorizedError as error:
                ends.append(type(error))
        return ends

    waits = [wait_again_after_an_error() for _ in range(3)]
    assert await asyncio.gather(*waits) == [[UnauthorizedError] * 3] * 3


async def test_failing_looks_end_no_wait(served: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    execution_id = served.start("wf_1").id
    for kind in ("status", "html", "truncated", "drop", "reset"):
        served.faults.add(Fault(kind, path="/executions", times=1))
    waiting = wait(shared_poller("c", Connections(served.base_url)), execution_id)
    with caplog.at_level(logging.WARNING):
        await looks(served, 7)
    assert not waiting.done()
    served.finish(execution_id, outcome="failed", error="disk full")
    assert (await waiting).error == "disk full"
    assert "A look at the execution history failed and is repeated" in caplog.text


async def test_a_refused_key_ends_every_wait_with_the_reason(served: Sandbox) -> None:
    connect = Connections(served.base_url, keys=["another-key"])
    waits = [wait(shared_poller("c", connect), "ex_1") for _ in range(3)]
    ends = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(end) for end in ends] == [UnauthorizedError] * 3
    assert connect.looked_up == 2


async def test_a_key_that_was_changed_meanwhile_is_taken_up(served: Sandbox) -> None:
    execution = served.start("wf_1")
    served.finish(execution.id, outcome="completed")
    connect = Connections(served.base_url, keys=["old-key", KEY])
    assert (await wait(shared_poller("c", connect), execution.id)).id == execution.id


async def test_an_execution_that_never_appears_ends_its_own_wait_alone(served: Sandbox) -> None:
    poller = shared_poller("c", Connections(served.base_url))
    missing, other = wait(poller, "ex_unknown", appear_seconds=0.0), wait(poller, served.start("wf_1").id)
    with pytest.raises(ExecutionNotFoundError):
        await missing
    assert not other.done()
    other.cancel()


async def test_a_connection_that_cannot_be_read_ends_the_waits_in_words(served: Sandbox) -> None:
    async def connect() -> tuple[Settings, Budget]:
        raise KeyError("techflow_default")

    with pytest.raises(Exception, match="the connection could not be read: KeyError"):
        await wait(shared_poller("c", connect), "ex_1")
