"""The state of TechFlow: workflows, and executions whose status follows from the clock. Knows nothing about HTTP.

Every change is appended to `events`, with its time and the name of the webhook event that it causes.
"""

from __future__ import annotations

import copy
import heapq
import math
import random
import threading
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import reduce
from typing import Any

from techflow_provider.sandbox.messages import Json, Object
from techflow_provider.sandbox.settings import Outcome, Seconds, SettingError, Settings, Text, check, check_fields

# The documented fields of a workflow, and their types.
WORKFLOW_FIELDS: dict[str, Any] = {"name": Text, "description": str | None, "status": str, "triggers": list}
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


class State(Settings):
    """The workflows and executions of a sandbox with these settings. Safe to use from many threads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Not renewed by `reset`: what others have recorded under an id must not fit another object.
        self._ids = random.Random(self.seed)  # noqa: S311  # ids, not secrets
        self._lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        """Return to the initial state: forget workflows, executions and plans."""
        with self._lock:
            self._plans: dict[str, Plan] = {}
            self._workflows: dict[str, Object] = {}
            self._runs: dict[str, _Run] = {}
            self._schedule: list[tuple[datetime, str]] = []
            self._events: list[Event] = []
            for workflow_id, name in self.workflows_at_start.items():
                self.add_workflow(name, id=workflow_id)

    @property
    def workflows(self) -> tuple[Object, ...]:
        """Copies of all workflows, oldest first, as Get Workflow returns them."""
        with self._lock:
            return tuple(copy.deepcopy(list(self._workflows.values())))

    @property
    def executions(self) -> tuple[Execution, ...]:
        """All executions as they are now, in the order of their starts, including those not yet in the history."""
        with self._lock:
            self._update()
            return tuple(run.execution for run in self._runs.values())

    @property
    def events(self) -> tuple[Event, ...]:
        """All changes so far, under the names of the webhook events."""
        return tuple(self.events_from(0))

    def events_from(self, start: int) -> list[Event]:
        """Return all events so far, except the first `start`."""
        with self._lock:
            self._update()
            return self._events[start:]

    def workflow(self, workflow_id: str) -> Object:
        """Return a copy of a workflow.

        :raises KeyError: no workflow has this id
        """
        with self._lock:
            return copy.deepcopy(self._workflows[workflow_id])

    def add_workflow(self, name: str, *, id: str | None = None, **fields: Json) -> str:  # noqa: A002  # the field's name
        """Create a workflow without a request and return its id.

        :raises SettingError: a field has the wrong type
        """
        return str(self.create_workflow({**fields, "name": name}, id)["id"])

    def create_workflow(self, fields: Object, workflow_id: str | None = None) -> Object:
        """Create a workflow.

        :param workflow_id: its id; None generates one
        :raises SettingError: a field has the wrong type
        """
        with self._lock:
            return self._store(workflow_id or self._new_id("wf"), fields, "workflow.created")

    def replace_workflow(self, workflow_id: str, fields: Object) -> Object:
        """Replace all fields of a workflow.

        :raises KeyError: no workflow has this id
        :raises SettingError: a field has the wrong type
        """
        with self._lock:
            self.workflow(workflow_id)
            return self._store(workflow_id, fields, "workflow.updated")

    def _new_id(self, prefix: str) -> str:
        return f"{prefix}_{self._ids.getrandbits(48):012x}"

    def _store(self, workflow_id: str, fields: Object, event: str) -> Object:
        check_workflow(fields)
        status = self.status_words.get("active", "active")
        self._workflows[workflow_id] = {"status": status, **copy.deepcopy(fields), "id": workflow_id}
        self._add_event(event, workflow_id)
        return self.workflow(workflow_id)

    def delete_workflow(self, workflow_id: str) -> None:
        """Delete a workflow; its executions stay in the history and keep running.

        :raises KeyError: no workflow has this id
        """
        with self._lock:
            del self._workflows[workflow_id]
            self._add_event("workflow.deleted", workflow_id)

    def plan(
        self,
        workflow_id: str,
        *,
        seconds: float | None = None,
        outcome: Outcome | None = None,
        error: str | None = None,
    ) -> None:
        """Set how future executions of a workflow behave; None uses the sandbox's settings.

        :param workflow_id: the workflow's id; it need not exist yet
        :param seconds: how long they take; `math.inf` means until `finish` is called
        :raises SettingError: a value is invalid
        """
        self._plans[workflow_id] = Plan(seconds, outcome, error)

    def start(self, workflow_id: str, payload: Object | None = None, plan: Plan | None = None) -> Execution:
        """Start an execution without a request, as another user of the same account would.

        :param plan: how it behaves; missing fields come from the workflow's plan
        :raises KeyError: no workflow has this id
        """
        with self._lock:
            self.workflow(workflow_id)
            plans = (plan, self._plans.get(workflow_id), Plan(self.execution_seconds, self.outcome))
            complete = reduce(Plan.with_defaults, filter(None, plans))
            now, id_ = self.clock.now(), self._new_id("exec")
            self._add_event("execution.started", workflow_id, id_)
            execution = Execution(id_, workflow_id, "running", now, None, None, payload)
            self._runs[id_] = _Run(execution, complete.outcome or "completed", complete.error)
            if complete.seconds is not None and complete.seconds < math.inf:
                heapq.heappush(self._schedule, (now + timedelta(seconds=complete.seconds), id_))
            self._update()
            return self._runs[id_].execution

    def finish(self, execution_id: str, *, outcome: Outcome | None = None, error: str | None = None) -> Execution:
        """Finish a running execution now.

        :param outcome: its final status; None uses its plan
        :raises KeyError: no execution has this id
        :raises SettingError: it has already finished, or the outcome is unknown
        """
        plan = Plan(outcome=outcome, error=error)
        with self._lock:
            self._update()
            run = self._runs[execution_id]
            if run.execution.finished_at is not None:
                expected = f"a running execution; this one is {run.execution.status}"
                raise SettingError("execution_id", execution_id, expected)
            run.outcome = plan.outcome or run.outcome
            run.error = error or run.error
            self._complete(run, self.clock.now())
            return run.execution

    def _add_event(self, name: str, workflow_id: str, execution_id: str | None = None) -> None:
        self._update()
        self._events.append(Event(name, self.clock.now(), workflow_id, execution_id))

    def _update(self) -> None:
        """Finish the executions whose time has come, in order."""
        now = self.clock.now()
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


def check_workflow(fields: Object) -> None:
    """Check the documented fields of a workflow.

    :raises SettingError: the name is missing or empty, or a field has the wrong type
    """
    for name, hint in WORKFLOW_FIELDS.items():
        if name in fields or name == "name":
            check(name, fields.get(name), hint)
    triggers: Any = fields.get("triggers", [])
    for trigger in triggers:
        check("triggers", trigger, str | dict)
