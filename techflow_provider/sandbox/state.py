"""What TechFlow holds: workflows, and executions whose state follows from the clock. Knows nothing of HTTP.

Every change is appended to `events` with its time and under the name of the webhook event it would cause, so that a
sender of webhooks needs to read only that list.
"""

from __future__ import annotations

import copy
import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import get_args

from techflow_provider.sandbox.clock import Clock
from techflow_provider.sandbox.messages import Json, Object
from techflow_provider.sandbox.settings import Outcome, SettingError, check_choice, check_seconds

DEFAULT_ERROR = "the sandbox was told to let this execution fail"


@dataclass(frozen=True, slots=True)
class Plan:
    """How executions go; what is None is left to a more general plan.

    :param seconds: how long they take; `math.inf` means until they are finished by hand
    :param outcome: how they end
    :param error: why they fail
    :raises SettingError: a value can't be used
    """

    seconds: float | None = None
    outcome: Outcome | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        if self.seconds is not None:
            check_seconds("seconds", self.seconds)
        if self.outcome is not None:
            check_choice("outcome", self.outcome, get_args(Outcome))
        if self.error is not None and not isinstance(self.error, str):
            raise SettingError("error", self.error, "text")

    @classmethod
    def read(cls, value: Json) -> Plan:
        """Read a plan from JSON.

        :raises SettingError: it is no object, has an unknown field, or a value can't be used
        """
        if not isinstance(value, dict):
            raise SettingError("sandbox", value, "an object with seconds, outcome or error")
        for name in value:
            check_choice("sandbox", name, ("seconds", "outcome", "error"))
        return cls(**value)  # type: ignore[arg-type]  # the types are checked by the constructor

    def over(self, general: Plan) -> Plan:
        """Return this plan, completed by a more general one."""
        return Plan(
            general.seconds if self.seconds is None else self.seconds,
            general.outcome if self.outcome is None else self.outcome,
            general.error if self.error is None else self.error,
        )


@dataclass(frozen=True, slots=True)
class Execution:
    """One run of a workflow, as it stands.

    :param id: its id
    :param workflow_id: the workflow's id
    :param status: `running`, `completed` or `failed`
    :param started_at: when it started
    :param finished_at: when it ended, or None
    :param error: why it failed, or None
    :param payload: the body that started it, or None
    """

    id: str
    workflow_id: str
    status: str
    started_at: datetime
    finished_at: datetime | None
    error: str | None
    payload: Object | None


@dataclass(frozen=True, slots=True)
class Event:
    """A change, under the name of the webhook event it would cause (Webhook Events).

    :param name: such as `execution.completed`
    :param at: when it happened
    :param workflow_id: the workflow's id
    :param execution_id: the execution's id, when it is about one
    """

    name: str
    at: datetime
    workflow_id: str
    execution_id: str | None = None


@dataclass(slots=True)
class _Run:
    execution: Execution
    ends_at: datetime | None
    outcome: Outcome
    error: str | None


