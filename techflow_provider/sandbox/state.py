"""The state of TechFlow: workflows, and executions whose status follows from the clock. Knows nothing about HTTP.

Every change is appended to `events`, with its time and the name of the webhook event that it causes.
"""

from __future__ import annotations

import copy
import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

from techflow_provider.sandbox.messages import Json, Object
from techflow_provider.sandbox.settings import Clock, Outcome, Seconds, SettingError, check_fields

DEFAULT_ERROR = "the sandbox is configured to let this execution fail"


@dataclass(frozen=True, slots=True)
class Plan:
    """How executions behave; a field that is None falls back to a more general plan.

    :param seconds: how long they take; `math.inf` means until `finish` is called
    :param outcome: their final status
    :param error: the error of those that fail
    :raises SettingError: a value is invalid
    """

    seconds: Seconds | None = None
    outcome: Outcome | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def with_defaults(self, general: Plan) -> Plan:
        """Return this plan, with missing fields taken from a more general one."""
        return replace(self, **{name: value for name, value in asdict(general).items() if getattr(self, name) is None})


@dataclass(frozen=True, slots=True)
class Execution:
    """One run of a workflow, as it is now.

    :param id: its id
    :param workflow_id: the workflow's id
    :param status: `running`, `completed` or `failed`
    :param started_at: when it started
    :param finished_at: when it finished, or None
    :param error: why it failed, or None
    :param payload: the body of the request that started it, or None
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
    """A change, under the name of the webhook event that it causes (Webhook Events).

    :param name: such as `execution.completed`
    :param at: when it happened
    :param workflow_id: the workflow's id
    :param execution_id: the execution's id, for an event of an execution
    """

    name: str
    at: datetime
    workflow_id: str
    execution_id: str | None = None


@dataclass(slots=True)
class _Run:
    execution: Execution
    outcome: Outcome
    error: str | None


class State:
    """The workflows and executions of one sandbox. Not thread-safe by itself.

    :param clock: its clock
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
        self._schedule: list[tuple[datetime, str]] = []
        self._events: list[Event] = []

    def events(self, start: int = 0) -> list[Event]:
        """Return all events so far, except the first `start`."""
        self._update()
        return self._events[start:]

    def workflows(self) -> list[Object]:
        """Return copies of all workflows, oldest first."""
        return copy.deepcopy(list(self._workflows.values()))

    def workflow(self, workflow_id: str) -> Object:
        """Return a copy of a workflow.

        :raises KeyError: no workflow has this id
        """
        return copy.deepcopy(self._workflows[workflow_id])

    def create_workflow(self, fields: Mapping[str, Json], workflow_id: str | None = None) -> Object:
        """Create a workflow.

        :param workflow_id: its id; None generates one
        """
        return self._store(workflow_id or self._new_id("wf"), fields, "workflow.created")

    def replace_workflow(self, workflow_id: str, fields: Mapping[str, Json]) -> Object:
        """Replace all fields of a workflow.

        :raises KeyError: no workflow has this id
        """
        self.workflow(workflow_id)
        return self._store(workflow_id, fields, "workflow.updated")

    def _store(self, workflow_id: str, fields: Mapping[str, Json], event: str) -> Object:
        self._workflows[workflow_id] = {**copy.deepcopy(dict(fields)), "id": workflow_id}
        self._add_event(event, workflow_id)
        return self.workflow(workflow_id)

    def delete_workflow(self, workflow_id: str) -> None:
        """Delete a workflow; its executions stay in the history and keep running.

        :raises KeyError: no workflow has this id
        """
        del self._workflows[workflow_id]
        self._add_event("workflow.deleted", workflow_id)

    def plan(self, workflow_id: str, plan: Plan) -> None:
        """Set how future executions of a workflow behave; the workflow need not exist yet."""
        self._plans[workflow_id] = plan

    def start(self, workflow_id: str, payload: Object | None = None, plan: Plan | None = None) -> Execution:
        """Start an execution.

        :param plan: how it behaves; missing fields come from the workflow's plan
        :raises KeyError: no workflow has this id
        """
        self.workflow(workflow_id)
        self._update()
        plan = (plan or Plan()).with_defaults(self._plans.get(workflow_id, Plan())).with_defaults(self._default)
        now = self._clock.now()
        execution = Execution(self._new_id("exec"), workflow_id, "running", now, None, None, payload)
        self._runs[execution.id] = _Run(execution, plan.outcome or "completed", plan.error)
        self._add_event("execution.started", workflow_id, execution.id)
        if plan.seconds is not None and plan.seconds < math.inf:
            heapq.heappush(self._schedule, (now + timedelta(seconds=plan.seconds), execution.id))
        return self.execution(execution.id)

    def execution(self, execution_id: str) -> Execution:
        """Return an execution as it is now.

        :raises KeyError: no execution has this id
        """
        self._update()
        return self._runs[execution_id].execution

    def executions(self) -> tuple[Execution, ...]:
        """Return all executions as they are now, in the order of their starts."""
        self._update()
        return tuple(run.execution for run in self._runs.values())

    def finish(self, execution_id: str, outcome: Outcome | None = None, error: str | None = None) -> Execution:
        """Finish a running execution now.

        :param outcome: its final status; None uses its plan
        :raises KeyError: no execution has this id
        :raises SettingError: it has already finished, or the outcome is unknown
        """
        plan = Plan(outcome=outcome, error=error)
        execution = self.execution(execution_id)
        if execution.finished_at is not None:
            raise SettingError("execution_id", execution_id, f"a running execution; this one is {execution.status}")
        run = self._runs[execution_id]
        run.outcome = plan.outcome or run.outcome
        run.error = error or run.error
        self._complete(run, self._clock.now())
        return run.execution

    def _add_event(self, name: str, workflow_id: str, execution_id: str | None = None) -> None:
        self._update()
        self._events.append(Event(name, self._clock.now(), workflow_id, execution_id))

    def _update(self) -> None:
        """Finish the executions whose time has come, in order."""
        now = self._clock.now()
        while self._schedule and self._schedule[0][0] <= now:
            finishes_at, execution_id = heapq.heappop(self._schedule)
            run = self._runs[execution_id]
            # One that `finish` has finished is still scheduled for its planned time.
            if run.execution.finished_at is None:
                self._complete(run, finishes_at)

    def _complete(self, run: _Run, at: datetime) -> None:
        error = (run.error or DEFAULT_ERROR) if run.outcome == "failed" else None
        run.execution = replace(run.execution, status=run.outcome, finished_at=at, error=error)
        self._events.append(Event(f"execution.{run.outcome}", at, run.execution.workflow_id, run.execution.id))
