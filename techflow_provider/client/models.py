"""Workflows and executions as frozen values, with the one tolerant reader of each.

Everything about the shape of an execution is an assumption, since the reference describes none of it; all these
assumptions are in this module. Unknown fields are kept in `raw` and appear in `to_dict()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Generic, TypeVar

from techflow_provider.client.parsing import (
    OTHER_NAMES,
    DecodeError,
    Json,
    Names,
    add_usual_names,
    check_depth,
    get_first,
    items,
    quote,
    read_id,
    read_object,
    read_text,
    read_time,
    unwrap,
)
from techflow_provider.client.text import storable

T = TypeVar("T")

EVENT_PREFIX = "execution."
COMPLETED_WORDS = frozenset({"completed", "complete", "succeeded", "success", "successful"})
FAILED_WORDS = frozenset(
    {"failed", "failure", "error", "errored", "cancelled", "canceled", "timed_out", "timeout", "aborted"}
)
STARTING_WORDS = frozenset({"started", "starting", "created", "pending", "queued", "scheduled", "waiting"})
RUNNING_WORDS = STARTING_WORDS | {"running", "in_progress", "processing", "active"}
# The accepted names of each field of an execution, the assumed one first.
EXECUTION_NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id", "execution_id"),
    "workflow_id": ("workflow_id", "workflow.id", "workflow.workflow_id", "workflow"),
    "status": ("status", "state"),
    "started_at": ("started_at", "start_time", "created_at"),
    "finished_at": ("finished_at", "ended_at", "completed_at", "end_time"),
    "error": ("error", "error_message", "failure_reason"),
    "created_at": ("created_at", "queued_at", "requested_at", "submitted_at"),
    "payload": ("payload", "input", "inputs", "params", "data"),
}
WORKFLOW_NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id", "workflow_id"),
    "name": ("name",),
    "status": ("status", "state"),
    "description": ("description",),
}
FIELDS = {"execution": EXECUTION_NAMES, "workflow": WORKFLOW_NAMES}


class ExecutionState(StrEnum):
    """The state of an execution: the two final ones that the reference's event names imply, and everything before."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


def status_word(status: str) -> str:
    """Return a status in one spelling: `execution.Timed Out` becomes `timed_out`."""
    word = status.strip().casefold().replace("-", "_").replace(" ", "_")
    return word.removeprefix(EVENT_PREFIX)


@dataclass(frozen=True, slots=True)
class StatusWords:
    """What the status words of one TechFlow mean: the usual ones, and further ones that take precedence.

    :param completed: further words for a completed execution, in the spelling of `status_word`
    :param failed: further words for a failed one
    """

    completed: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()

    @classmethod
    def meaning(cls, status: str | None, state: ExecutionState) -> StatusWords:
        """Return the words of a TechFlow in which a status stands for a state."""
        word = frozenset({status_word(status or "")} - {""})
        return cls(
            completed=word if state is ExecutionState.COMPLETED else frozenset(),
            failed=word if state is ExecutionState.FAILED else frozenset(),
        )

    def state(self, status: str | None) -> ExecutionState:
        """Return the state that a status word stands for; an unknown word means still running."""
        word = status_word(status or "")
        if word in self.completed or (word in COMPLETED_WORDS and word not in self.failed):
            return ExecutionState.COMPLETED
        ended = word in self.failed or word in FAILED_WORDS
        return ExecutionState.FAILED if ended else ExecutionState.RUNNING

    @property
    def all(self) -> frozenset[str]:
        """Every word whose meaning is known."""
        return self.completed | self.failed | COMPLETED_WORDS | FAILED_WORDS | RUNNING_WORDS

    def knows(self, status: str) -> bool:
        """Whether the meaning of a status word is known."""
        return self.state(status) is not ExecutionState.RUNNING or status_word(status) in RUNNING_WORDS


USUAL_WORDS = StatusWords()


