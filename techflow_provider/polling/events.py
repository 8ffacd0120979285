"""Derive TechFlow's six events from two looks at what it lists; pure.

A webhook only says that there may be news. What they are is told by comparing what the API lists with what was known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.models import Execution, ExecutionState, Workflow
from techflow_provider.client.parsing import Json, quote
from techflow_provider.client.webhooks import EVENTS

# An execution whose end is so much older than the latest is not remembered one by one: nothing new is expected of it.
REMEMBERED = timedelta(days=1)
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are wanted.

    :param events: names of the six documented events (Webhook Events), in alphabetical order
    :param workflow_id: the only workflow they may be about, or None
    """

    events: tuple[str, ...]
    workflow_id: str | None = None

    @classmethod
    def of(cls, events: str | Iterable[str], workflow_id: str | None = None) -> EventFilter:
        """Return what one name or several stand for.

        :raises InvalidParameterError: there is none, or one that is not documented
        """
        names = [events] if isinstance(events, str) else list(events)
        unknown = [name for name in names if name not in EVENTS]
        if unknown or not names:
            raise InvalidParameterError("events", quote(unknown[0] if names else names), f"some of {', '.join(EVENTS)}")
        return cls(tuple(sorted(set(names))), workflow_id)

    @property
    def about_executions(self) -> bool:
        """Whether the execution history tells of some of them."""
        return any(name.startswith("execution.") for name in self.events)

    @property
    def about_workflows(self) -> bool:
        """Whether the list of workflows tells of some of them."""
        return any(name.startswith("workflow.") for name in self.events)

    def wants(self, news: Event) -> bool:
        """Whether an event is among them."""
        return news.event in self.events and self.workflow_id in (None, news.workflow_id)


@dataclass(frozen=True, slots=True)
class Event:
    """One event, with the execution or workflow as it was read.

    :param event: one of the six names
    :param workflow_id: the workflow it is about, when it is told
    :param at: when it happened, where that is told
    :param payload: what a DAG gets: `event`, and `execution` or `workflow`
    """

    event: str
    workflow_id: str | None
    at: datetime | None
    payload: dict[str, Json] = field(repr=False)

    @classmethod
    def of_execution(cls, event: str, execution: Execution, at: datetime | None) -> Event:
        """Return an event of an execution."""
        return cls(event, execution.workflow_id, at, {"event": event, "execution": execution.to_dict()})

    @classmethod
    def of_workflow(cls, event: str, workflow_id: str, fields: Json) -> Event:
        """Return an event of a workflow."""
        return cls(event, workflow_id, None, {"event": event, "workflow": fields})


@dataclass(frozen=True, slots=True)
class KnownExecutions:
    """What is known of the execution history.

    :param states: executions by id; all that run, and those that ended lately
    :param ended_before: those that ended before this time are known too
    """

    states: Mapping[str, ExecutionState]
    ended_before: datetime | None = None

    def compared_with(self, executions: Iterable[Execution]) -> tuple[list[Event], KnownExecutions]:
        """Return what is new about some executions, in the order in which it happened, and what is known then.

        :param executions: may leave out those that did not change
        """
        states = dict(self.states)
        news: list[Event] = []
        ends: dict[str, datetime] = {}
        for execution in executions:
            if execution.id not in states and self._is_old(execution):
                continue
            news += _changes(states.get(execution.id), execution)
            # An end is the end, whatever the server says later.
            if states.get(execution.id, ExecutionState.RUNNING) is ExecutionState.RUNNING:
                states[execution.id] = execution.state
            if execution.ended and execution.finished_at is not None:
                ends[execution.id] = execution.finished_at
        news.sort(key=lambda each: each.at or _LONG_AGO)
        return news, replace(self, states=states).without_old(ends)

    def _is_old(self, execution: Execution) -> bool:
        ended = execution.finished_at if execution.ended else None
        return self.ended_before is not None and ended is not None and ended < self.ended_before

    def without_old(self, ends: Mapping[str, datetime]) -> KnownExecutions:
        """Return the same without the executions that ended long before the latest.

        :param ends: when executions ended, by id
        """
        before = max(ends.values(), default=_LONG_AGO + REMEMBERED) - REMEMBERED
        if self.ended_before is not None and before <= self.ended_before:
            return self
        old = {execution_id for execution_id, end in ends.items() if end < before}
        if not old:
            return self
        states = {execution_id: state for execution_id, state in self.states.items() if execution_id not in old}
        return replace(self, states=states, ended_before=before)


def _changes(known: ExecutionState | None, execution: Execution) -> list[Event]:
    changes = []
    if known is None:
        changes.append(Event.of_execution("execution.started", execution, execution.started_at))
    if known in (None, ExecutionState.RUNNING) and execution.ended:
        at = execution.finished_at or execution.started_at
        changes.append(Event.of_execution(f"execution.{execution.state}", execution, at))
    return changes


@dataclass(frozen=True, slots=True)
class KnownWorkflows:
    """What is known of the list of workflows.

    :param fields: what the list showed of each workflow, by id
    """

    fields: Mapping[str, Json]

    def compared_with(self, workflows: Iterable[Workflow]) -> tuple[list[Event], KnownWorkflows]:
        """Return what is new about the workflows, and what is known then.

        :param workflows: all of them
        """
        present: dict[str, Json] = {workflow.id: workflow.to_dict() for workflow in workflows}
        created = [("workflow.created", each, fields) for each, fields in present.items() if each not in self.fields]
        updated = [
            ("workflow.updated", each, fields)
            for each, fields in present.items()
            if each in self.fields and self.fields[each] != fields
        ]
        deleted = [("workflow.deleted", each, fields) for each, fields in self.fields.items() if each not in present]
        return [Event.of_workflow(*each) for each in (*created, *updated, *deleted)], KnownWorkflows(present)