class State:
    """The workflows and executions of one sandbox. Not thread-safe by itself.

    :param clock: the time it lives in
    :param new_id: makes an id from a prefix
    :param default: the plan of executions that have none
    """

    def __init__(self, clock: Clock, new_id: Callable[[str], str], default: Plan) -> None:
        self._clock = clock
        self._new_id = new_id
        self._default = default
        self._plans: dict[str, Plan] = {}
        self._workflows: dict[str, Object] = {}
        self._runs: dict[str, _Run] = {}
        self._due: list[tuple[datetime, str]] = []
        self._events: list[Event] = []

    @property
    def events(self) -> tuple[Event, ...]:
        """All that has happened so far."""
        self._settle()
        return tuple(self._events)

    def events_since(self, count: int) -> list[Event]:
        """Return what has happened after so many events."""
        self._settle()
        return self._events[count:]

    def workflows(self) -> list[Object]:
        """Return copies of all workflows, oldest first."""
        return copy.deepcopy(list(self._workflows.values()))

    def workflow(self, workflow_id: str) -> Object:
        """Return a copy of a workflow.

        :raises KeyError: there is none with this id
        """
        return copy.deepcopy(self._workflows[workflow_id])

    def create_workflow(self, fields: Mapping[str, Json], workflow_id: str | None = None) -> Object:
        """Keep a new workflow; its id is the sandbox's to choose.

        :param workflow_id: the id, for a workflow that is there from the beginning
        """
        key = workflow_id or self._new_id("wf")
        self._workflows[key] = {**copy.deepcopy(dict(fields)), "id": key}
        self._note("workflow.created", key)
        return self.workflow(key)

    def replace_workflow(self, workflow_id: str, fields: Mapping[str, Json]) -> Object:
        """Put new fields in the place of all that a workflow had.

        :raises KeyError: there is none with this id
        """
        self.workflow(workflow_id)
        self._workflows[workflow_id] = {**copy.deepcopy(dict(fields)), "id": workflow_id}
        self._note("workflow.updated", workflow_id)
        return self.workflow(workflow_id)

    def delete_workflow(self, workflow_id: str) -> None:
        """Remove a workflow; its executions stay in the history and go on.

        :raises KeyError: there is none with this id
        """
        del self._workflows[workflow_id]
        self._note("workflow.deleted", workflow_id)

    def plan(self, workflow_id: str, plan: Plan) -> None:
        """Say how the future executions of a workflow go; the workflow need not exist yet."""
        self._plans[workflow_id] = plan

    def start(self, workflow_id: str, payload: Object | None = None, plan: Plan | None = None) -> Execution:
        """Start an execution.

        :param plan: how it goes, before the workflow's plan
        :raises KeyError: there is no workflow with this id
        """
        self.workflow(workflow_id)
        self._settle()
        whole = (plan or Plan()).over(self._plans.get(workflow_id, Plan())).over(self._default)
        now = self._clock.now()
        execution = Execution(self._new_id("exec"), workflow_id, "running", now, None, None, payload)
        seconds = math.inf if whole.seconds is None else whole.seconds
        ends_at = None if seconds == math.inf else now + timedelta(seconds=seconds)
        self._runs[execution.id] = _Run(execution, ends_at, whole.outcome or "completed", whole.error)
        self._note("execution.started", workflow_id, execution.id)
        self._await_end(execution.id)
        return self.execution(execution.id)

    def execution(self, execution_id: str) -> Execution:
        """Return an execution as it stands.

        :raises KeyError: there is none with this id
        """
        self._settle()
        return self._runs[execution_id].execution

    def executions(self) -> tuple[Execution, ...]:
        """Return all executions as they stand, in the order of their starts."""
        self._settle()
        return tuple(run.execution for run in self._runs.values())

    def finish(self, execution_id: str, outcome: Outcome | None = None, error: str | None = None) -> Execution:
        """End an execution now.

        :param outcome: how; None takes what was planned
        :raises KeyError: there is none with this id
        :raises SettingError: it is already over, or the outcome is unknown
        """
        plan = Plan(outcome=outcome, error=error)
        execution = self.execution(execution_id)
        if execution.finished_at is not None:
            raise SettingError("execution_id", execution_id, f"one that is running; this one is {execution.status}")
        run = self._runs[execution_id]
        run.outcome = plan.outcome or run.outcome
        run.error = error or run.error
        run.ends_at = self._clock.now()
        self._await_end(execution_id)
        return self.execution(execution_id)

    def _note(self, name: str, workflow_id: str, execution_id: str | None = None) -> None:
        self._settle()
        self._events.append(Event(name, self._clock.now(), workflow_id, execution_id))

    def _await_end(self, execution_id: str) -> None:
        ends_at = self._runs[execution_id].ends_at
        if ends_at is not None:
            heapq.heappush(self._due, (ends_at, execution_id))

    def _settle(self) -> None:
        """End what the clock has passed, in the order of the ends."""
        now = self._clock.now()
        while self._due and self._due[0][0] <= now:
            ends_at, execution_id = heapq.heappop(self._due)
            run = self._runs[execution_id]
            # One that was finished by hand is also due at the end that was planned.
            if run.execution.finished_at is None:
                self._end(run, ends_at)

    def _end(self, run: _Run, at: datetime) -> None:
        error = (run.error or DEFAULT_ERROR) if run.outcome == "failed" else None
        run.execution = replace(run.execution, status=run.outcome, finished_at=at, error=error)
        ids = (run.execution.workflow_id, run.execution.id)
        self._events.append(Event(f"execution.{run.outcome}", at, *ids))
