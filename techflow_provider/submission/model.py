"""A start as values: who starts, what it wants when something is lost, and what came of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal
from uuid import uuid4

from techflow_provider.client.history import DEFAULT_APPEAR_SECONDS
from techflow_provider.client.models import Execution, ExecutionState
from techflow_provider.client.settings import Settings
from techflow_provider.state.records import Records
from techflow_provider.submission.attempts import AttemptRecord, AttemptStore

OnAmbiguous = Literal["adopt", "fail", "resubmit"]


class Origin(StrEnum):
    """How a task came to its execution."""

    STARTED = "started"
    ADOPTED = "adopted after a lost answer"
    REATTACHED = "re-attached"


@dataclass(frozen=True, slots=True)
class SubmissionPolicy:
    """What a task wants when something is lost.

    :param on_ambiguous: what to do when it is unknown whether a request started an execution: `adopt` it from the
        history, and send again when it is not there; `fail`; or `resubmit` at once, rather twice than not at all
    :param reattach: whether a later try goes on with the execution of an earlier one
    :param until_end: whether the task lasts until the execution has ended, so that one that failed is of no use to it
    :param history_lag_seconds: how long a started execution may be missing from the history (assumption)
    """

    on_ambiguous: OnAmbiguous = "adopt"
    reattach: bool = True
    until_end: bool = False
    history_lag_seconds: float = DEFAULT_APPEAR_SECONDS

    def effect_seconds(self, settings: Settings) -> float:
        """Return how long after a request has left it may still bring an execution into the history."""
        return settings.timeout_seconds + self.history_lag_seconds


@dataclass(frozen=True, slots=True)
class Submitter:
    """Who starts an execution, and where it writes things down.

    :param name: the task's identity, the same in all its tries
    :param round: names the tries among which one execution is enough; clearing a finished task begins another
    :param account: the name of the API key's budget (see `budget_key`)
    :param records: what is written for others
    :param notebook: what is written for later tries
    :param author: names this try
    """

    name: str
    round: str
    account: str
    records: Records = field(repr=False)
    attempts: AttemptStore = field(repr=False)
    author: str = field(default_factory=lambda: uuid4().hex[:12])

    def new_ticket(self) -> str:
        """Return a name for one execution that is wanted, which nobody else has."""
        return f"{self.name}#{uuid4().hex[:12]}"


@dataclass(frozen=True, slots=True)
class Submission:
    """A task's execution.

    :param execution: the execution as it was last seen; of one that only a note names, all but the id is unknown
    :param decision: how the task came to it
    :param facts: what that rests on, in words
    :param times: the instants it rests on, by name, in ISO 8601
    """

    execution: Execution
    decision: Origin
    facts: str
    times: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return what the log and the XCom tell."""
        at = self.execution.started_at
        return {
            "decision": self.decision.value,
            "execution_id": self.execution.id,
            "workflow_id": self.execution.workflow_id,
            "facts": self.facts,
            "started_at": at.isoformat() if at else None,
            **self.times,
        }

    def __str__(self) -> str:
        of = f" of workflow {self.execution.workflow_id}" if self.execution.workflow_id else ""
        return f"Execution {self.execution.id}{of}, {self.decision.value}: {self.facts}"


def from_record(note: AttemptRecord, facts: str) -> Submission:
    """Return the execution that a note names; nobody has looked at it."""
    execution = Execution(note.execution_id or "", note.workflow_id, None, None, None, None, {})
    return Submission(execution, Origin.REATTACHED, facts, {"noted_at": note.noted_at.isoformat()})


def is_reusable(execution: Execution, note: AttemptRecord, task: Submitter, rules: SubmissionPolicy) -> bool:
    """Whether the execution of an earlier try is what the task needs now, or it needs a new one."""
    if not execution.ended:
        return True
    return note.round == task.round and not (rules.until_end and execution.state is ExecutionState.FAILED)


def payload_digest_of(payload: object) -> str | None:
    """Return what tells a payload from another, None without one."""
    if payload is None:
        return None
    text = json.dumps(payload, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
