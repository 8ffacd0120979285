"""A sandbox over a socket, and tasks that run in this process: a deferral runs its trigger and resumes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from techflow_provider.sandbox import Record, Sandbox

KEY = "key-of-the-operator-tests"


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox with one workflow, the default connection pointing to it, and an empty shared state."""
    from techflow_provider.client.reading import ReadTerms

    # Each poke polls, however short the time since the last one is.
    defaults: Any = ReadTerms.__init__.__defaults__
    monkeypatch.setattr(ReadTerms.__init__, "__defaults__", (0.1, *defaults[1:]))
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    monkeypatch.setenv("AIRFLOW__TECHFLOW__FIRST_EVENT_DELAY", "0")
    for module in ("client.reading", "polling.poller", "polling.shared"):
        monkeypatch.setattr(f"techflow_provider.{module}.SHORTEST_INTERVAL_SECONDS", 0.1)
    monkeypatch.setenv("AIRFLOW__TECHFLOW__POLL_INTERVAL", "0.2")
    sandbox = Sandbox(api_keys=(KEY,), workflows_at_start={"wf_1": "one"}, limit=60_000, execution_seconds=86_400)
    with sandbox.serve() as url:
        extra = {"requests_per_minute": 60_000, "burst": 1000, "dashboard_url": "https://dash.test/{execution_id}"}
        connection = {"conn_type": "techflow", "host": url, "password": KEY, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps(connection))
        yield sandbox


@pytest.fixture
def current_context(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let links and deferrals find the context of the attempt that runs."""
    current: dict[str, Any] = {}
    for module in ("links.techflow", "deferral"):
        monkeypatch.setattr(f"techflow_provider.{module}.get_current_context", lambda: current)
    return current


def after_polls(sandbox: Sandbox, count: int, act: Callable[[], object]) -> None:
    """Do something when the history has been polled so often."""
    polls = 0

    def on_request(request: Record) -> None:
        nonlocal polls
        polls += (request.method, request.path) == ("GET", "/executions")
        if polls == count and (request.method, request.path) == ("GET", "/executions"):
            act()

    sandbox.on_request = on_request


class Attempt:
    """One attempt of a task, with the XComs that it pushes.

    :param build: returns the operator
    :param try_number: counts the attempts of the task
    """

    def __init__(self, build: Callable[[], Any], try_number: int = 1) -> None:
        self.rebuild = build
        task = self.task = build()
        self.xcoms: dict[str, Any] = {}
        self.first_poke: datetime | None = None
        ti = SimpleNamespace(
            dag_id="d",
            run_id="r",
            task_id=task.task_id,
            map_index=-1,
            max_tries=2,
            try_number=try_number,
            xcom_push=lambda key, value: self.xcoms.update({key: value}),
            get_first_reschedule_date=lambda _: self.first_poke,
        )
        run = SimpleNamespace(start_date=datetime(2026, 1, 1, tzinfo=UTC))
        self.context: Any = {"ti": ti, "task": task, "dag_run": run}

    def run(self) -> Any:
        """Run the task to its end, in the triggerer where it defers, and again where it is rescheduled."""
        from airflow.exceptions import AirflowRescheduleException
        from airflow.providers.common.compat.sdk import TaskDeferred

        act: Any = self.task.execute
        arguments: dict[str, Any] = {}
        while True:
            try:
                return act(self.context, **arguments)
            except TaskDeferred as deferred:
                trigger: Any = deferred.trigger
                again = type(trigger)(**json.loads(json.dumps(trigger.serialize()[1])))
                event = asyncio.run(_event(again))
                act, arguments = getattr(self.task, deferred.method_name), {"event": event}
            except AirflowRescheduleException:
                self.first_poke = self.first_poke or datetime.now(UTC)
                # Each poke takes place in a process of its own.
                self.task = self.rebuild()
                act, self.context["task"] = self.task.execute, self.task


async def _event(trigger: Any) -> Any:
    async for event in trigger.run():
        return json.loads(json.dumps(event.payload))
    raise AssertionError("the trigger yielded no event")
