"""An event trigger emits each event once, also when another one takes over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from techflow_provider.client import Client, Settings
from techflow_provider.client.webhooks import EVENTS
from techflow_provider.hooks.budget import open_cursors
from techflow_provider.hooks.connection import TechFlowConnection
from techflow_provider.polling import event_stream, registry
from techflow_provider.polling.events import EventCursor
from techflow_provider.polling.poller import Access
from techflow_provider.sandbox import Sandbox
from techflow_provider.state.records import Records
from techflow_provider.state.store import Write, read_only
from techflow_provider.triggers.techflow_events import TechFlowEventTrigger
from tests.polling.conftest import INTERVAL, KEY, polls, until
from tests.polling.virtual_time import virtual_time

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:::techflow_provider"),
]
# As version 0.1.0 stored it.
STORED = (
    '{"count": 3, "executions": {"completed": ["ex_2"], "ended_before": "2026-01-01T00:00:00+00:00", "failed": ["ex_3"]'
    ', "running": ["ex_1"]}, "pending": [[3, "", {"event": "execution.completed", "execution": {"id": "ex_2"}}]]'
    ', "workflows": {"wf_1": {"id": "wf_1", "name": "one"}}}'
)


@pytest.fixture(autouse=True)
def connect(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Point a connection at the sandbox, in-process, and the shared state at a folder of the test."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    set_key(monkeypatch, KEY)
    look_up = registry.look_up

    async def look_up_in_process(conn_id: str) -> Access:
        # The state's clock doesn't jump, so nothing is shared through it that has to do with time.
        return replace(await look_up(conn_id), transport=sandbox.transport(), reader=None)

    monkeypatch.setattr(registry, "look_up", look_up_in_process)


def set_key(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    extra = {"requests_per_minute": 100_000, "burst": 10_000, "verify": False}
    monkeypatch.setenv("AIRFLOW_CONN_EVENTS", json.dumps({"conn_type": "techflow", "password": key, "extra": extra}))


class Emitted:
    """What a running trigger has emitted, and when."""

    def __init__(self, events: Any, workflow_id: str | None = None, spacing: float = 0.0) -> None:
        self.trigger = TechFlowEventTrigger(
            "events", events=events, workflow_id=workflow_id, poll_interval=INTERVAL, spacing=spacing
        )
        self.payloads: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        async for event in self.trigger.run():
            self.payloads.append(event.payload)
            self.times.append(asyncio.get_running_loop().time())

    @property
    def name(self) -> str:
        """The name of the trigger's stored cursor."""
        return json.dumps(self.trigger.serialize()[1], sort_keys=True)

    @property
    def cursor(self) -> EventCursor:
        """The trigger's stored cursor."""
        entry, _ = records().update_cursor(self.name, read_only)
        assert entry is not None
        return EventCursor.read(entry.value)

    async def count(self, count: int) -> list[dict[str, Any]]:
        """Wait until so many events have been emitted."""
        await until(lambda: len(self.payloads) >= count)
        return self.payloads

    async def confirmed(self, pending: int = 0) -> None:
        """Wait until the arrival of all events but some is stored."""
        await until(lambda: len(self.cursor.pending) == pending)

    async def stop(self) -> None:
        """End at once, as in a triggerer that is killed."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def records() -> Records:
    """Where the triggers store their cursors."""
    return open_cursors(TechFlowConnection("events", Settings(KEY)))


@asynccontextmanager
async def running(events: Any, sandbox: Sandbox, **fields: Any) -> AsyncIterator[Emitted]:
    """A trigger that has had its first poll."""
    emitted = Emitted(events, **fields)
    await polls(sandbox, 2, path=None)
    yield emitted
    await emitted.stop()


@virtual_time
async def test_what_the_first_poll_shows_is_not_new(sandbox: Sandbox) -> None:
    sandbox.finish(sandbox.start("wf_1").id)
    async with running(EVENTS, sandbox) as emitted:
        await polls(sandbox, 6)
    assert emitted.payloads == []


@virtual_time
async def test_all_six_events_are_emitted_once_with_what_was_read(sandbox: Sandbox) -> None:
    client = Client(settings=Settings(KEY, verify=False), transport=sandbox.transport())
    async with running(EVENTS, sandbox) as emitted:
        workflow_id = sandbox.add_workflow("two")
        await emitted.count(1)
        client.workflows.update(workflow_id, name="another")
        await emitted.count(2)
        execution = sandbox.finish(sandbox.start(workflow_id).id, outcome="completed")
        other = sandbox.finish(sandbox.start(workflow_id).id, outcome="failed")
        await emitted.count(6)
        client.workflows.delete(workflow_id)
        await emitted.count(7)
        await polls(sandbox, 10)
    events = [each["event"] for each in emitted.payloads]
    assert sorted(events) == sorted([*EVENTS, "execution.started"])
    ends = [
        each["execution"] for each in emitted.payloads if each["event"] in ("execution.completed", "execution.failed")
    ]
    assert [(each["id"], each["status"]) for each in ends] == [(execution.id, "completed"), (other.id, "failed")]
    last = {"id": workflow_id, "name": "another", "status": "active", "description": None}
    assert emitted.payloads[-1] == {"event": "workflow.deleted", "workflow": last}


@virtual_time
async def test_only_wanted_events_of_the_wanted_workflow_are_emitted(sandbox: Sandbox) -> None:
    sandbox.add_workflow("two", id="wf_2")
    async with running("execution.completed", sandbox, workflow_id="wf_2") as emitted:
        assert sandbox.count(path="/workflows") == 0
        for workflow_id in ("wf_1", "wf_2"):
            for outcome in ("failed", "completed"):
                sandbox.finish(sandbox.start(workflow_id).id, outcome=outcome)
        await emitted.count(1)
        await polls(sandbox, 4)
    (payload,) = emitted.payloads
    assert (payload["event"], payload["execution"]["workflow_id"]) == ("execution.completed", "wf_2")


@virtual_time
async def test_triggers_of_one_connection_share_one_poll(sandbox: Sandbox) -> None:
    async with running("execution.completed", sandbox) as one, running("execution.failed", sandbox) as two:
        before = sandbox.count(path="/executions")
        sandbox.finish(sandbox.start("wf_1").id, outcome="completed")
        sandbox.finish(sandbox.start("wf_1").id, outcome="failed")
        await asyncio.gather(one.count(1), two.count(1))
        assert sandbox.count(path="/executions") - before == 1


@virtual_time
async def test_what_happens_while_no_trigger_runs_is_emitted_by_the_next_one(sandbox: Sandbox) -> None:
    async with running("execution.completed", sandbox) as emitted:
        sandbox.finish(sandbox.start("wf_1").id)
        await emitted.count(1)
        await emitted.confirmed()
    ids = [sandbox.finish(sandbox.start("wf_1").id).id for _ in range(5)]
    async with running("execution.completed", sandbox) as emitted:
        payloads = await emitted.count(5)
        await polls(sandbox, 5)
    assert [each["execution"]["id"] for each in payloads] == ids


@virtual_time
async def test_an_event_that_may_not_have_arrived_is_emitted_again_by_the_next_trigger(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(event_stream, "CONFIRM_SECONDS", 3600)
        async with running("execution.completed", sandbox) as emitted:
            sandbox.finish(sandbox.start("wf_1").id)
            await emitted.count(1)
    async with running("execution.completed", sandbox) as again:
        await again.count(1)
        await again.confirmed()
    assert again.payloads == emitted.payloads
    async with running("execution.completed", sandbox) as third:
        await polls(sandbox, 20)
    assert third.payloads == []


@virtual_time
async def test_of_two_triggers_that_run_at_once_one_emits_an_event(sandbox: Sandbox) -> None:
    async with running("execution.completed", sandbox) as one, running("execution.completed", sandbox) as two:
        ids = []
        for _ in range(10):
            ids.append(sandbox.finish(sandbox.start("wf_1").id).id)
            await polls(sandbox, 2)
        await until(lambda: len(one.payloads) + len(two.payloads) >= 10)
        # Long enough for one to take the other for dead, if it did not confirm.
        await asyncio.sleep(3 * event_stream.TAKEOVER_SECONDS)
    assert sorted(each["execution"]["id"] for each in (*one.payloads, *two.payloads)) == sorted(ids)


@virtual_time
async def test_a_trigger_emits_what_another_one_left_that_is_gone(sandbox: Sandbox) -> None:
    fields: dict[str, Any] = {"events": "execution.completed", "sandbox": sandbox, "spacing": 24 * 3600.0}
    async with running(**fields) as one, running(**fields) as two:
        ids = [sandbox.finish(sandbox.start("wf_1").id).id for _ in range(2)]
        await until(lambda: one.payloads or two.payloads)
        gone, other = (one, two) if one.payloads else (two, one)
        await gone.confirmed(pending=1)
        await gone.stop()
        await other.count(1)
    assert [each["execution"]["id"] for each in (*gone.payloads, *other.payloads)] == ids


@virtual_time
async def test_events_are_spaced_so_that_each_gets_a_dag_run(sandbox: Sandbox) -> None:
    async with running("execution.completed", sandbox, spacing=20.0) as emitted:
        for _ in range(4):
            sandbox.finish(sandbox.start("wf_1").id)
        await emitted.count(4)
    gaps = [after - before for before, after in zip(emitted.times, emitted.times[1:], strict=False)]
    assert gaps == pytest.approx([20.0] * 3, abs=0.1)


@virtual_time
async def test_events_that_are_not_emitted_yet_survive_the_trigger(sandbox: Sandbox) -> None:
    async with running("execution.completed", sandbox, spacing=3600) as emitted:
        ids = [sandbox.finish(sandbox.start("wf_1").id).id for _ in range(3)]
        await emitted.count(1)
        await emitted.confirmed(pending=2)
    pending: Any = emitted.cursor.pending.values()
    assert [each["execution"]["id"] for each in pending] == ids[1:]


@virtual_time
async def test_a_refused_key_ends_no_stream_and_a_new_one_continues_where_it_stopped(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running("execution.completed", sandbox):
        pass
    set_key(monkeypatch, "another-key")
    emitted = Emitted("execution.completed")
    await polls(sandbox, 3)
    sandbox.finish(sandbox.start("wf_1").id)
    sandbox.api_keys = ("another-key",)
    await emitted.count(1)


@virtual_time
async def test_a_cursor_that_cannot_be_read_begins_anew(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    emitted = Emitted("execution.completed")
    records().update_cursor(emitted.name, lambda *_: (Write("{}", 60.0), None))
    await polls(sandbox, 2)
    sandbox.finish(sandbox.start("wf_1").id)
    await emitted.count(1)
    assert "The stored cursor can't be read" in caplog.text


@virtual_time
async def test_no_event_is_emitted_while_it_cannot_be_stored(sandbox: Sandbox, tmp_path: Path) -> None:
    state = tmp_path / "techflow"
    async with running("execution.completed", sandbox) as emitted:
        await emitted.confirmed()
        # A file in the place of the folder, in which nothing can be stored.
        state.rename(tmp_path / "away")
        state.touch()
        sandbox.finish(sandbox.start("wf_1").id)
        await polls(sandbox, 3)
        assert emitted.payloads == []
        state.unlink()
        (tmp_path / "away").rename(state)
        await emitted.count(1)


def test_a_cursor_is_read_as_it_was_stored() -> None:
    assert EventCursor.read(EventCursor().to_text()) == EventCursor()
    assert EventCursor.read(STORED).to_text() == STORED
    for text in ("", "[]", "{}", '{"executions": 7, "workflows": null, "pending": [], "count": 0}'):
        with pytest.raises(ValueError, match=r".*"):
            EventCursor.read(text)
