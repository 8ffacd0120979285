"""The record of an attempt to start an execution, and the claim of an execution: values, and how they are stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

from techflow_provider.state.store import StoreError

LONG_AGO = datetime.min.replace(tzinfo=UTC)
# How far the time of a write, as the record has it, may be from the time that the store has for it.
CLOCK_TOLERANCE_SECONDS = 5.0
# The clocks of hosts may be as far apart.
DISAGREEMENT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """What is known about the execution that a submitter has requested.

    :param workflow_id: the workflow
    :param submission_id: names the one execution that is wanted
    :param generation: names the attempts among which one execution is enough; clearing a finished task begins another
    :param attempt_id: names the attempt that wrote the record last
    :param sent_at: when the request was sent, by its host's clock
    :param response_seconds: how long after that a response may still come
    :param payload_digest: what distinguishes its payload from others, None without a payload
    :param sequence: how many executions the submitter has requested so far, this one included
    :param clears: how often tasks of the DAG run had been cleared, where Airflow says so
    :param lost: whether nobody waits for the response any more, so that the history has to show the execution
    :param accepted: whether a response has shown that the server started an execution
    :param execution_id: the execution, once it is known
    :param report: how that came about, as the log and the XCom show it
    :param done: whether the submitter has got from the execution what it wanted, and only has to report its success
    :param failed: whether the execution failed, so that another one is needed
    :param sent_clock: when the request was sent, by the store's clock; None stands for the time of the next write
    :param is_clock_kept: whether the store's clock has run without a break since then
    :param is_restored: whether the shared state has lost the record, and maybe claims with it
    :param since_sent: seconds since the request was sent, or less where the clock had a break; not stored
    """

    workflow_id: str
    submission_id: str
    generation: str
    attempt_id: str
    sent_at: datetime
    response_seconds: float
    payload_digest: str | None = None
    sequence: int = 1
    clears: int = 0
    lost: bool = False
    accepted: bool = False
    execution_id: str | None = None
    report: Mapping[str, Any] | None = None
    done: bool = False
    failed: bool = False
    sent_clock: float | None = None
    is_clock_kept: bool = True
    is_restored: bool = False
    since_sent: float = 0.0

    @property
    def in_flight(self) -> bool:
        """Whether a response may still come, so that an unclaimed execution may belong to this submission."""
        return self.execution_id is None and not self.lost and self.since_sent < self.response_seconds

    @property
    def submitter(self) -> str:
        """The name of what needs the execution."""
        return submitter_of(self.submission_id)

    @property
    def awaited(self) -> str:
        """What has to come before the execution is known."""
        return "its response" if self.in_flight else "a search of the history, or a person"

    def since_sent_between(self, now: datetime) -> tuple[float, float]:
        """Return the least and the most seconds since the request was sent.

        They differ where the store's clock had a break, and where it and the host's disagree, so that one was set.

        :param now: this host's clock
        """
        since, by_host = self.since_sent, (now - self.sent_at).total_seconds()
        if self.is_clock_kept and abs(by_host - since) <= DISAGREEMENT_SECONDS:
            return since, since
        return min(since, by_host) if self.is_clock_kept else since, max(since, by_host)

    def taken_over(self, attempt_id: str, *, accepted: bool = False) -> AttemptRecord:
        """Return the record of an attempt that expects no response and searches the history for the execution."""
        return replace(self, attempt_id=attempt_id, lost=True, accepted=self.accepted or accepted)

    def to_dict(self, now: float | None = None) -> dict[str, Any]:
        """Return the record as JSON.

        :param now: the store's clock, when it is written there
        """
        values = {name: getattr(self, name) for name in STORED_FIELDS}
        sent_clock = now if self.sent_clock is None else self.sent_clock
        return {**values, "sent_at": self.sent_at.isoformat(), "sent_clock": sent_clock, "written_clock": now}

    @classmethod
    def read(cls, value: Any, age_seconds: float | None = None, now: float | None = None) -> AttemptRecord:
        """Read a record; another version of this package may have written it, so it is checked.

        :param value: its fields, or their JSON
        :param age_seconds: time since the record was written, by the store's clock; None when the store has lost it
        :param now: the store's clock, which shows whether it has had a break; None when that isn't known
        :raises StoreError: it isn't a record
        """
        try:
            value = json.loads(value) if isinstance(value, str) else value
            known = {name: value[name] for name in STORED_FIELDS if name in value}
            # A time without a zone can't be compared with this one.
            known["sent_at"] = max(datetime.fromisoformat(value["sent_at"]), LONG_AGO)
            known["response_seconds"] = float(value["response_seconds"])
            return replace(cls(**known), **_times_of(value, age_seconds, now))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"expected the record of an attempt, got {str(value)[:200]!r}") from error


def _times_of(value: Mapping[str, Any], age: float | None, now: float | None) -> dict[str, Any]:
    """Return the fields of a record that depend on when it is read."""
    if age is None:
        return {"lost": True, "is_restored": True, "is_clock_kept": False, "sent_clock": None}
    written, sent = value.get("written_clock"), value.get("sent_clock")
    if written is None or sent is None:
        # Written by an earlier version.
        since, is_kept = age + float(value.get("sent_seconds", 0.0)), False
    else:
        since = max(0.0, age + float(written) - float(sent))
        # If the store's host was started anew, the entry's age counts from then.
        is_kept = now is None or abs(now - age - float(written)) <= CLOCK_TOLERANCE_SECONDS
    if is_kept:
        return {"since_sent": since}
    return {"since_sent": since, "sent_clock": now and now - since, "is_clock_kept": False}


STORED_FIELDS = tuple(field.name for field in fields(AttemptRecord) if field.name != "since_sent")


@dataclass(frozen=True, slots=True)
class Claim:
    """Which submission an execution belongs to.

    :param submission_id: the submission
    :param by_response: whether the response to its request named the execution, so that there is no doubt
    :param requested: seconds since 1970 between which the request was sent and responded to, by the server's `Date`
    :param payload_digest: as in the record
    """

    submission_id: str
    by_response: bool = False
    requested: tuple[float, float] | None = None
    payload_digest: str | None = None

    @property
    def submitter(self) -> str:
        """The name of what has the execution."""
        return submitter_of(self.submission_id)

    @classmethod
    def read(cls, text: str) -> Claim:
        """Read a claim; earlier versions wrote the submission alone."""
        try:
            value = json.loads(text)
            span = None if value["requested"] is None else (float(value["requested"][0]), float(value["requested"][1]))
            return cls(str(value["submission_id"]), bool(value["by_response"]), span, value["payload_digest"])
        except (ValueError, KeyError, TypeError, IndexError):
            return cls(text)


def submitter_of(submission_id: str) -> str:
    """Return the name of the submitter of a submission."""
    return submission_id.rpartition("#")[0] or submission_id


def payload_digest(payload: Any) -> str | None:
    """Return what distinguishes a payload from others, None without one."""
    if payload is None:
        return None
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:16]
