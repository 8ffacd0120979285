"""What an event stream knows and has still to emit, and its stored JSON form; pure.

The cursor is stored before an event is emitted, so that a trigger that takes over continues where the last one stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from techflow_provider.client.history import History
from techflow_provider.client.models import USUAL_WORDS, ExecutionState, StatusWords
from techflow_provider.client.parsing import Json
from techflow_provider.polling.events import Event, EventFilter, KnownExecutions, KnownWorkflows


@dataclass(frozen=True, slots=True)
class PendingEvent:
    """An event that may not have arrived in Airflow.

    :param number: distinguishes it from the stream's other events
    :param owner: identifies the running trigger that emits it
    :param payload: what a DAG gets
    """

    number: int
    owner: str
    payload: Json


@dataclass(frozen=True, slots=True)
class EventCursor:
    """What one event stream knows.

    :param executions: None before the first poll of the history
    :param workflows: None before the first poll of the workflows
    :param pending: the events that have to be emitted, oldest first
    :param count: how many events there have been
    """

    executions: KnownExecutions | None = None
    workflows: KnownWorkflows | None = None
    pending: tuple[PendingEvent, ...] = ()
    count: int = 0

    def after(
        self, history: History, event_filter: EventFilter, owner: str, words: StatusWords = USUAL_WORDS
    ) -> EventCursor:
        """Return the cursor after a poll, with the wanted events that it shows; the first poll shows none.

        :param owner: the trigger that will emit the events
        :param words: what status words mean
        """
        events: list[Event] = []
        executions, workflows = self.executions, self.workflows
        if event_filter.is_about("execution"):
            listed = [each.with_words(words) for each in history if event_filter.includes(each.workflow_id)]
            shown, executions = (executions or KnownExecutions({})).compared_with(listed, history.at)
            events += shown if self.executions is not None else ()
        if event_filter.is_about("workflow") and history.workflows is not None:
            present = [each for each in history.workflows if event_filter.includes(each.id)]
            shown, workflows = (workflows or KnownWorkflows({})).compared_with(present)
            events += shown if self.workflows is not None else ()
        wanted = enumerate(filter(event_filter.wants, events), self.count + 1)
        added = tuple(PendingEvent(number, owner, each.payload) for number, each in wanted)
        return EventCursor(executions, workflows, self.pending + added, self.count + len(added))

    def without(self, numbers: Collection[int]) -> EventCursor:
        """Drop events that have arrived."""
        return replace(self, pending=tuple(each for each in self.pending if each.number not in numbers))

    def has_foreign(self, owner: str) -> bool:
        """Whether events of another trigger are pending."""
        return any(each.owner != owner for each in self.pending)

    def taken_over(self, owner: str) -> EventCursor:
        """Make one trigger the owner of all pending events."""
        return replace(self, pending=tuple(replace(each, owner=owner) for each in self.pending))

    def to_text(self) -> str:
        """Return the stored form."""
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
        """Read the stored form, and check it, since another version of this package may have written it.

        :raises ValueError: it can't be read
        """
        try:
            value = json.loads(text)
            workflows = value["workflows"]
            return cls(
                executions=_executions_of(value["executions"]),
                workflows=None if workflows is None else KnownWorkflows(dict(workflows)),
                pending=tuple(PendingEvent(int(number), str(owner), body) for number, owner, body in value["pending"]),
                count=int(value["count"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"expected the stored cursor of an event stream, got {text[:200]!r}") from error


def _executions_to_json(known: KnownExecutions | None) -> dict[str, Any] | None:
    if known is None:
        return None
    ids = {word.value: sorted(each for each, state in known.states.items() if state is word) for word in ExecutionState}
    return {**ids, "ended_before": known.ended_before.isoformat() if known.ended_before else None}


def _executions_of(value: Mapping[str, Any] | None) -> KnownExecutions | None:
    if value is None:
        return None
    states = {execution_id: state for state in ExecutionState for execution_id in value[state.value]}
    ended_before = value["ended_before"]
    return KnownExecutions(states, datetime.fromisoformat(ended_before) if ended_before else None)


@dataclass(slots=True)
class EventEmitter:
    """Decides which event one running trigger emits next, and when.

    :param owner: identifies the trigger
    :param spacing_seconds: time between two events, so that each gets a DAG run of its own
    :param confirm_seconds: time after which an emitted event has arrived in Airflow
    """

    owner: str
    spacing_seconds: float
    confirm_seconds: float
    _emitted: dict[int, float] = field(default_factory=dict, init=False)
    _last: float = field(default=-math.inf, init=False)

    def next(self, cursor: EventCursor, now: float) -> PendingEvent | None:
        """Return the event that is due now, and record it as emitted."""
        waiting = self._waiting(cursor)
        if not waiting or now < self._last + self.spacing_seconds:
            return None
        self._emitted[waiting[0].number] = self._last = now
        return waiting[0]

    def _waiting(self, cursor: EventCursor) -> list[PendingEvent]:
        return [each for each in cursor.pending if each.owner == self.owner and each.number not in self._emitted]

    def arrived(self, now: float) -> frozenset[int]:
        """Return the numbers of the events that have arrived in Airflow."""
        return frozenset(number for number, at in self._emitted.items() if now >= at + self.confirm_seconds)

    def forget(self, numbers: Iterable[int]) -> None:
        """Forget events whose arrival is stored."""
        for number in numbers:
            del self._emitted[number]

    def due(self, cursor: EventCursor) -> float:
        """Return when there is something to do; infinity when that takes a new event."""
        times = [at + self.confirm_seconds for at in self._emitted.values()]
        if self._waiting(cursor):
            times.append(self._last + self.spacing_seconds)
        return min(times, default=math.inf)
