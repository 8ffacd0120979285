"""What the page shows, as values, and how it is rendered: all of it escaped, with a script that knows none of it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote as percent_encode

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from techflow_provider.client.models import ExecutionState, StatusWords
from techflow_provider.client.parsing import counted
from techflow_provider.client.text import printable
from techflow_provider.state.budget import RequestClass
from techflow_provider.state.budget_state import SLICE_SECONDS
from techflow_provider.state.components import Component
from techflow_provider.state.snapshot import Slice, Snapshot
from techflow_provider.submission.records import AttemptRecord

CHART_HEIGHT = 60
BAR_WIDTH = 10
REFRESH_SECONDS = 30
# Each unit with the next smaller one and how many of those it has.
UNITS = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


@dataclass(frozen=True, slots=True)
class ConnectionView:
    """A connection of the type `techflow`.

    :param conn_id: its id
    :param base_url: its base URL, None when the connection can't be read
    :param budget: the state of its budget, None when that is unknown
    :param problem: why something about it is unknown
    :param receives_webhooks: whether its receiver is on
    :param deliveries: ages of the distinct webhooks of the last day in seconds, newest first
    :param state: where its state is kept, and why
    :param users: the components that used the state in the last day, and how many seconds ago, the latest first
    :param guarantees: the result for each group of guarantees, their names, and the reason with the remedy
    """

    conn_id: str
    base_url: str | None = None
    budget: Snapshot | None = None
    problem: str | None = None
    receives_webhooks: bool = False
    deliveries: tuple[float, ...] = ()
    state: str = ""
    users: tuple[tuple[Component, float], ...] = ()
    guarantees: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task, or a run of a DAG that has started something by a callback.

    :param dag_id: the DAG's id
    :param run_id: the run's id
    :param task_id: the task's id, empty for a run
    :param map_index: its index when it is mapped, or -1
    """

    dag_id: str
    run_id: str
    task_id: str = ""
    map_index: int = -1

    def __str__(self) -> str:
        index = f" [{self.map_index}]" if self.map_index >= 0 else ""
        return f"{self.task_id}{index}" if self.task_id else "callback of the run"

    @property
    def dag_url(self) -> str:
        """The DAG's page in Airflow, from this one."""
        return f"../dags/{percent_encode(self.dag_id, safe='')}"

    @property
    def url(self) -> str:
        """Its page in Airflow, from this one."""
        task = f"/tasks/{percent_encode(self.task_id, safe='')}" if self.task_id else ""
        index = f"/mapped/{self.map_index}" if self.map_index >= 0 else ""
        return f"{self.dag_url}/runs/{percent_encode(self.run_id, safe='')}{task}{index}"


@dataclass(frozen=True, slots=True)
class WaitView:
    """A task that waits.

    :param task: the task
    :param awaited: what it waits for, human-readable
    :param location: `triggerer` or `worker`
    :param since: when it began
    """

    task: TaskView
    awaited: str
    location: str
    since: datetime


@dataclass(frozen=True, slots=True)
class ExecutionView:
    """An execution that a task started or awaited.

    :param id: its id
    :param workflow_id: its workflow
    :param status: the status word when the task last polled it
    :param state: the meaning of that word
    :param tasks: those that started or awaited it; none for a hook, a client and the command line
    :param url: its page in the dashboard
    :param updated_at: when a task last polled it, or when it was started
    """

    id: str
    workflow_id: str | None
    status: str | None
    state: ExecutionState
    tasks: tuple[TaskView, ...]
    url: str | None
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Content:
    """Everything that the page shows.

    :param now: when it was collected
    :param connections: those that the user may see
    :param waits: the longest first, of those whose DAG the user may see
    :param executions: the newest first, of those whose DAG the user may see
    :param starts: those whose execution isn't known, the oldest first, each with the task that needs it, likewise; None
        for a hook, a client and the command line
    :param more_waits: how many waits are left out
    """

    now: datetime
    connections: tuple[ConnectionView, ...]
    waits: tuple[WaitView, ...]
    executions: tuple[ExecutionView, ...]
    starts: tuple[tuple[AttemptRecord, TaskView | None], ...] = ()
    more_waits: int = 0