@dataclass(frozen=True, slots=True)
class Workflow:
    """A workflow, as `GET /workflows` shows it.

    :param id: its id, such as `wf_123`
    :param name: its name
    :param status: its status word, such as `active`
    :param description: its description
    :param raw: all that the server sent
    """

    id: str
    name: str | None
    status: str | None
    description: str | None
    raw: Mapping[str, Json] = field(repr=False)

    @classmethod
    def read(cls, value: Json, names: Names = ()) -> Workflow:
        """Read a workflow, bare or under `workflow` or `data`.

        :param names: this TechFlow's own names of its fields
        :raises DecodeError: it has no id, or a field has an implausible type
        """
        sent = unwrap(value, "a workflow object", "workflow", dict(names).get("id", "id"), *WORKFLOW_NAMES["id"])
        source = add_usual_names(sent, names)
        return cls(
            id=read_id(source, "a workflow", *WORKFLOW_NAMES["id"]),
            name=read_text(source, "name"),
            status=read_text(source, *WORKFLOW_NAMES["status"]),
            description=read_text(source, "description"),
            raw=sent,
        )

    def to_dict(self) -> dict[str, Json]:
        """Return the workflow as JSON: what the server sent, with `id`, `name`, `status`, `description` normalised."""
        return storable(self.fields)

    @property
    def fields(self) -> dict[str, Json]:
        """The same, exactly as the server sent it."""
        return {**self.raw, **self.known}

    @property
    def known(self) -> dict[str, Json]:
        """The normalised fields alone."""
        return {"id": self.id, "name": self.name, "status": self.status, "description": self.description}


@dataclass(frozen=True, slots=True)
class Execution:
    """One run of a workflow, as `GET /executions` shows it.

    :param id: its id
    :param workflow_id: its workflow's id, when the server sends it
    :param status: its status as the server wrote it; None when the response to a start has none
    :param started_at: when it started, in UTC
    :param finished_at: when it ended, in UTC
    :param error: why it failed, as the server wrote it
    :param raw: all that the server sent, and the usual names of fields that have others there
    :param words: what its status words mean
    """

    id: str
    workflow_id: str | None
    status: str | None
    started_at: datetime | None
    finished_at: datetime | None
    error: str | None
    raw: Mapping[str, Json] = field(repr=False)
    words: StatusWords = field(default=USUAL_WORDS, repr=False, compare=False)

    @classmethod
    def read(cls, value: Json, words: StatusWords = USUAL_WORDS, names: Names = ()) -> Execution:
        """Read an execution of the history.

        :param words: what the status words mean
        :param names: this TechFlow's own names of its fields
        :raises DecodeError: it has no id or no status, or a field has an implausible type
        """
        source = add_usual_names(read_object(value, "an execution object"), names)
        execution = cls._read_fields(source, words, *EXECUTION_NAMES["id"])
        if execution.status is None:
            raise DecodeError(f"an execution with status {OTHER_NAMES}", quote(value))
        return execution

    @classmethod
    def read_started(
        cls, value: Json, workflow_id: str, words: StatusWords = USUAL_WORDS, names: Names = ()
    ) -> Execution:
        """Read the response to a start: an execution, bare or under `execution` or `data`, with or without a status.

        :param words: what the status words mean
        :param names: this TechFlow's own names of its fields
        :raises DecodeError: it has no id, it repeats the workflow's id, or a field has an implausible type
        """
        # `execution_id` before `id`, which could be the workflow's.
        id_names = (dict(names).get("id", "execution_id"), "execution_id", "id")
        source = unwrap(value, "an execution object", "execution", *id_names)
        started = cls._read_fields(add_usual_names(source, names), words, *id_names)
        if started.id == workflow_id:
            raise DecodeError("the id of an execution, not the workflow's own", quote(value))
        return started

    @classmethod
    def _read_fields(cls, source: dict[str, Json], words: StatusWords, *id_names: str) -> Execution:
        workflow = EXECUTION_NAMES["workflow_id"]
        return cls(
            id=read_id(source, "an execution", *id_names),
            workflow_id=None if get_first(source, *workflow) is None else read_id(source, "an execution", *workflow),
            status=read_text(source, *EXECUTION_NAMES["status"]),
            started_at=read_time(source, *EXECUTION_NAMES["started_at"]),
            finished_at=read_time(source, *EXECUTION_NAMES["finished_at"]),
            error=_read_error(source),
            raw=source,
            words=words,
        )

    @property
    def state(self) -> ExecutionState:
        """The state that its status word stands for."""
        return self.words.state(self.status)

    def with_words(self, words: StatusWords) -> Execution:
        """Return the execution with other meanings of its status words."""
        return self if words == self.words else replace(self, words=words)

    @property
    def ended(self) -> bool:
        """Whether the execution has reached a final status."""
        return self.state is not ExecutionState.RUNNING

    @property
    def has_known_status(self) -> bool:
        """Whether the meaning of the status word is known; any other counts as still running."""
        return self.status is None or self.words.knows(self.status)

    @property
    def further(self) -> dict[str, Json]:
        """What the server sent beside the known fields, of which the payload may be secret."""
        known = {name for names in EXECUTION_NAMES.values() for name in names}
        return {name: value for name, value in self.raw.items() if name not in known and value is not None}

    def to_dict(self) -> dict[str, Json]:
        """Return the execution as JSON: what the server sent, with known fields normalised and times in ISO 8601."""
        known: dict[str, Json] = {
            "id": self.id,
            "workflow_id": self.workflow_id,
            "status": self.status,
            "started_at": self.started_at.isoformat() if self.started_at else None,
            "finished_at": self.finished_at.isoformat() if self.finished_at else None,
            "error": self.error,
        }
        return storable({**self.raw, **known})


