"""Find an execution in the history and decide what that means for a wait; no I/O, shared by every kind of wait.

The reference has no call for one execution, so every wait reads `GET /executions` and looks up its execution there.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TypeVar

from techflow_provider.client.errors import ExecutionNotFoundError, InvalidParameterError, TechFlowError
from techflow_provider.client.models import USUAL_WORDS, Execution, StatusWords, Workflow, status_word
from techflow_provider.client.parsing import Json, Names, add_usual_names, get_first, quote
from techflow_provider.client.text import get_logger
from techflow_provider.client.values import WORKFLOW_WORDS, Id, as_id, as_text, optional, suggestion

log: logging.Logger = get_logger(__name__)

DEFAULT_APPEAR_SECONDS = 120.0
_LONG_AGO, _FOREVER = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class ExecutionSelector:
    """Names one execution: by its id, or as a workflow's at an instant.

    :param execution_id: its id
    :param workflow_id: its workflow's id, when its own isn't known; beside its own, only the one of this workflow is
        meant, since ids may count per workflow
    :param started_after: with `workflow_id` alone, an aware datetime: the first execution that started then or later
    :param latest_active: whether the workflow's latest execution that was running at that instant comes first
    :raises InvalidParameterError: neither is given, or an instant without a time zone
    """

    execution_id: str | None = None
    workflow_id: str | None = None
    started_after: datetime | None = None
    latest_active: bool = False

    def __post_init__(self) -> None:
        for name in ("execution_id", "workflow_id"):
            object.__setattr__(self, name, optional(as_id)(name, getattr(self, name)))
        if not self.execution_id and not self.workflow_id:
            raise InvalidParameterError("execution_id", "nothing", "an execution_id, or a workflow_id")
        if not self.execution_id and (self.started_after is None or self.started_after.tzinfo is None):
            expected = "a time with a time zone, beside workflow_id"
            raise InvalidParameterError("started_after", quote(self.started_after), expected)

    def __str__(self) -> str:
        if self.execution_id:
            return f"execution {self.execution_id}"
        if self.latest_active:
            return f"the latest active execution of workflow {self.workflow_id}"
        return f"the first execution of workflow {self.workflow_id} started after {self.started_after}"


@dataclass(slots=True)
class HistoryFilter:
    """What some observers need from a poll, so that the rest of a long history isn't parsed.

    :param everything: whether every execution is needed
    :param wants_workflows: whether the list of workflows is needed too
    :param known_statuses: the executions of the waits by id, each with the status that all of its waits know already
        and with which it isn't needed
    :param workflow_ids: the workflows of which every execution is needed that started since a time; None needs all
    :param has_new: whether something was added that no poll has been read for
    """

    everything: bool = False
    wants_workflows: bool = False
    known_statuses: dict[str, str | None] = field(default_factory=dict)
    workflow_ids: dict[str, datetime | None] = field(default_factory=dict)
    has_new: bool = False

    def add(self, selector: ExecutionSelector, known_status: str | None = None) -> None:
        """Add the execution of one wait.

        :param known_status: the status that the wait knows already
        """
        if selector.execution_id:
            self.add_execution(selector.execution_id, known_status)
        elif selector.workflow_id:
            self.add_workflow(selector.workflow_id, None if selector.latest_active else selector.started_after)

    def add_execution(self, execution_id: str, known_status: str | None = None) -> None:
        """Add an execution by its id."""
        agreed = self.known_statuses.get(execution_id, known_status) == known_status
        self.known_statuses[execution_id] = known_status if agreed else None

    def add_workflow(self, workflow_id: str, since: datetime | None = None) -> None:
        """Add every execution of a workflow, or those that started since a time."""
        other = self.workflow_ids.get(workflow_id, since)
        self.workflow_ids[workflow_id] = min(other, since) if other and since else None

    def has_listed(self, listed: set[int]) -> bool:
        """Whether all executions that waits are for are among those that have been listed, given by their hashes."""
        return listed.issuperset(map(hash, self.known_statuses))

    def select(self, received: Json, names: Names = ()) -> tuple[bool, int]:
        """Return whether an execution, as received, may be needed, and its id's hash when a wait is for it, or 0."""
        row = add_usual_names(received, names) if isinstance(received, dict) else {}
        execution_id = get_first(row, "id", "execution_id")
        if not isinstance(execution_id, str):
            # A number is an id, too.
            return True, 0
        subject = hash(execution_id) if execution_id in self.known_statuses else 0
        known_status = self.known_statuses.get(execution_id)
        if subject and (known_status is None or get_first(row, "status", "state") != known_status):
            return True, subject
        workflow_id = get_first(row, "workflow_id") if self.workflow_ids else ""
        return self.everything or not isinstance(workflow_id, str) or workflow_id in self.workflow_ids, subject


