"""What the page shows, as values, and the arithmetic of its chart; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from techflow_provider.client.models import ExecutionState
from techflow_provider.client.parsing import counted
from techflow_provider.state.budget import RequestClass
from techflow_provider.state.snapshot import Slice, Snapshot

CHART_HEIGHT = 60
BAR_WIDTH = 10
MINUTE_SECONDS, HOUR_SECONDS, DAY_SECONDS = 60, 3600, 86400


@dataclass(frozen=True, slots=True)
class ConnectionView:
    """A connection of the type `techflow`.

    :param conn_id: its id
    :param base_url: where TechFlow is, None when the connection can't be read
    :param budget: how its budget stands, None when that can't be told
    :param problem: why something of it can't be told
    :param receives_webhooks: whether its receiver is on
    :param deliveries: ages of the webhooks of the last day that can be told apart, in seconds, newest first
    """

    conn_id: str
    base_url: str | None = None
    budget: Snapshot | None = None
    problem: str | None = None
    receives_webhooks: bool = False
    deliveries: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class WaitView:
    """A task that waits.

    :param task: the task, in words
    :param wanted: what it waits for, in words
    :param where: `triggerer` or `worker`
    :param since: when it began
    """

    task: str
    wanted: str
    where: str
    since: datetime


@dataclass(frozen=True, slots=True)
class ExecutionView:
    """An execution that a task started or awaited.

    :param id: its id
    :param workflow_id: its workflow
    :param status: the status word when the task last saw it
    :param state: what that stands for
    :param task: the task, in words
    :param url: its page in the dashboard
    :param seen_at: when the task last saw it
    """

    id: str
    workflow_id: str | None
    status: str | None
    state: ExecutionState
    task: str
    url: str | None
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class Content:
    """All that the page shows.

    :param now: when it was gathered
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


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of the chart, with polls on top of commands.

    :param x: left edge
    :param commands: height of the part for commands
    :param polls: height of the part for polls
    :param words: what it says
    """

    x: int
    commands: float
    polls: float
    words: str


def bars(history: Sequence[Slice]) -> list[Bar]:
    """Return the chart of the last ten minutes; the highest bar fills it."""
    highest = max((sum(each.requests.values()) for each in history), default=0) or 1
    return [_bar(index * BAR_WIDTH, each, CHART_HEIGHT / highest) for index, each in enumerate(history)]


def total(history: Sequence[Slice]) -> int:
    """Return how many requests were let go in a history."""
    return sum(count for each in history for count in each.requests.values())


def _bar(x: int, part: Slice, scale: float) -> Bar:
    commands, polls = (part.requests.get(each, 0) for each in (RequestClass.COMMAND, RequestClass.POLL))
    words = f"{duration(part.ends_seconds_ago)} ago: {counted(commands, 'command')}, {counted(polls, 'poll')}"
    return Bar(x, round(commands * scale, 1), round(polls * scale, 1), words)


def duration(seconds: float) -> str:
    """Return a duration in words, such as `2 min 5 s`."""
    whole = max(0, int(seconds))
    if whole < MINUTE_SECONDS:
        return f"{whole} s"
    if whole < HOUR_SECONDS:
        return f"{whole // MINUTE_SECONDS} min {whole % MINUTE_SECONDS} s"
    if whole < DAY_SECONDS:
        return f"{whole // HOUR_SECONDS} h {whole % HOUR_SECONDS // MINUTE_SECONDS} min"
    return f"{whole // DAY_SECONDS} d {whole % DAY_SECONDS // HOUR_SECONDS} h"


def execution_view(
    told: Mapping[str, object], task: str, state: ExecutionState, seen_at: datetime
) -> ExecutionView | None:
    """Return the execution that a task wrote down, or None for something else; any task can write an XCom."""
    texts = {name: value if isinstance(value := told.get(name), str) else None for name in told}
    if not texts.get("id"):
        return None
    url = texts.get("url")
    # A browser does as an address says, so only those of web pages are taken.
    safe = url if url and url.startswith(("https://", "http://")) else None
    return ExecutionView(texts["id"] or "", texts.get("workflow_id"), texts.get("status"), state, task, safe, seen_at)
