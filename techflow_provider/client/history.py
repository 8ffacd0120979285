"""Find an execution in the history and decide what that means for a wait; no I/O, shared by every kind of wait.

The reference has no call for one execution, so every wait reads `GET /executions` and looks up its execution there.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from techflow_provider.client.errors import ExecutionNotFoundError, InvalidParameterError
from techflow_provider.client.models import USUAL_WORDS, Execution, Workflow, status_word
from techflow_provider.client.parsing import Json, get_first, quote

log: logging.Logger = logging.getLogger(__name__)

DEFAULT_APPEAR_SECONDS = 120.0
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ExecutionSelector:
    """Names one execution: by its id, or as the first of a workflow that started at or after an instant.

    :param execution_id: its id
    :param workflow_id: its workflow's id, when its own isn't known
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
            expected = "a time with a time zone, beside workflow_id"
            raise InvalidParameterError("started_after", quote(self.started_after), expected)

    def __str__(self) -> str:
        if self.execution_id:
            return f"execution {self.execution_id}"
        return f"the first execution of workflow {self.workflow_id} started after {self.started_after}"


@dataclass(slots=True)
class HistoryFilter:
    """What some observers need from a poll, so that the rest of a long history isn't parsed.

    :param everything: whether every execution is needed
    :param wants_workflows: whether the list of workflows is needed too
    """

    everything: bool = False
    wants_workflows: bool = False
    _known_statuses: dict[str, str | None] = field(default_factory=dict, init=False)
    _workflow_ids: set[str] = field(default_factory=set, init=False)

    def add(self, selector: ExecutionSelector, known_status: str | None = None) -> None:
        """Add the execution of one wait.

        :param known_status: the status that the wait knows already; with this one, the execution isn't needed
        """
        if selector.execution_id:
            agreed = self._known_statuses.get(selector.execution_id, known_status) == known_status
            self._known_statuses[selector.execution_id] = known_status if agreed else None
        elif selector.workflow_id:
            self.add_workflow(selector.workflow_id)

    def add_workflow(self, workflow_id: str) -> None:
        """Add every execution of a workflow."""
        self._workflow_ids.add(workflow_id)

    @property
    def wants_executions(self) -> bool:
        """Whether any execution is needed."""
        return bool(self.everything or self._known_statuses or self._workflow_ids)

    def skips(self, item: Json) -> bool:
        """Whether an execution, as received, is certainly not needed; False where that isn't obvious."""
        if self.everything or not isinstance(item, dict):
            return False
        if self._workflow_ids:
            workflow_id = get_first(item, "workflow_id")
            if not isinstance(workflow_id, str) or workflow_id in self._workflow_ids:
                return False
        execution_id = get_first(item, "id", "execution_id")
        if not isinstance(execution_id, str):
            return False
        known_status = self._known_statuses.get(execution_id)
        if known_status is None:
            return execution_id not in self._known_statuses
        return get_first(item, "status", "state") == known_status


class History:
    """The execution history as one poll read it, or the part that was needed, indexed for many lookups.

    :param executions: what `GET /executions` listed, in any order
    :param workflows: what `GET /workflows` listed at the same time, where an observer needs it
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

    def find(self, selector: ExecutionSelector) -> Execution | None:
        """Return the selected execution, or None when it isn't listed."""
        if selector.execution_id:
            return self._by_id.get(selector.execution_id)
        started = self.started(selector.workflow_id or "", selector.started_after or _LONG_AGO)
        return min(started, key=_start, default=None)

    def started(self, workflow_id: str, since: datetime) -> list[Execution]:
        """Return the workflow's executions that started at or after an instant."""
        return [each for each in self._by_workflow.get(workflow_id, ()) if _start(each) >= since]


def _start(execution: Execution) -> datetime:
    return execution.started_at or _LONG_AGO


@dataclass(slots=True)
class ExecutionTracker:
    """What one wait knows about its execution from poll to poll.

    :param selector: the execution
    :param appear_seconds: how long an execution known by its id may be missing from the history; one that is
        known by its workflow alone may not have been started yet, and is waited for without this bound
    :param status: the last status seen, None until the execution is in the history
    """

    selector: ExecutionSelector
    appear_seconds: float = DEFAULT_APPEAR_SECONDS
    status: str | None = None
    _execution_id: str | None = field(default=None, repr=False)
    _first_poll: float | None = field(default=None, repr=False)

    @property
    def history_filter(self) -> HistoryFilter:
        """What this wait alone needs from a poll."""
        history_filter = HistoryFilter()
        history_filter.add(self.selector, self.status)
        return history_filter

    @property
    def last_seen(self) -> str:
        """What the polls have shown so far, as a clause for a message."""
        if self.status is not None:
            known = USUAL_WORDS.knows(self.status)
            unknown = "" if known else ", a word that is not known and is treated as still running"
            seen = "it" if self.selector.execution_id else f"execution {self._execution_id}"
            return f"{seen} was last seen with status {self.status!r}{unknown}"
        if self._first_poll is None:
            return "the history has not been read yet"
        return "it is not in the execution history"

    def update(self, history: History, now: float) -> Execution | None:
        """Return the execution when it has reached a final status, and None otherwise.

        :param history: may leave the execution out while its status is the known one
        :param now: seconds on a clock that does not jump
        :raises ExecutionNotFoundError: it has been missing from the history for too long
        """
        execution = history.find(self.selector)
        if execution is not None:
            self._record(execution)
            return execution if execution.ended else None
        if self.status is None:
            self._check_missing(now)
        return None

    def _record(self, execution: Execution) -> None:
        before = self._execution_id, self.status
        # There are few different words, and there may be many waits.
        self._execution_id, self.status = execution.id, sys.intern(execution.status or "")
        if not execution.has_known_status and (execution.id, execution.status) != before:
            log.warning("%s: %s", self.selector, self.last_seen)

    def _check_missing(self, now: float) -> None:
        if self._first_poll is None:
            self._first_poll = now
        missing_seconds = now - self._first_poll
        if self.selector.execution_id and missing_seconds >= self.appear_seconds:
            raise ExecutionNotFoundError(str(self.selector), missing_seconds)


def has_status(execution: Execution, statuses: Iterable[str]) -> bool:
    """Whether an execution has one of some statuses.

    :param statuses: status words, or the states `running`, `completed`, `failed`; in any case
    """
    words = {status_word(word) for word in statuses}
    return bool(words & {execution.state.value, status_word(execution.status or "")})


def select(executions: Iterable[Execution], workflow_id: str | None, status: str | None) -> list[Execution]:
    """Return the executions of a workflow and with a status (see `has_status`), each when given."""
    return [
        each
        for each in executions
        if (workflow_id is None or each.workflow_id == workflow_id) and (not status or has_status(each, (status,)))
    ]