@dataclass(eq=False)
class History:
    """The execution history as one poll read it, or the part that was needed, indexed for many lookups.

    :param executions: what `GET /executions` listed, in any order; of several rows for one execution, the one with a
        final status counts, otherwise the latest
    :param workflows: what `GET /workflows` listed at the same time, where an observer needs it
    :param at: the server's clock when it began to respond
    :param began: when the poll began, on the reader's clock
    :param unlisted: those of the waits' executions that the whole history doesn't list
    :param failure: why a part is missing that will be read later
    :param unreadable: how many rows can't be read and are left out; any may be one that seems to be missing
    :param reason: what identifies the first of those, and what is wrong with it
    :param next_seconds: when the result of the next poll is expected, if another process polls
    """

    executions: InitVar[Iterable[Execution]]
    workflows: tuple[Workflow, ...] | None = None
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    began: float = 0.0
    unlisted: frozenset[str] = frozenset()
    failure: TechFlowError | None = None
    unreadable: int = 0
    reason: str | None = None
    next_seconds: float | None = None

    def __post_init__(self, executions: Iterable[Execution]) -> None:
        # With all that have the same id, which may be unique within a workflow only.
        self.rows: tuple[Execution, ...] = tuple(executions)
        self._by_id: dict[str, Execution] = {}
        self._by_key: dict[tuple[str | None, str], Execution] = {}
        for execution in self.rows:
            _keep_latest(self._by_id, execution.id, execution)
            _keep_latest(self._by_key, (execution.workflow_id, execution.id), execution)

    @cached_property
    def _by_workflow(self) -> dict[str | None, list[Execution]]:
        found: dict[str | None, list[Execution]] = {}
        for execution in self:
            found.setdefault(execution.workflow_id, []).append(execution)
        return found

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Execution]:
        return iter(self._by_key.values())

    @property
    def repeats_ids(self) -> bool:
        """Whether executions of several workflows have the same id."""
        return len(self._by_key) > len(self._by_id)

    def get(self, execution_id: str, workflow_id: str | None = None) -> Execution | None:
        """Return an execution by its id, and its workflow where that is known, or None when it isn't listed."""
        if workflow_id is None:
            return self._by_id.get(execution_id)
        return self._by_key.get((workflow_id, execution_id)) or self._by_key.get((None, execution_id))

    def find(self, selector: ExecutionSelector) -> Execution | None:
        """Return the selected execution, or None when it isn't listed."""
        if selector.execution_id:
            return self.get(selector.execution_id, selector.workflow_id)
        workflow_id, instant = selector.workflow_id or "", selector.started_after or _LONG_AGO
        running = self.latest_running(workflow_id, instant) if selector.latest_active else None
        if running is not None:
            return running
        started = self.started(workflow_id, instant)
        return min(started, key=_start, default=None)

    def latest_running(self, workflow_id: str, at: datetime = _FOREVER) -> Execution | None:
        """Return the latest of the workflow's executions that were running at an instant, or are now; None without."""
        begun = [each for each in self._by_workflow.get(workflow_id, ()) if _start(each) < at]
        running = (each for each in begun if not each.ended or (each.finished_at or _LONG_AGO) > at)
        return max(running, key=_start, default=None)

    def started(self, workflow_id: str, since: datetime) -> list[Execution]:
        """Return the workflow's executions that started at or after an instant."""
        listed = self._by_workflow.get(workflow_id, ())
        return [each for each in listed if each.started_at is not None and each.started_at >= since]

    def possible(self, workflow_id: str, since: datetime | None) -> list[Execution]:
        """Return the executions that may be the workflow's and may have started since an instant."""
        listed = [*self._by_workflow.get(workflow_id, ()), *self._by_workflow.get(None, ())]
        return [each for each in listed if since is None or each.started_at is None or each.started_at >= since]


def _keep_latest(found: dict[K, Execution], key: K, execution: Execution) -> None:
    other = found.get(key)
    if other is None or _recency(execution) > _recency(other):
        found[key] = execution


def _start(execution: Execution) -> datetime:
    return execution.started_at or _LONG_AGO


def _recency(execution: Execution) -> tuple[bool, datetime]:
    return execution.ended, execution.finished_at or _start(execution)


