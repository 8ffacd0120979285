"""A start as values: who submits it, what it wants when something is lost, and what came of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Protocol, TypeVar
from uuid import uuid4

from techflow_provider.client.flow import FlowContext
from techflow_provider.client.history import DEFAULT_APPEAR_SECONDS, History
from techflow_provider.client.models import Execution
from techflow_provider.client.parsing import Json
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.records import AttemptRecord, payload_digest

T = TypeVar("T")

OnAmbiguous = Literal["adopt", "fail"]
OnShared = Literal["fail", "join"]


class Origin(StrEnum):
    """How a task got its execution."""

    STARTED = "started"
    ADOPTED = "adopted after a lost answer"
    REATTACHED = "re-attached"
    JOINED = "joined"


@dataclass(frozen=True, slots=True)
class SubmissionPolicy:
    """What a submitter wants when something is lost.

    :param on_ambiguous: what to do when it is unknown whether a request started an execution: `adopt` it from the
        history, and send the request again when it isn't there; or `fail`
    :param reattach: whether a later attempt continues with the execution of an earlier one
    :param wait_for_completion: whether the task lasts until the execution is over, so that one that failed is of no use
    :param on_shared: what to do when the response names an execution that the response to another start has named: the
        task can `join` it, or `fail`
    :param history_lag_seconds: how long a started execution may be missing from the history (assumption)
    :param defers_search: whether the history is searched elsewhere: `LostStartError` says what for
    :param reuse_running: whether an execution that is running already will do, whatever has started it
    :param accepted_statuses: the final statuses of what was waited for that are of use
    """

    on_ambiguous: OnAmbiguous = "adopt"
    reattach: bool = True
    wait_for_completion: bool = False
    history_lag_seconds: float = DEFAULT_APPEAR_SECONDS
    on_shared: OnShared = "fail"
    defers_search: bool = False
    reuse_running: bool = False
    accepted_statuses: tuple[str, ...] = ("completed",)


@dataclass(frozen=True, slots=True)
class Submitter:
    """The starter of an execution.

    :param name: the identity, the same in all attempts of a task
    :param generation: names the attempts among which one execution is enough; clearing a finished task begins another.
        There, an execution that is still running is joined if its task was waiting for it, and one that is over is not
    :param is_retry: whether an earlier attempt may have been made
    :param clears: how often tasks of the DAG run have been cleared, where Airflow says so
    :param began: when the earlier attempts can have begun at the soonest: shared state that is younger may have lost
        their record; None when it is certainly older
    :param attempt_id: names this attempt
    """

    name: str
    generation: str = ""
    is_retry: bool = True
    clears: int = 0
    began: datetime | None = None
    attempt_id: str = field(default_factory=lambda: uuid4().hex)


class SharedPolls(Protocol):
    """What the searches of a process share."""

    async def poll(self, context: FlowContext, since: float) -> History:
        """Return the whole history as a poll showed it that began at some time or later, on the context's clock."""

    async def once(self, history: History, key: Hashable, read: Callable[[Any], Awaitable[T]]) -> T:
        """Return what one search has read after a poll.

        :param key: what it depends on beside the history
        :param read: reads it, given what was read after another poll, if anything was
        """


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a submitter to get an execution.

    :param context: what its flows run with
    :param submitter: who makes it
    :param attempts: the records
    :param policy: what the submitter wants
    :param workflow_id: the workflow
    :param payload: what is sent as JSON, nothing when it is None
    :param polls: what searches share; without it, one polls for itself alone
    :param on_known: called as soon as the execution is known, before that is recorded
    """

    context: FlowContext
    submitter: Submitter
    attempts: AttemptStore
    policy: SubmissionPolicy
    workflow_id: str
    payload: Mapping[str, Json] | None = None
    polls: SharedPolls | None = None
    on_known: Callable[[Execution], None] = lambda _: None

    @property
    def effect_seconds(self) -> float:
        """How long after a request was sent it may still bring an execution into the history."""
        return self.context.settings.timeout_seconds + self.policy.history_lag_seconds

    def new_record(self, sent_at: datetime, response_seconds: float, **more: Any) -> AttemptRecord:
        """Return the record of another request."""
        submitter = self.submitter
        return AttemptRecord(
            self.workflow_id,
            f"{submitter.name}#{uuid4().hex[:12]}",
            submitter.generation,
            submitter.attempt_id,
            sent_at,
            response_seconds,
            payload_digest(self.payload),
            self.attempts.sequence + 1,
            submitter.clears,
            **more,
        )

    def is_cleared_since(self, record: AttemptRecord) -> bool:
        """Whether the task was cleared after a record was written."""
        return record.generation != self.submitter.generation


@dataclass(frozen=True, slots=True)
class Submission:
    """A task's execution.

    :param execution: the execution as it was last read; of one that only a record names, all but the id is unknown
    :param origin: how the task got it
    :param reason: the evidence
    :param times: the instants that it rests on, by name, in ISO 8601
    """

    execution: Execution
    origin: Origin
    reason: str
    times: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return what the log and the XCom show."""
        at = self.execution.started_at
        return {
            "decision": self.origin.value,
            "execution_id": self.execution.id,
            "workflow_id": self.execution.workflow_id,
            "facts": self.reason,
            "started_at": at.isoformat() if at else None,
            **self.times,
        }

    def __str__(self) -> str:
        of = f" of workflow {self.execution.workflow_id}" if self.execution.workflow_id else ""
        return f"Execution {self.execution.id}{of} was {self.origin.value}: {self.reason}"
