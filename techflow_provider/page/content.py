"""What the page shows, as values, and how it is rendered: all of it escaped, without a script."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from techflow_provider.client.models import ExecutionState, StatusWords
from techflow_provider.client.parsing import counted
from techflow_provider.client.text import printable
from techflow_provider.state.budget import RequestClass
from techflow_provider.state.components import Component
from techflow_provider.state.snapshot import Slice, Snapshot

CHART_HEIGHT = 60
BAR_WIDTH = 10
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
    """

    conn_id: str
    base_url: str | None = None
    budget: Snapshot | None = None
    problem: str | None = None
    receives_webhooks: bool = False
    deliveries: tuple[float, ...] = ()
    state: str = ""
    users: tuple[tuple[Component, float], ...] = ()


@dataclass(frozen=True, slots=True)
class WaitView:
    """A task that waits.

    :param task: the task, human-readable
    :param awaited: what it waits for, human-readable
    :param location: `triggerer` or `worker`
    :param since: when it began
    """

    task: str
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
    :param task: the task, human-readable
    :param url: its page in the dashboard
    :param updated_at: when the task last polled it
    """

    id: str
    workflow_id: str | None
    status: str | None
    state: ExecutionState
    task: str
    url: str | None
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Content:
    """Everything that the page shows.

    :param now: when it was collected
    :param connections: those that the user may see
    :param waits: the longest first, of those whose DAG the user may see
    :param executions: the newest first, of those whose DAG the user may see
    :param more_waits: how many waits are left out
    """

    now: datetime
    connections: tuple[ConnectionView, ...]
    waits: tuple[WaitView, ...]
    executions: tuple[ExecutionView, ...]
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
    scale = CHART_HEIGHT / (max((sum(each.requests.values()) for each in history), default=0) or 1)
    return [_bar(index * BAR_WIDTH, each, scale) for index, each in enumerate(history)]


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
    record: Mapping[str, Any], task: str, words: Mapping[str, StatusWords], updated_at: datetime
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
    return ExecutionView(texts["id"], texts.get("workflow_id"), status, state, task, safe_url, updated_at)


def render(content: Content) -> tuple[str, dict[str, str]]:
    """Return the page as HTML, and its headers, with which a browser loads nothing else."""
    nonce = secrets.token_urlsafe(16)
    page = _template().render(content=content, bars=bars, duration=duration, height=CHART_HEIGHT, nonce=nonce)
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )
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