class Bar(NamedTuple):
    """A bar of the chart, with polls on top of commands, whose parts have these heights."""

    x: int
    requests: int
    commands: float
    polls: float
    label: str


def bars(history: Sequence[Slice]) -> list[Bar]:
    """Return the chart of the last ten minutes; the highest bar fills it."""
    scale = CHART_HEIGHT / peak(history)
    return [_bar(index * BAR_WIDTH, each, scale) for index, each in enumerate(history)]


def peak(history: Sequence[Slice]) -> int:
    """Return how many requests the highest bar stands for."""
    return max((sum(each.requests.values()) for each in history), default=0) or 1


def _bar(x: int, part: Slice, scale: float) -> Bar:
    commands, polls = (part.requests.get(each, 0) for each in (RequestClass.COMMAND, RequestClass.POLL))
    label = f"{duration(part.ends_seconds_ago)} ago: {counted(commands, 'command')}, {counted(polls, 'poll')}"
    return Bar(x, commands + polls, round(commands * scale, 1), round(polls * scale, 1), label)


def duration(seconds: float) -> str:
    """Return a human-readable duration, such as `2 min 5 s`."""
    whole = max(0, int(seconds))
    for size, unit, smaller_size, smaller_unit in UNITS:
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller_size} {smaller_unit}"
    return f"{whole} s"


def execution_view(
    record: Mapping[str, Any], task: TaskView, words: Mapping[str, StatusWords], updated_at: datetime
) -> ExecutionView | None:
    """Return the execution that a task's XCom describes, or None for another value; any task can write an XCom.

    :param words: the status words of each connection
    """
    texts = {name: value for name, value in record.items() if isinstance(value, str)}
    if not texts.get("id"):
        return None
    url, status = texts.get("url", ""), texts.get("status")
    # A javascript: URL would run in the user's browser.
    safe_url = url if url.startswith(("https://", "http://")) else None
    state = words.get(texts.get("conn_id", ""), StatusWords()).state(status)
    return ExecutionView(texts["id"], texts.get("workflow_id"), status, state, (task,), safe_url, updated_at)


def merge(views: Iterable[ExecutionView]) -> list[ExecutionView]:
    """Return one view of each execution, with its latest status and all of its tasks, the newest first.

    Ids may be unique within a workflow only, and a task that waits may not know the workflow.
    """
    found = list(views)
    workflows = {each.id: each.workflow_id for each in found if each.workflow_id}
    groups: dict[tuple[str, str | None], list[ExecutionView]] = {}
    for each in sorted(found, key=lambda view: (view.status is not None, view.updated_at), reverse=True):
        groups.setdefault((each.id, each.workflow_id or workflows.get(each.id)), []).append(each)
    merged = [
        replace(
            group[0],
            workflow_id=workflow_id,
            tasks=tuple(dict.fromkeys(task for each in group for task in each.tasks)),
            url=next(filter(None, (each.url for each in group)), None),
        )
        for (_, workflow_id), group in groups.items()
    ]
    return sorted(merged, key=lambda view: view.updated_at, reverse=True)


def render(content: Content) -> tuple[str, dict[str, str]]:
    """Return the page as HTML, and its headers, with which a browser loads nothing else."""
    nonce = secrets.token_urlsafe(16)
    shown = {"content": content, "bars": bars, "peak": peak, "duration": duration, "height": CHART_HEIGHT}
    page = _template().render(**shown, slice_seconds=SLICE_SECONDS, refresh_seconds=REFRESH_SECONDS, nonce=nonce)
    own = f"style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'"
    policy = f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    return page, {
        "content-security-policy": policy,
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }


def _printable(value: object) -> object:
    return printable(value) if isinstance(value, str) else value


@cache
def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=_printable
    )
    return environment.get_template("page.html.jinja")
