"""What an event trigger knows and has still to tell, and how that is written down; pure.

It is written down before an event is told, so that a trigger that takes over goes on where the last one stood.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from techflow_provider.client.models import Execution, ExecutionState, Workflow
from techflow_provider.client.parsing import Json
from techflow_provider.polling.events import Event, EventFilter, KnownExecutions, KnownWorkflows


@dataclass(frozen=True, slots=True)
class Pending:
    """An event that is not known to have arrived in Airflow.

    :param number: tells it from others of the same watcher
    :param owner: names the running trigger that tells it
    :param payload: what a DAG gets
    """

    number: int
    owner: str
    payload: Json


@dataclass(frozen=True, slots=True)
class EventCursor:
    """What one watcher knows.

    :param executions: None before the history was read for the first time
    :param workflows: None before the workflows were listed for the first time
    :param pending: the events that are to be told, oldest first
    :param count: how many there have been
    """

    executions: KnownExecutions | None = None
    workflows: KnownWorkflows | None = None
    pending: tuple[Pending, ...] = ()
    count: int = 0

    def see_executions(self, subject: EventFilter, executions: Iterable[Execution], owner: str) -> EventCursor:
        """Take notice of a reading of the history; what is there at the first one is not new."""
        read = [each for each in executions if subject.workflow_id in (None, each.workflow_id)]
        news, known = (self.executions or KnownExecutions({})).compared_with(read)
        told = replace(self, executions=known)
        return told if self.executions is None else told.with_pending(filter(subject.wants, news), owner)

    def see_workflows(self, subject: EventFilter, workflows: Iterable[Workflow], owner: str) -> EventCursor:
        """Take notice of the whole list of workflows; what is there at the first time is not new."""
        read = [each for each in workflows if subject.workflow_id in (None, each.id)]
        news, known = (self.workflows or KnownWorkflows({})).compared_with(read)
        told = replace(self, workflows=known)
        return told if self.workflows is None else told.with_pending(filter(subject.wants, news), owner)

    def with_pending(self, news: Iterable[Event], owner: str) -> EventCursor:
        """Add events that are to be told."""
        added = tuple(Pending(self.count + place, owner, each.payload) for place, each in enumerate(news, 1))
        return replace(self, pending=self.pending + added, count=self.count + len(added))

    def without(self, numbers: Collection[int]) -> EventCursor:
        """Drop events that have arrived."""
        return replace(self, pending=tuple(each for each in self.pending if each.number not in numbers))

    def has_foreign(self, owner: str) -> bool:
        """Whether another trigger has left events untold, as far as is written down."""
        return any(each.owner != owner for each in self.pending)

    def taken_over(self, owner: str) -> EventCursor:
        """Let all pending events be told by one trigger."""
        return replace(self, pending=tuple(replace(each, owner=owner) for each in self.pending))

    def to_text(self) -> str:
        """Return it as it is written down."""
        return json.dumps(
            {
                "executions": _executions_to_json(self.executions),
                "workflows": None if self.workflows is None else dict(self.workflows.fields),
                "pending": [[each.number, each.owner, each.payload] for each in self.pending],
                "count": self.count,
            },
            sort_keys=True,
        )

    @classmethod
    def read(cls, text: str) -> EventCursor:
        """Read what was written down; it may come from another version of this package, so it is checked.

        :raises ValueError: it can't be read
        """
        try:
            value = json.loads(text)
            workflows = value["workflows"]
            return cls(
                executions=_executions_of(value["executions"]),
                workflows=None if workflows is None else KnownWorkflows(dict(workflows)),
                pending=tuple(Pending(int(number), str(owner), told) for number, owner, told in value["pending"]),
                count=int(value["count"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"expected what a watcher has written down, got {text[:200]!r}") from error


def _executions_to_json(known: KnownExecutions | None) -> dict[str, Any] | None:
    if known is None:
        return None
    by_state = {
        state.value: sorted(execution_id for execution_id, its_state in known.states.items() if its_state is state)
        for state in ExecutionState
    }
    return {**by_state, "ended_before": known.ended_before.isoformat() if known.ended_before else None}


def _executions_of(value: Mapping[str, Any] | None) -> KnownExecutions | None:
    if value is None:
        return None
    states = {execution_id: state for state in ExecutionState for execution_id in value[state.value]}
    ended_before = value["ended_before"]
    return KnownExecutions(states, datetime.fromisoformat(ended_before) if ended_before else None)


@dataclass(slots=True)
class EventEmitter:
    """Which events one running trigger has told, and when; it tells them one by one.

    :param owner: its name
    :param spacing_seconds: time between two events, so that each gets a DAG run of its own
    :param confirm_seconds: time after which an event that was told has arrived in Airflow
    """

    owner: str
    spacing_seconds: float
    confirm_seconds: float
    told: dict[int, float] = field(default_factory=dict)
    last: float = -math.inf

    def next(self, lookout: EventCursor, now: float) -> Pending | None:
        """Return the event that is to be told now, and note that it is."""
        waiting = self._waiting(lookout)
        if not waiting or now < self.last + self.spacing_seconds:
            return None
        self.told[waiting[0].number] = self.last = now
        return waiting[0]

    def _waiting(self, lookout: EventCursor) -> list[Pending]:
        return [each for each in lookout.pending if each.owner == self.owner and each.number not in self.told]

    def arrived(self, now: float) -> frozenset[int]:
        """Return the events that have arrived in Airflow."""
        return frozenset(number for number, at in self.told.items() if now >= at + self.confirm_seconds)

    def forget(self, numbers: Iterable[int]) -> None:
        """Forget events that are written down as arrived."""
        for number in numbers:
            del self.told[number]

    def due(self, lookout: EventCursor) -> float:
        """Return when something is to be done; infinite when only news bring work."""
        times = [at + self.confirm_seconds for at in self.told.values()]
        if self._waiting(lookout):
            times.append(self.last + self.spacing_seconds)
        return min(times, default=math.inf)
