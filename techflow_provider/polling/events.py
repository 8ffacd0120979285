"""Derive TechFlow's six events from two polls of what it lists, and keep what a stream of them knows; pure.

A webhook only says that there may be events. Which ones there are follows from comparing what the API lists with what
was known before. The cursor is stored before an event is emitted, so that another trigger continues where one stopped.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.history import History
from techflow_provider.client.models import USUAL_WORDS, Execution, ExecutionState, StatusWords
from techflow_provider.client.parsing import Json, quote
from techflow_provider.client.values import as_id, optional
from techflow_provider.client.webhooks import EVENTS

# Executions that ended so much earlier than the latest one are remembered only by that time: they won't change.
REMEMBERED = timedelta(days=1)
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are wanted.

    :param events: names of the six documented events (Webhook Events), in alphabetical order
    :param workflow_id: the only workflow whose events are wanted, or None
    """

    events: tuple[str, ...]
    workflow_id: str | None = None

    @classmethod
    def of(cls, events: str | Iterable[str], workflow_id: str | None = None) -> EventFilter:
        """Return a filter for one name or several.

        :raises InvalidParameterError: there is none, or one that is not documented
        """
        names = [events] if isinstance(events, str) else list(events)
        unknown = [name for name in names if name not in EVENTS]
        if unknown or not names:
            raise InvalidParameterError("events", quote(unknown[0] if names else names), f"some of {', '.join(EVENTS)}")
        return cls(tuple(sorted(set(names))), optional(as_id)("workflow_id", workflow_id))

    def is_about(self, kind: str) -> bool:
        """Whether some of them are about a kind of object: `execution` or `workflow`."""
        return any(name.startswith(f"{kind}.") for name in self.events)

    def includes(self, workflow_id: str | None) -> bool:
        """Whether events of a workflow are wanted."""
        return self.workflow_id in (None, workflow_id)


@dataclass(frozen=True, slots=True)
class Event:
    """One event, with the execution or workflow as it was read.

    :param name: one of the six names
    :param fields: the execution or the workflow
    :param at: when it happened, where that is known
    """

    name: str
    fields: Json = field(repr=False)
    at: datetime | None = None

    @property
    def payload(self) -> dict[str, Json]:
        """What a DAG gets: `event`, and `execution` or `workflow`."""
        return {"event": self.name, self.name.partition(".")[0]: self.fields}


@dataclass(frozen=True, slots=True)
class KnownExecutions:
    """What is known of the execution history.

    :param states: executions by id: all that are running, and those that ended lately
    :param ended_before: those that ended before this time are known too
    """

    states: Mapping[str, ExecutionState] = field(default_factory=dict)
    ended_before: datetime | None = None

    def compared_with(self, executions: Iterable[Execution], now: datetime) -> tuple[list[Event], KnownExecutions]:
        """Return the events that some executions show, in the order in which they happened, and what is known then.

        :param executions: may leave out those that did not change
        :param now: the server's clock; what seems to have ended later proves nothing about the others
        """
        before = self.ended_before if self.ended_before is not None and self.ended_before <= now else _LONG_AGO
        states, events, ends = dict(self.states), list[Event](), dict[str, datetime]()
        for each in executions:
            ended_at, known = each.finished_at if each.ended else None, states.get(each.id)
            if known is None and ended_at is not None and ended_at < before:
                continue
            events += _events_of(known, each)
            # A final status stays, whatever the server says later.
            states[each.id] = each.state if known in (None, ExecutionState.RUNNING) else known
            if ended_at is not None and ended_at <= now:
                ends[each.id] = ended_at
        events.sort(key=lambda each: each.at or _LONG_AGO)
        latest = max(ends.values(), default=_LONG_AGO)
        old_before = max(before, latest - REMEMBERED if latest - _LONG_AGO > REMEMBERED else _LONG_AGO)
        old = {execution_id for execution_id, end in ends.items() if end < old_before}
        if old:
            before, states = old_before, {name: state for name, state in states.items() if name not in old}
        return events, KnownExecutions(states, None if before == _LONG_AGO else before)


