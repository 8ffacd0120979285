"""An event trigger tells each event once, also when another one takes over, against the sandbox over a socket."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from techflow_provider.client import Settings
from techflow_provider.client.webhooks import EVENTS
from techflow_provider.hooks.budget import open_lookouts
from techflow_provider.hooks.connection import TechFlowConnection
from techflow_provider.polling import event_stream as watching
from techflow_provider.polling import schedule as pace
from techflow_provider.polling.event_cursor import EventCursor
from techflow_provider.sandbox import Sandbox
from techflow_provider.state.records import Records
from techflow_provider.triggers import techflow_events
from techflow_provider.triggers.techflow_events import TechFlowEventTrigger

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:::techflow_provider"),
]
KEY = "key-of-the-event-tests"
INTERVAL = 0.02


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sandbox]:
    """Serve a sandbox with one workflow, and point a connection and the shared state to it; all is quick."""
    monkeypatch.setattr(pace, "SHORTEST_INTERVAL_SECONDS", INTERVAL)
    monkeypatch.setattr(watching, "CONFIRM_SECONDS", 0.1)
    monkeypatch.setattr(watching, "TAKEOVER_SECONDS", 0.3)
    monkeypatch.setattr(techflow_events, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(watching, "RETRY_SECONDS", 0.05)
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    sandbox = Sandbox(api_keys=(KEY,), limit=1_000_000, execution_seconds=3600, workflows_at_start={"wf_1": "one"})
    with sandbox.serve() as url:
        extra = {"requests_per_minute": 100_000, "burst": 10_000}
        connection = {"conn_type": "techflow", "host": url, "password": KEY, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_EVENTS", json.dumps(connection))
        yield sandbox


class Told:
    """What a running trigger has told."""

    def __init__(self, events: Any, workflow_id: str | None = None, spacing: float = 0.0) -> None:
        self.trigger = TechFlowEventTrigger(
            "events", events=events, workflow_id=workflow_id, poll_interval=INTERVAL, spacing=spacing
        )
        self.payloads: list[dict[str, Any]] = []
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        async for event in self.trigger.run():
            self.payloads.append(event.payload)

    async def count(self, count: int) -> list[dict[str, Any]]:
        """Wait until so many events have been told."""
        async with asyncio.timeout(30):
            while len(self.payloads) < count:  # noqa: ASYNC110 - the trigger tells nobody
                await asyncio.sleep(INTERVAL)
        return self.payloads

    async def stop(self) -> None:
        """End at once, as a triggerer does that is killed."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@asynccontextmanager
async def telling(events: Any, sandbox: Sandbox, **fields: Any) -> AsyncIterator[Told]:
    """A trigger that has had its first look."""
    told = Told(events, **fields)
    await looks(sandbox, 2)
    yield told
    await told.stop()


async def looks(sandbox: Sandbox, count: int) -> None:
    """Wait until something has been read so many times more."""
    wanted = sandbox.count() + count
    async with asyncio.timeout(30):
        while sandbox.count() < wanted:  # noqa: ASYNC110 - the sandbox counts in another thread
            await asyncio.sleep(INTERVAL / 2)


async def test_what_is_there_at_the_first_look_is_no_news(served: Sandbox) -> None:
    served.finish(served.start("wf_1").id)
    async with telling(EVENTS, served) as told:
        await looks(served, 6)
    assert told.payloads == []


async def test_all_six_events_are_told_once_with_what_was_read(served: Sandbox) -> None:
    async with telling(EVENTS, served) as told:
        workflow_id = served.add_workflow("two")
        await told.count(1)
        with served._lock:
            served._state.replace_workflow(workflow_id, {"name": "another", "status": "active"})
        await told.count(2)
        execution = served.finish(served.start(workflow_id).id, outcome="completed")
        other = served.finish(served.start(workflow_id).id, outcome="failed")
        await told.count(6)
        with served._lock:
            served._state.delete_workflow(workflow_id)
        await told.count(7)
        await looks(served, 10)
    events = [each["event"] for each in told.payloads]
    assert sorted(events) == sorted([*EVENTS, "execution.started"])
    ends = [each["execution"] for each in told.payloads if each["event"] in ("execution.completed", "execution.failed")]
    assert [(each["id"], each["status"]) for each in ends] == [(execution.id, "completed"), (other.id, "failed")]
    last = {"id": workflow_id, "name": "another", "status": "active", "description": None}
    assert told.payloads[-1] == {"event": "workflow.deleted", "workflow": last}


async def test_only_wanted_events_of_the_wanted_workflow_are_told(served: Sandbox) -> None:
    served.add_workflow("two", id="wf_2")
    async with telling("execution.completed", served, workflow_id="wf_2") as told:
        assert served.count(path="/workflows") == 0
        for workflow_id in ("wf_1", "wf_2"):
            for outcome in ("failed", "completed"):
                served.finish(served.start(workflow_id).id, outcome=outcome)
        await told.count(1)
        await looks(served, 4)
    (payload,) = told.payloads
    assert (payload["event"], payload["execution"]["workflow_id"]) == ("execution.completed", "wf_2")


async def test_watchers_and_their_connection_share_one_reading(served: Sandbox) -> None:
    async with telling("execution.completed", served) as one, telling("execution.failed", served) as two:
        before = served.count(path="/executions")
        served.finish(served.start("wf_1").id, outcome="completed")
        served.finish(served.start("wf_1").id, outcome="failed")
        await asyncio.gather(one.count(1), two.count(1))
        assert served.count(path="/executions") - before <= 4


