"""Find an execution in the history and decide what it means for a wait; no I/O, shared by every kind of wait.

The reference has no call for one execution, so all waiting is reading `GET /executions` and looking it up.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from techflow_provider.client.errors import ExecutionNotFoundError, InvalidParameterError
from techflow_provider.client.models import USUAL_WORDS, Execution, Workflow, status_word
from techflow_provider.client.parsing import Json, find, quote

log = logging.getLogger(__name__)

DEFAULT_APPEAR_SECONDS = 120.0
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ExecutionSelector:
    """The execution that is meant: one by its id, or the first of a workflow that started at or after an instant.

    :param execution_id: its id
    :param workflow_id: its workflow's id, when the execution is not known by its own
    :param started_after: with `workflow_id`, an aware datetime
    :raises InvalidParameterError: neither or both are given, or an instant without a time zone
    """

    execution_id: str | None = None
    workflow_id: str | None = None
    started_after: datetime | None = None

    def __post_init__(self) -> None:
        if not self.execution_id and not self.workflow_id:
            raise InvalidParameterError("execution_id", "nothing", "an execution_id, or a workflow_id")
        if self.execution_id and self.workflow_id:
            received = f"{self.execution_id!r} and workflow_id={self.workflow_id!r}"
            raise InvalidParameterError("execution_id", received, "one of the two")
        if self.workflow_id and (self.started_after is None or self.started_after.tzinfo is None):
            raise InvalidParameterError(
                "started_after", quote(self.started_after), "a time with a time zone, beside workflow_id"
            )

    def __str__(self) -> str:
        if self.execution_id:
            return f"execution {self.execution_id}"
        return f"the first execution of workflow {self.workflow_id} started after {self.started_after}"


class HistoryFilter:
    """What some observers want to know of the history, so that the rest of a long one need not be read.

    :param everything: whether every execution is of interest, whatever is added
    """

    def __init__(self, *, everything: bool = False) -> None:
        self.wants_workflows = False
        self._everything = everything
        self._told: dict[str, str | None] = {}
        self._workflows: set[str] = set()

    def add(self, target: ExecutionSelector, told: str | None = None) -> None:
        """Add what one wait is about.

        :param told: the status that the wait knows already, and does not want to hear again
        """
        if target.execution_id:
            same = self._told.get(target.execution_id, told) == told
            self._told[target.execution_id] = told if same else None
        elif target.workflow_id:
            self.add_workflow(target.workflow_id)

    def add_workflow(self, workflow_id: str) -> None:
        """Add every execution of a workflow."""
        self._workflows.add(workflow_id)

    def add_everything(self) -> None:
        """Add every execution."""
        self._everything = True

    def add_list_of_workflows(self) -> None:
        """Add what the history doesn't tell: the workflows."""
        self.wants_workflows = True

    @property
    def wants_history(self) -> bool:
        """Whether anything of the history itself is of interest."""
        return bool(self._everything or self._told or self._workflows)

    def skips(self, item: Json) -> bool:
        """Whether an execution, as it came, is surely of no interest; what can't be told at a glance is not skipped."""
        if self._everything or not isinstance(item, dict):
            return False
        if self._workflows:
            workflow_id = find(item, "workflow_id")
            if not isinstance(workflow_id, str) or workflow_id in self._workflows:
                return False
        execution_id = find(item, "id", "execution_id")
        if not isinstance(execution_id, str):
            return False
        told = self._told.get(execution_id)
        if told is None:
            return execution_id not in self._told
        return find(item, "status", "state") == told


class History:
    """The execution history of one look, or what was of interest in it, indexed for many look-ups.

    :param executions: what `GET /executions` listed, in any order
    :param workflows: what `GET /workflows` listed at the same time, where somebody wanted it
    """

    def __init__(self, executions: Iterable[Execution], workflows: tuple[Workflow, ...] | None = None) -> None:
        self.workflows = workflows
        self._by_id: dict[str, Execution] = {}
        self._by_workflow: dict[str, list[Execution]] = {}
        for execution in executions:
            self._by_id[execution.id] = execution
            if execution.workflow_id is not None and execution.started_at is not None:
                self._by_workflow.setdefault(execution.workflow_id, []).append(execution)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Execution]:
        return iter(self._by_id.values())

    def find(self, target: ExecutionSelector) -> Execution | None:
        """Return the execution that is meant, or None when it is not listed."""
        if target.execution_id:
            return self._by_id.get(target.execution_id)
        started = self.started(target.workflow_id or "", target.started_after or _LONG_AGO)
        return min(started, key=_start, default=None)

    def started(self, workflow_id: str, since: datetime) -> list[Execution]:
        """Return the workflow's executions that started at or after an instant."""
        return [each for each in self._by_workflow.get(workflow_id, ()) if _start(each) >= since]


def _start(execution: Execution) -> datetime:
    return execution.started_at or _LONG_AGO


@dataclass(slots=True)
class ExecutionTracker:
    """What one wait knows about its execution from look to look.

    :param target: the execution that is waited for
    :param appear_seconds: how long an execution known by its id may be missing from the history; an execution that
        is known by its workflow alone may not have been started yet, and is waited for without this bound
    :param status: what the history showed last, None until the execution is in it
    """

    target: ExecutionSelector
    appear_seconds: float = DEFAULT_APPEAR_SECONDS
    status: str | None = None
    _execution_id: str | None = field(default=None, repr=False)
    _first_look: float | None = field(default=None, repr=False)

    @property
    def history_filter(self) -> HistoryFilter:
        """What this wait alone wants to know of the history."""
        history_filter = HistoryFilter()
        history_filter.add(self.target, self.status)
        return history_filter

    @property
    def last_seen(self) -> str:
        """What the looks have shown so far, in words."""
        if self.status is not None:
            unknown = (
                "" if USUAL_WORDS.knows(self.status) else ", a word that is not known and is taken as still running"
            )
            seen = "it" if self.target.execution_id else f"execution {self._execution_id}"
            return f"{seen} was last seen with status {self.status!r}{unknown}"
        if self._first_look is None:
            return "the history has not been read yet"
        return "it is not in the execution history"

    def update(self, history: History, now: float) -> Execution | None:
        """Return the execution when it has ended, and None while there is more to wait for.

        :param history: may leave out the execution when its status is the one that was told already
        :param now: seconds on a clock that does not jump
        :raises ExecutionNotFoundError: it has been missing from the history for too long
        """
        execution = history.find(self.target)
        if execution is None:
            if self.status is None:
                self._miss(now)
            return None
        self._note(execution)
        return execution if execution.ended else None

    def _note(self, execution: Execution) -> None:
        before = self._execution_id, self.status
        # The words are few and the waits may be many.
        self._execution_id, self.status = execution.id, sys.intern(execution.status or "")
        if not execution.has_known_status and (execution.id, execution.status) != before:
            log.warning("%s: %s", self.target, self.last_seen)

    def _miss(self, now: float) -> None:
        if self._first_look is None:
            self._first_look = now
        missing = now - self._first_look
        if self.target.execution_id and missing >= self.appear_seconds:
            raise ExecutionNotFoundError(str(self.target), missing)


def select(executions: Iterable[Execution], workflow_id: str | None, status: str | None) -> list[Execution]:
    """Return the executions of a workflow and with a status, each when given.

    :param status: a status word, or one of the states `running`, `completed`, `failed`; in any case
    """
    word = status_word(status) if status else None
    return [
        each
        for each in executions
        if (workflow_id is None or each.workflow_id == workflow_id)
        and (word is None or word in (each.state, status_word(each.status or "")))
    ]