def _events_of(known: ExecutionState | None, execution: Execution) -> list[Event]:
    times: dict[str, datetime | None] = {}
    if known is None:
        times["started"] = execution.started_at
    if known in (None, ExecutionState.RUNNING) and execution.ended:
        times[execution.state.value] = execution.finished_at or execution.started_at
    fields = execution.to_dict() if times else None
    return [Event(f"execution.{name}", fields, at) for name, at in times.items()]


def workflow_events(known: Mapping[str, Json], present: Mapping[str, Json]) -> list[Event]:
    """Return the events that two lists of workflows show, each as it was listed, by id."""
    events = [Event("workflow.created", fields) for each, fields in present.items() if each not in known]
    events += [
        Event("workflow.updated", fields) for each, fields in present.items() if known.get(each, fields) != fields
    ]
    return events + [Event("workflow.deleted", fields) for each, fields in known.items() if each not in present]


@dataclass(frozen=True, slots=True)
class EventCursor:
    """What one event stream knows.

    :param executions: None before the first poll of the history
    :param workflows: as they were listed, by id; None before the first poll of the workflows
    :param pending: the payloads of the events that may not have arrived in Airflow, oldest first, by number
    :param count: how many events there have been
    """

    executions: KnownExecutions | None = None
    workflows: Mapping[str, Json] | None = None
    pending: Mapping[int, Json] = field(default_factory=dict)
    count: int = 0

    def after(self, history: History, event_filter: EventFilter, words: StatusWords = USUAL_WORDS) -> EventCursor:
        """Return the cursor after a poll, with the wanted events that it shows; the first poll shows none.

        :param words: what status words mean
        """
        events: list[Event] = []
        executions, workflows = self.executions, self.workflows
        if event_filter.is_about("execution"):
            listed = [each.with_words(words) for each in history if event_filter.includes(each.workflow_id)]
            shown, executions = (executions or KnownExecutions()).compared_with(listed, history.at)
            events += shown if self.executions is not None else ()
        if event_filter.is_about("workflow") and history.workflows is not None:
            workflows = {each.id: each.to_dict() for each in history.workflows if event_filter.includes(each.id)}
            events += workflow_events(self.workflows, workflows) if self.workflows is not None else ()
        wanted = [each.payload for each in events if each.name in event_filter.events]
        pending = {**self.pending, **dict(enumerate(wanted, self.count + 1))}
        return replace(
            self, executions=executions, workflows=workflows, pending=pending, count=self.count + len(wanted)
        )

    def without(self, numbers: Collection[int]) -> EventCursor:
        """Drop events that have arrived."""
        return replace(self, pending={each: payload for each, payload in self.pending.items() if each not in numbers})

    def to_text(self) -> str:
        """Return the stored form, which is that of version 0.1.0."""
        executions: dict[str, Any] | None = None
        if (known := self.executions) is not None:
            executions = {state.value: [] for state in ExecutionState}
            for execution_id in sorted(known.states):
                executions[known.states[execution_id].value].append(execution_id)
            executions["ended_before"] = known.ended_before.isoformat() if known.ended_before else None
        workflows = None if self.workflows is None else dict(self.workflows)
        pending = [[number, "", payload] for number, payload in self.pending.items()]
        fields = {"executions": executions, "workflows": workflows, "pending": pending, "count": self.count}
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def read(cls, text: str) -> EventCursor:
        """Read the stored form, and check it, since another version of this package may have written it.

        :raises ValueError: it can't be read
        """
        try:
            value = json.loads(text)
            executions, workflows, pending = value["executions"], value["workflows"], value["pending"]
            if executions is not None:
                before = executions["ended_before"]
                states = {each: state for state in ExecutionState for each in executions[state.value]}
                executions = KnownExecutions(states, datetime.fromisoformat(before) if before else None)
            return cls(
                executions=executions,
                workflows=None if workflows is None else dict(workflows),
                pending={int(number): payload for number, _, payload in pending},
                count=int(value["count"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"expected the stored cursor of an event stream, got {text[:200]!r}") from error
