"""Derive TechFlow's six events from two polls of what it lists; pure.

A webhook only says that there may be events. Which ones there are follows from comparing what the API lists with what
was known before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.models import Execution, ExecutionState, Workflow
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

    def wants(self, event: Event) -> bool:
        """Whether an event is wanted."""
        return event.name in self.events and self.includes(event.workflow_id)


@dataclass(frozen=True, slots=True)
class Event:
    """One event, with the execution or workflow as it was read.

    :param name: one of the six names
    :param workflow_id: its workflow, where that is known
    :param at: when it happened, where that is known
    :param fields: the execution or the workflow
    """

    name: str
    workflow_id: str | None
    at: datetime | None
    fields: Json = field(repr=False)

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

    states: Mapping[str, ExecutionState]
    ended_before: datetime | None = None

    def compared_with(self, executions: Iterable[Execution], now: datetime) -> tuple[list[Event], KnownExecutions]:
        """Return the events that some executions show, in the order in which they happened, and what is known then.

        :param executions: may leave out those that did not change
        :param now: the server's clock; what seems to have ended later proves nothing about the others
        """
        if self.ended_before is not None and self.ended_before > now:
            return replace(self, ended_before=None).compared_with(executions, now)
        states = dict(self.states)
        events: list[Event] = []
        ends: dict[str, datetime] = {}
        for execution in executions:
            if execution.id not in states and self._is_old(execution):
                continue
            events += _events_of(states.get(execution.id), execution)
            # A final status stays, whatever the server says later.
            if states.get(execution.id, ExecutionState.RUNNING) is ExecutionState.RUNNING:
                states[execution.id] = execution.state
            if execution.ended and execution.finished_at is not None and execution.finished_at <= now:
                ends[execution.id] = execution.finished_at
        events.sort(key=lambda each: each.at or _LONG_AGO)
        return events, replace(self, states=states).without_old(ends)

    def _is_old(self, execution: Execution) -> bool:
        ended = execution.finished_at if execution.ended else None
        return self.ended_before is not None and ended is not None and ended < self.ended_before

    def without_old(self, ends: Mapping[str, datetime]) -> KnownExecutions:
        """Return the same without the executions that ended long before the latest one.

        :param ends: when executions ended, by id
        """
        before = max(ends.values(), default=_LONG_AGO)
        before = before - REMEMBERED if before - _LONG_AGO > REMEMBERED else _LONG_AGO
        if self.ended_before is not None and before <= self.ended_before:
            return self
        old = {execution_id for execution_id, end in ends.items() if end < before}
        if not old:
            return self
        states = {execution_id: state for execution_id, state in self.states.items() if execution_id not in old}
        return replace(self, states=states, ended_before=before)


def _events_of(known: ExecutionState | None, execution: Execution) -> list[Event]:
    times: dict[str, datetime | None] = {}
    if known is None:
        times["started"] = execution.started_at
    if known in (None, ExecutionState.RUNNING) and execution.ended:
        times[execution.state.value] = execution.finished_at or execution.started_at
    fields = execution.to_dict() if times else None
    return [Event(f"execution.{name}", execution.workflow_id, at, fields) for name, at in times.items()]


@dataclass(frozen=True, slots=True)
class KnownWorkflows:
    """What is known of the list of workflows.

    :param fields: each workflow as it was listed, by id
    """

    fields: Mapping[str, Json]

    def compared_with(self, workflows: Iterable[Workflow]) -> tuple[list[Event], KnownWorkflows]:
        """Return the events that the workflows show, and what is known then.

        :param workflows: all of them
        """
        present: dict[str, Json] = {workflow.id: workflow.to_dict() for workflow in workflows}
        changes = {
            "created": {each: present[each] for each in present if each not in self.fields},
            "updated": {
                each: present[each] for each in present if self.fields.get(each, present[each]) != present[each]
            },
            "deleted": {each: self.fields[each] for each in self.fields if each not in present},
        }
        events = [
            Event(f"workflow.{name}", each, None, fields)
            for name, these in changes.items()
            for each, fields in these.items()
        ]
        return events, KnownWorkflows(present)