async def test_what_happens_while_no_trigger_runs_is_told_by_the_next_one(served: Sandbox) -> None:
    async with telling("execution.completed", served) as told:
        served.finish(served.start("wf_1").id)
        await told.count(1)
        await confirmed(told)
    ids = [served.finish(served.start("wf_1").id).id for _ in range(5)]
    async with telling("execution.completed", served) as told:
        payloads = await told.count(5)
        await looks(served, 5)
    assert [each["execution"]["id"] for each in payloads] == ids


def records() -> Records:
    """Where the trigger writes."""
    host = json.loads(os.environ["AIRFLOW_CONN_EVENTS"])["host"]
    return open_lookouts(TechFlowConnection("events", Settings(KEY, host)))


def lookout(told: Told) -> EventCursor:
    """What the trigger has written down."""
    entry = records().cursor(json.dumps(told.trigger.serialize()[1], sort_keys=True))
    assert entry is not None
    return EventCursor.read(entry.value)


async def confirmed(told: Told) -> None:
    """Wait until what was told is written down as arrived."""
    async with asyncio.timeout(30):
        while lookout(told).pending:  # noqa: ASYNC110 - as above
            await asyncio.sleep(INTERVAL)


async def test_an_event_that_may_not_have_arrived_is_told_again_by_the_next_trigger(
    served: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "CONFIRM_SECONDS", 3600)
    async with telling("execution.completed", served) as told:
        served.finish(served.start("wf_1").id)
        await told.count(1)
    monkeypatch.setattr(watching, "CONFIRM_SECONDS", 0.1)
    async with telling("execution.completed", served) as again:
        await again.count(1)
        await confirmed(again)
    assert again.payloads == told.payloads
    async with telling("execution.completed", served) as third:
        await looks(served, 20)
    assert third.payloads == []


async def test_of_two_triggers_that_run_at_once_one_tells_an_event(served: Sandbox) -> None:
    async with telling("execution.completed", served) as one, telling("execution.completed", served) as two:
        ids = []
        for _ in range(10):
            ids.append(served.finish(served.start("wf_1").id).id)
            await looks(served, 2)
        while len(one.payloads) + len(two.payloads) < 10:
            await looks(served, 1)
        # Long enough for one to take the other for gone, if it did not confirm.
        await asyncio.sleep(0.6)
    assert sorted(each["execution"]["id"] for each in (*one.payloads, *two.payloads)) == sorted(ids)


async def test_events_keep_their_distance_so_that_each_gets_a_dag_run(served: Sandbox) -> None:
    async with telling("execution.completed", served, spacing=0.2) as told:
        loop = asyncio.get_running_loop()
        for _ in range(4):
            served.finish(served.start("wf_1").id)
        await told.count(1)
        began = loop.time()
        await told.count(4)
        assert loop.time() - began >= 0.55


async def test_events_in_waiting_survive_the_trigger(served: Sandbox) -> None:
    async with telling("execution.completed", served, spacing=3600) as told:
        ids = [served.finish(served.start("wf_1").id).id for _ in range(3)]
        await told.count(1)
        await confirmed_but(told, 2)
    assert [each.payload["execution"]["id"] for each in lookout(told).pending] == ids[1:]  # type: ignore[index,call-overload]


async def confirmed_but(told: Told, count: int) -> None:
    async with asyncio.timeout(30):
        while len(lookout(told).pending) != count:  # noqa: ASYNC110 - as above
            await asyncio.sleep(INTERVAL)


async def test_a_refused_key_ends_no_watch_and_a_new_one_goes_on_where_the_last_one_stood(
    served: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with telling("execution.completed", served):
        pass
    connection = json.loads(os.environ["AIRFLOW_CONN_EVENTS"])
    monkeypatch.setenv("AIRFLOW_CONN_EVENTS", json.dumps({**connection, "password": "another-key"}))
    told = Told("execution.completed")
    await looks(served, 3)
    served.finish(served.start("wf_1").id)
    served.api_keys = ("another-key",)
    await told.count(1)
    await told.stop()


async def test_a_record_that_cannot_be_read_begins_anew(served: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    told = Told("execution.completed")
    records().replace_cursor(json.dumps(told.trigger.serialize()[1], sort_keys=True), None, "{}")
    await looks(served, 2)
    served.finish(served.start("wf_1").id)
    await told.count(1)
    await told.stop()
    assert "The stored cursor can't be read" in caplog.text


async def test_nothing_is_told_while_it_cannot_be_written_down(served: Sandbox, tmp_path: Path) -> None:
    state = tmp_path / "techflow"
    async with telling("execution.completed", served) as told:
        await confirmed(told)
        # A file in the place of the folder, in which nothing can be kept.
        state.rename(tmp_path / "away")
        state.touch()
        served.finish(served.start("wf_1").id)
        await looks(served, 5)
        assert told.payloads == []
        state.unlink()
        (tmp_path / "away").rename(state)
        await told.count(1)


def test_a_lookout_is_read_as_it_was_written() -> None:
    assert EventCursor.read(EventCursor().to_text()) == EventCursor()
    for text in ("", "[]", "{}", '{"executions": 7, "workflows": null, "pending": [], "count": 0}'):
        with pytest.raises(ValueError, match=r".*"):
            EventCursor.read(text)
