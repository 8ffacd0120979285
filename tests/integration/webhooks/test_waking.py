"""From the sandbox's webhook through the receiver and the shared state to a trigger that waits, in one process."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from techflow_provider.sandbox import Sandbox, Webhooks
from techflow_provider.triggers.techflow import TechFlowExecutionTrigger
from techflow_provider.webhooks.receiver import Receiver
from tests.integration.webhooks.conftest import Serve

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:::techflow_provider"),
]
KEY = "key-of-the-waking-tests"
SECRET = "secret-of-the-waking-tests"
# Only a webhook causes another poll in time.
NEVER = 86_400.0
# Bounds a hang only.
HANG_SECONDS = 600.0


@dataclass
class Scene:
    """A sandbox that sends webhooks, and where it sends them."""

    sandbox: Sandbox
    url: str
    sender: httpx.Client

    def polls(self) -> int:
        return self.sandbox.count(path="/executions")

    def claim(self, execution_id: str, secret: str = SECRET) -> int:
        """Claim by hand that an execution has completed, and return the status code of the response."""
        body = {"event": "execution.completed", "id": "x", "data": {"execution_id": execution_id}}
        return self.sender.post(f"{self.url}?token={secret}", json=body).status_code


@pytest.fixture
def scene(serve_receiver: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Scene]:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    # Only a scheduler needs the delay.
    monkeypatch.setenv("AIRFLOW__TECHFLOW__FIRST_EVENT_DELAY", "0")
    sandbox = Sandbox(api_keys=(KEY,), execution_seconds=NEVER, workflows_at_start={"wf_1": "one"})
    host, port = serve_receiver(Receiver())
    with sandbox.serve() as base_url, httpx.Client(timeout=HANG_SECONDS) as sender:
        extra = {"webhook_secret": SECRET}
        connection = {"conn_type": "techflow", "host": base_url, "password": KEY, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_WAKING", json.dumps(connection))
        yield Scene(sandbox, f"http://{host}:{port}/techflow/webhooks/waking", sender)


async def wait_for(execution_id: str) -> Any:
    async for event in TechFlowExecutionTrigger("waking", execution_id=execution_id, poll_interval=NEVER).run():
        return event.payload
    return None


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANG_SECONDS):
        while not condition():  # noqa: ASYNC110 - the sandbox counts in another thread
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("proof", ["signature", "token"])
async def test_a_webhook_wakes_every_wait_by_one_poll(scene: Scene, proof: Any) -> None:
    ids = [scene.sandbox.start("wf_1").id for _ in range(20)]
    waits = [asyncio.create_task(wait_for(each)) for each in ids]
    await until(lambda: scene.polls() >= 1)
    for each in ids[:-1]:
        scene.sandbox.finish(each)
    scene.sandbox.webhooks = Webhooks(scene.url, secret=SECRET, proof=proof)
    scene.sandbox.finish(ids[-1])
    payloads = await asyncio.wait_for(asyncio.gather(*waits), HANG_SECONDS)
    assert [payload["execution"]["id"] for payload in payloads] == ids
    assert scene.polls() == 2


async def test_a_false_webhook_changes_nothing_and_a_forged_one_costs_nothing(scene: Scene) -> None:
    execution_id = scene.sandbox.start("wf_1").id
    waiting = asyncio.create_task(wait_for(execution_id))
    await until(lambda: scene.polls() >= 1)
    for _ in range(50):
        assert await asyncio.to_thread(scene.claim, execution_id, "wrong-secret-of-the-tests") == 401
    assert scene.polls() == 1
    assert await asyncio.to_thread(scene.claim, execution_id) == 200
    await until(lambda: scene.polls() >= 2)
    # Each wakes the poller, since each names another execution; polls come a second apart, and later three.
    began = time.monotonic()
    for number in range(60):
        await asyncio.to_thread(scene.claim, f"exec_{number}")
    assert scene.polls() <= 14 + (time.monotonic() - began) / 3
    assert not waiting.done()
    waiting.cancel()
