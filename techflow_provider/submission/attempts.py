"""The record of an attempt to start an execution: what later attempts and other tasks have to know about it.

Each submitter has one record in the shared state, from right before its request is sent. Other tasks read it as a
competing intent as long as it names no execution. A claim beside the records says which submission an execution
belongs to.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from itertools import chain, repeat
from operator import attrgetter
from typing import Any, Protocol, TypeVar

from techflow_provider.client.flow import FlowContext
from techflow_provider.client.text import get_logger
from techflow_provider.state.optimistic import UnreachableError
from techflow_provider.state.store import Entry, Store, StoreError, Write, read_only
from techflow_provider.submission import legacy

T = TypeVar("T")

log: logging.Logger = get_logger(__name__)

STATE_RETRY_DELAYS = (0.1, 0.4, 1.5, 4.0)
# A server that restarts is waited for so long.
UNREACHABLE_SECONDS = 90.0
# A record is needed as long as its task may be retried or cleared.
RECORD_TTL_SECONDS = 30 * 24 * 3600.0
# After completion it matters only to an attempt that is made because Airflow did not notice the success.
DONE_TTL_SECONDS = 2 * 24 * 3600.0
LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """What is known about the execution that a submitter has requested.

    :param account: names the API key and base URL that it is requested with
    :param workflow_id: the workflow
    :param submission_id: names the one execution that is wanted
    :param generation: names the attempts among which one execution is enough; clearing a finished task begins another
    :param attempt_id: names the attempt that wrote the record last
    :param sent_at: when the request was sent, by its host's clock
    :param response_seconds: how long after that a response may still come
    :param payload_digest: what distinguishes its payload from others, None without a payload
    :param sent_seconds: how long before the record was written the request was sent, by the store's clock
    :param lost: whether nobody waits for the response any more, so that the history has to show the execution
    :param execution_id: the execution, once it is known
    :param report: how that came about, as the log and the XCom show it
    :param done: whether the submitter has got from the execution what it wanted, and only has to report its success
    :param age_seconds: time since the record was written, by the store's clock; not stored
    :param is_restored: whether the shared state lacks the record, and Airflow's state of the task has it; not stored
    """

    account: str
    workflow_id: str
    submission_id: str
    generation: str
    attempt_id: str
    sent_at: datetime
    response_seconds: float
    payload_digest: str | None = None
    sent_seconds: float = 0.0
    lost: bool = False
    execution_id: str | None = None
    report: Mapping[str, Any] | None = None
    done: bool = False
    age_seconds: float = 0.0
    is_restored: bool = False

    @property
    def since_sent(self) -> float:
        """Seconds since the request was sent; too few after a reboot of the host that keeps the record."""
        return self.sent_seconds + self.age_seconds

    @property
    def in_flight(self) -> bool:
        """Whether a response may still come, so that an unclaimed execution may belong to this submission."""
        return self.execution_id is None and not self.lost and self.since_sent < self.response_seconds

    def longest_since_sent(self, now: datetime) -> float:
        """Return the seconds since the request was sent, by the clock that shows more of them.

        The store's clock knows nothing of the time before a reboot, and a host's may have been set back.
        """
        return max(self.since_sent, (now - self.sent_at).total_seconds())

    def taken_over(self, attempt_id: str) -> AttemptRecord:
        """Return the record of an attempt that expects no response and searches the history for the execution."""
        return replace(self, attempt_id=attempt_id, lost=True, sent_seconds=self.since_sent, age_seconds=0.0)

    def is_same(self, other: AttemptRecord) -> bool:
        """Whether another record is this one, apart from its age."""
        return (self.attempt_id, self.submission_id, self.execution_id) == (
            other.attempt_id,
            other.submission_id,
            other.execution_id,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON."""
        values = attrgetter(*STORED_FIELDS)(self)
        return {**dict(zip(STORED_FIELDS, values, strict=True)), "sent_at": self.sent_at.isoformat()}

    @classmethod
    def read(cls, value: Any, age_seconds: float = 0.0) -> AttemptRecord:
        """Read a record; another version of this package may have written it, so it is checked.

        :raises StoreError: it isn't a record
        """
        try:
            # A time without a zone can't be compared with this one.
            sent_at = max(datetime.fromisoformat(value["sent_at"]), LONG_AGO)
            response, sent = float(value["response_seconds"]), float(value.get("sent_seconds", 0.0))
            checked = {"sent_at": sent_at, "response_seconds": response, "sent_seconds": sent}
            return cls(**{**value, **checked, "age_seconds": age_seconds})
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"expected the record of an attempt, got {str(value)[:200]!r}") from error