def _read_error(source: Mapping[str, Json]) -> str | None:
    error = get_first(source, *EXECUTION_NAMES["error"])
    if isinstance(error, dict):
        error = get_first(error, "message", "detail", "reason") or quote(error)
    return error if error is None or isinstance(error, str) else quote(error)


# All that reading a row can raise; a defect in it must not hide the other rows.
ROW_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
LONGEST_IDENTITY = 100


@dataclass(frozen=True, slots=True)
class Rows(Generic[T]):
    """The rows of a list; those that can't be read are counted instead.

    :param items: the others
    :param unreadable: how many can't be read
    :param reason: what identifies the first of those, and what is wrong with it; None when there is none
    """

    items: tuple[T, ...]
    unreadable: int
    reason: str | None

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


def read_rows(rows: Iterable[Json], read: Callable[[Json], T], unneeded: int = 0) -> Rows[T]:
    """Read the rows of a list, however many of them can't be read.

    :param unneeded: how many further rows the list has
    :raises DecodeError: it has rows, and none of them can be read
    """
    found: list[T] = []
    unreadable, first, reason = 0, None, None
    for row in rows:
        try:
            found.append(read(check_depth(row)))
        except ROW_ERRORS as error:
            unreadable += 1
            if first is None:
                first, reason = error, f"{_identity(row)}: {_problem(error)}"
    if first is not None and not found and not unneeded:
        raise first if isinstance(first, DecodeError) else DecodeError("readable rows", reason or "")
    return Rows(tuple(found), unreadable, reason)


def _identity(row: Json) -> str:
    if not isinstance(row, dict):
        return f"the row that is {quote(row).partition(':')[0]}"
    row_id = get_first(row, "id", "execution_id", "workflow_id")
    what = f"id {row_id!r}" if isinstance(row_id, int | str) else f"fields {', '.join(row)!r}"
    return f"the row with the {what}" if len(what) <= LONGEST_IDENTITY else "a row with long fields"


def _problem(error: Exception) -> str:
    # The value itself may be a secret, of which a quote could show a part.
    if isinstance(error, DecodeError):
        return f"expected {error.expected}, got {error.received.partition(':')[0]}"
    return type(error).__name__


def read_workflows(value: Json, names: Names = (), unneeded: int = 0) -> Rows[Workflow]:
    """Read a list of workflows: `{"workflows": [...]}`, or a list under another usual name, or a bare one.

    :param names: this TechFlow's own names of their fields
    :param unneeded: how many further rows the list had
    :raises DecodeError: there is no list, or it has rows and none of them is a workflow
    """
    rows = items(value, "a list of workflows", "workflows")
    return read_rows(rows, lambda row: Workflow.read(row, names), unneeded)


def read_executions(
    value: Json, words: StatusWords = USUAL_WORDS, names: Names = (), unneeded: int = 0
) -> Rows[Execution]:
    """Read the execution history: `{"executions": [...]}`, or a list under another usual name, or a bare one.

    :param words: what the status words mean
    :param names: this TechFlow's own names of their fields
    :param unneeded: how many further rows the list had
    :raises DecodeError: there is no list, or it has rows and none of them is an execution
    """
    rows = items(value, "a list of executions", "executions")
    return read_rows(rows, lambda row: Execution.read(row, words, names), unneeded)