@dataclass(slots=True)
class ExecutionTracker:
    """What one wait knows about its execution from poll to poll.

    :param selector: the execution
    :param appear_seconds: how long an execution may be missing from the history; one that is known by its workflow
        alone may not have been started yet, and is waited for without this bound until it is listed
    :param status: the last status seen, None until the execution is in the history
    :param words: what status words mean to this wait; None takes each execution's own
    """

    selector: ExecutionSelector
    appear_seconds: float = DEFAULT_APPEAR_SECONDS
    status: str | None = None
    words: StatusWords | None = None
    _execution_id: str | None = field(default=None, repr=False)
    _started_at: datetime | None = field(default=None, repr=False)
    _missing_since: float | None = field(default=None, repr=False)
    _is_polled: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        self._execution_id = self.selector.execution_id or None

    @property
    def history_filter(self) -> HistoryFilter:
        """What this wait alone needs from a poll."""
        history_filter = HistoryFilter()
        self.add_to(history_filter)
        return history_filter

    def add_to(self, history_filter: HistoryFilter) -> None:
        """Add what this wait needs from a poll."""
        if not self.selector.execution_id:
            history_filter.add(self.selector)
        if self._execution_id is not None:
            history_filter.add_execution(self._execution_id, self.known_status)

    @property
    def known_status(self) -> str | None:
        """The status with which the execution isn't needed."""
        return self.status if self._missing_since is None else None

    @property
    def last_seen(self) -> str:
        """What the polls have shown so far, as a clause for a message."""
        if self.status is not None:
            known = (self.words or USUAL_WORDS).knows(self.status)
            unknown = "" if known else ", a word that is not known and is treated as still running"
            unlisted = "" if self._missing_since is None else ", and is no longer listed"
            seen = "it" if self.selector.execution_id else f"execution {self._execution_id}"
            return f"{seen} was last seen with status {self.status!r}{unknown}{unlisted}"
        return "it is not in the execution history" if self._is_polled else "the history has not been read yet"

    def update(self, history: History, now: float) -> Execution | None:
        """Return the execution when it has reached a final status, and None otherwise.

        :param history: may leave the execution out while its status is the known one
        :param now: seconds on a clock that does not jump
        :raises ExecutionNotFoundError: it has been missing from the history for too long
        """
        self._is_polled = True
        execution = self._find(history)
        if execution is not None:
            self._missing_since = None
            self._record(execution)
            return execution if execution.ended else None
        self._check_missing(history, now)
        return None

    def _find(self, history: History) -> Execution | None:
        execution = history.find(self.selector)
        known = history.get(self._execution_id or "", self.selector.workflow_id)
        # The history may leave out what hasn't changed, so that another execution seems to be the workflow's first.
        is_later = self._started_at is not None and execution is not None and _start(execution) >= self._started_at
        if execution is None or is_later or (self.selector.latest_active and self._execution_id):
            execution = known
        return execution if execution is None or self.words is None else execution.with_words(self.words)

    def _record(self, execution: Execution) -> None:
        before = self._execution_id, self.status
        # There may be many waits, but there are few different words, and a known id isn't kept twice.
        self.status = sys.intern(execution.status or "")
        if not self.selector.execution_id:
            self._execution_id, self._started_at = execution.id, execution.started_at
        if not execution.has_known_status and (execution.id, execution.status) != before:
            log.warning("%s: %s", self.selector, self.last_seen)

    def _check_missing(self, history: History, now: float) -> None:
        if self._missing_since is None and self._execution_id in history.unlisted:
            self._missing_since = now
        if self._missing_since is not None and now - self._missing_since >= self.appear_seconds:
            seen = "" if self.status is None else f" ({self.last_seen})"
            raise ExecutionNotFoundError(f"{self.selector}{seen}", now - self._missing_since)


def has_status(execution: Execution, statuses: Iterable[str]) -> bool:
    """Whether an execution has one of some statuses.

    :param statuses: status words, or the states `running`, `completed`, `failed`; in any case
    """
    words = {status_word(word) for word in statuses}
    return bool(words & {execution.state.value, status_word(execution.status or "")})


def newest(executions: Iterable[Execution], since: datetime | None, limit: int | None) -> list[Execution]:
    """Return the executions that started at or after an instant, so many at most, the newest first."""
    found = [each for each in executions if _start(each) >= (since or _LONG_AGO)]
    return sorted(found, key=_start, reverse=True)[:limit]


def select(
    executions: Iterable[Execution], workflow_id: Id | None, status: str | None, words: StatusWords = USUAL_WORDS
) -> list[Execution]:
    """Return the executions of a workflow and with a status (see `has_status`), each when given.

    :param words: the status words that are known
    :raises InvalidParameterError: the status is neither known nor listed, so that it is probably misspelt
    """
    listed, workflow = list(executions), optional(as_id)("workflow_id", workflow_id)
    found = [each for each in listed if not status or has_status(each, (status,))]
    if status and not found:
        _explain_none(status, listed, words.all)
    return [each for each in found if workflow in (None, each.workflow_id)]


def _explain_none(status: str, listed: Sequence[Execution | Workflow], known: Iterable[str]) -> None:
    """Log which statuses there are where none is the wanted one.

    :raises InvalidParameterError: the status is neither known nor listed, so that it is probably misspelt
    """
    seen = sorted({each.status for each in listed if each.status})
    if status_word(status) not in {*known, *map(status_word, seen)}:
        expected = f"a usual status, or one in the list ({', '.join(seen[:10]) or 'which is empty'})"
        raise InvalidParameterError("status", quote(status) + suggestion(status, {*seen, *known}), expected)
    log.info("None of %d has the status %r; their statuses are: %s", len(listed), status, ", ".join(seen) or "none")


def select_workflows(workflows: Iterable[Workflow], status: str | None, name: Id | None) -> list[Workflow]:
    """Return the workflows with a status and a name, each when given.

    :raises InvalidParameterError: the status is neither known nor listed, so that it is probably misspelt
    """
    listed = list(workflows)
    found = [each for each in listed if not status or status_word(each.status or "") == status_word(status)]
    if status and not found:
        _explain_none(status, listed, WORKFLOW_WORDS)
    return [each for each in found if name is None or each.name == as_text("name", name)]