STORED_FIELDS = tuple(field.name for field in fields(AttemptRecord) if field.name not in ("age_seconds", "is_restored"))
# Given the record that is stored, returns the one to store: the same object changes nothing, None deletes the record.
Decide = Callable[[AttemptRecord | None], AttemptRecord | None]


class TaskState(Protocol):
    """What Airflow keeps for one task beside the shared state. Every method may raise `StoreError`."""

    def read(self) -> Any:
        """Return the value, or None when there is none."""

    def write(self, value: dict[str, Any]) -> None:
        """Write a value in place of the present one."""

    def drop(self) -> None:
        """Delete the value, if there is one."""


class AttemptStore:
    """The record of one submitter, and what others have written for all to see. Every method may raise `StoreError`.

    :param store: where they are kept
    :param account: the name of the API key's budget (see `budget_key`)
    :param submitter: the submitter's identity
    :param task_state: where Airflow keeps the task's own state; there the record survives the loss of `store`
    """

    def __init__(self, store: Store, account: str, submitter: str, task_state: TaskState | None = None) -> None:
        self.task_state = task_state
        self._store = store
        self._account = account
        self._submitter = submitter
        self._unreadable: set[str] = set()

    def update(self, decide: Decide) -> AttemptRecord | None:
        """Decide in one atomic step what the shared state keeps, and return that."""

        def change(entry: Entry | None, _: float) -> tuple[Write | None, AttemptRecord | None]:
            present = None if entry is None else _record_of(entry)
            following = decide(present)
            if following is present:
                return None, present
            if following is None:
                return Write(None), None
            text = json.dumps(following.to_dict(), sort_keys=True)
            return Write(text, DONE_TTL_SECONDS if following.done else RECORD_TTL_SECONDS), following

        return self._store.update(f"{self._account}/attempts", self._submitter, change)

    def read_shared(self) -> AttemptRecord | None:
        """Return what the shared state keeps."""
        entry, _ = self._store.update(f"{self._account}/attempts", self._submitter, read_only)
        return None if entry is None else _record_of(entry)

    def read(self) -> AttemptRecord | None:
        """Return the record, from whichever of the two states knows more about it."""
        shared = self.read_shared()
        if self.task_state is None:
            return shared
        own = self._read_task_state()
        if own is None or (
            shared is not None and shared.submission_id == own.submission_id and not _is_ahead(own, shared)
        ):
            return shared
        return own

    def _read_task_state(self) -> AttemptRecord | None:
        """Return the record that Airflow keeps; its age is unknown, and nobody waits for a response to it any more."""
        value = None if self.task_state is None else self.task_state.read()
        if self.task_state is not None and legacy.is_note(value):
            self.migrate(value)
            value = self.task_state.read()
        if value is None:
            return None
        return replace(AttemptRecord.read(value), lost=True, sent_seconds=0.0, is_restored=True)

    def drop(self, record: AttemptRecord) -> AttemptRecord | None:
        """Delete a record where it is unchanged, and return what the shared state keeps then."""
        present = self.update(lambda present: None if present is None or present.is_same(record) else present)
        own = self._read_task_state()
        is_gone = present is None or present.submission_id != record.submission_id
        if self.task_state is not None and own is not None and own.submission_id == record.submission_id and is_gone:
            self.task_state.drop()
        return present

    def amend(self, execution_id: str, change: Callable[[AttemptRecord], AttemptRecord | None]) -> AttemptRecord | None:
        """Change the record that names an execution wherever it is kept, and return it as it was, if it was there."""
        found: AttemptRecord | None = None

        def decide(present: AttemptRecord | None) -> AttemptRecord | None:
            nonlocal found
            found = present if present is not None and present.execution_id == execution_id else None
            return present if found is None else change(found)

        own = self._read_task_state()
        if self.update(decide) is None and found is None and self.migrate() is not None:
            self.update(decide)
        if self.task_state is None or own is None or own.execution_id != execution_id:
            return found
        amended = change(own)
        if amended is None:
            self.task_state.drop()
        else:
            self.task_state.write(amended.to_dict())
        return found or own

    def migrate(self, note: dict[str, Any] | None = None) -> AttemptRecord | None:
        """Replace what version 0.1.0 wrote for the submitter by a record, and return that.

        :param note: what the task's own state has; without it, the note is in the shared state
        """
        try:
            value = legacy.read_start(self._store, self._account, self._submitter, note)
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"expected the note of {self._submitter} written by version 0.1.0, got {error!r}"
            ) from error
        record = None if value is None else AttemptRecord.read(value)
        present = self.update(lambda present: present or record)
        if self.task_state is not None and note is not None:
            self.task_state.drop() if present is None else self.task_state.write(present.to_dict())
        legacy.drop_start(self._store, self._account, self._submitter)
        return present

    def pending(self, workflow_id: str) -> list[AttemptRecord]:
        """Return the records for a workflow that name no execution yet, of all submitters."""
        entries = self._store.entries(f"{self._account}/attempts")
        # Most of them are done, and parsing thousands would take longer than a search may be held up.
        found = [self._readable(entry, json.loads) for entry in entries if '"done": true' not in entry.value]
        intents = self._store.entries(f"{self._account}/intents")
        found += [self._readable(each, legacy.read_intent) for each in intents if '"sent_at": null' not in each.value]
        return [each for each in found if each and each.workflow_id == workflow_id and each.execution_id is None]

    def _readable(self, entry: Entry, parse: Callable[[str], Any]) -> AttemptRecord | None:
        try:
            return _record_of(entry, parse)
        except StoreError as error:
            if entry.name not in self._unreadable:
                log.warning("The record of %s is ignored: %s", entry.name, error)
            self._unreadable.add(entry.name)
            return None

    def claim(self, execution_id: str, submission_id: str) -> str:
        """Claim an execution for a submission unless it is claimed, and return the submission that holds it now."""

        def change(entry: Entry | None, _: float) -> tuple[Write | None, str]:
            if entry is None:
                return Write(submission_id, RECORD_TTL_SECONDS), submission_id
            return None, entry.value

        return self._store.update(f"{self._account}/claims", execution_id, change)

    def holders(self, execution_ids: Iterable[str]) -> dict[str, str]:
        """Return the submissions that hold executions, by execution; those that nobody claims are left out."""
        namespace = f"{self._account}/claims"
        held = {each: self._store.update(namespace, each, read_only)[0] for each in execution_ids}
        return {name: entry.value for name, entry in held.items() if entry is not None}


def _record_of(entry: Entry, parse: Callable[[str], Any] = json.loads) -> AttemptRecord:
    try:
        return AttemptRecord.read(parse(entry.value), entry.age_seconds)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"expected the record of an attempt, got {entry.value[:200]!r}") from error


def _is_ahead(record: AttemptRecord, other: AttemptRecord) -> bool:
    return (record.execution_id is not None, record.done) > (other.execution_id is not None, other.done)


async def use_state(context: FlowContext, act: Callable[[], T]) -> T:
    """Run an operation on the records, and retry it when it fails.

    :raises StoreError: it still fails
    """
    waited = 0.0
    for delay in chain(STATE_RETRY_DELAYS, repeat(STATE_RETRY_DELAYS[-1])):
        try:
            return await context.io.use_state(act)
        except StoreError as error:
            # A server may be restarting; a file that can't be used now most likely can't be soon.
            longest = UNREACHABLE_SECONDS if isinstance(error, UnreachableError) else sum(STATE_RETRY_DELAYS)
            if waited + delay > min(longest, context.settings.deadline_seconds):
                raise
        waited += delay
        await context.io.sleep(delay * (0.5 + context.random()))
    raise AssertionError
