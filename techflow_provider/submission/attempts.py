"""Where the records of attempts are kept, for a submitter's later attempts and for other tasks.

A submitter has at most two records in the shared state. The one in `pending` is written right before a request is sent,
and is deleted once its execution is known; other tasks read it as a competing intent. The one in `attempts` names the
execution. A claim says which submission an execution belongs to.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import chain, repeat
from typing import Any, Protocol, TypeVar
from urllib.parse import quote as percent_encode
from urllib.parse import unquote as percent_decode

from techflow_provider.client.flow import FlowContext
from techflow_provider.client.text import get_logger
from techflow_provider.state.identity import NAME, NAMESPACE
from techflow_provider.state.optimistic import UnreachableError
from techflow_provider.state.store import Entry, Store, StoreError, Write, read_only
from techflow_provider.submission.legacy import LegacyState, is_note, read_intent
from techflow_provider.submission.records import AttemptRecord, Claim

T = TypeVar("T")

log: logging.Logger = get_logger(__name__)

STATE_RETRY_DELAYS = (0.1, 0.4, 1.5, 4.0)
# A server that restarts is waited for so long.
UNREACHABLE_SECONDS = 90.0
# A record is needed as long as its task may be retried or cleared.
RECORD_TTL_SECONDS = 30 * 24 * 3600.0
# After completion it matters only to an attempt that is made because Airflow did not notice the success.
DONE_TTL_SECONDS = 2 * 24 * 3600.0
PENDING, KNOWN, CLAIMS = "pending", "attempts", "claims"

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
    """The records of one submitter, and what others have written for all to see. Every method may raise `StoreError`.

    :param store: where they are kept
    :param site: names the TechFlow account (see `Settings.site`)
    :param submitter: the submitter's name
    :param task_state: where Airflow keeps the task's own state; there the record survives the loss of `store`
    :param former: the names that the submitter had before the deployment's name changed
    :param legacy: what version 0.1.0 has written
    """

    def __init__(
        self,
        store: Store,
        site: str,
        submitter: str,
        task_state: TaskState | None = None,
        *,
        former: Sequence[str] = (),
        legacy: LegacyState | None = None,
    ) -> None:
        self.task_state = task_state
        self.sequence: int = 0
        self._store = store
        self.site = site
        self._submitter = submitter
        self._former = former
        self._legacy = legacy
        self._unreadable: set[str] = set()

    def update(self, decide: Decide, kind: str = PENDING) -> AttemptRecord | None:
        """Decide in one atomic step which record the shared state keeps, and return that.

        :param kind: which of the two records
        """

        def change(entry: Entry | None, now: float) -> tuple[Write | None, AttemptRecord | None]:
            present = None if entry is None else _record_of(entry, now)
            following = decide(present)
            if following is present:
                return None, present
            if following is None:
                return Write(None), None
            ttl_seconds = DONE_TTL_SECONDS if following.done or following.failed else RECORD_TTL_SECONDS
            return Write(json.dumps(following.to_dict(now)), ttl_seconds), following

        return self._store.update(f"{self.site}/{kind}", self._submitter, change)

    def read_kind(self, kind: str) -> AttemptRecord | None:
        """Return one of the two records of the shared state."""
        entry, now = self._store.update(f"{self.site}/{kind}", self._submitter, read_only)
        return None if entry is None else _record_of(entry, now)

    def read_shared(self) -> AttemptRecord | None:
        """Return the record that counts in the shared state."""
        # In this order: a record leaves `pending` after it is known.
        reads = [(f"{self.site}/{kind}", self._submitter, read_only) for kind in (PENDING, KNOWN)]
        found = self._store.update_many(reads)
        pending, known = (None if entry is None else _record_of(entry, now) for entry, now in found)
        # A request is sent only after its attempt has found nothing known that is as recent.
        is_known = pending is None or (known is not None and known.sequence >= pending.sequence)
        return known if is_known else pending

    def read(self) -> AttemptRecord | None:
        """Return the record, from whichever of the two states knows more about it."""
        own = self._read_own()
        found = self.read_shared() or self.migrate()
        return own if own is not None and (found is None or _rank(own) > _rank(found)) else found

    def _read_own(self) -> AttemptRecord | None:
        """Return the record that Airflow keeps; its age is unknown, and nobody waits for a response to it any more."""
        value = None if self.task_state is None else self.task_state.read()
        if not is_note(value):
            return None if value is None else AttemptRecord.read(value)
        record = self.migrate(value)
        self.keep_own(record)
        return record and AttemptRecord.read(record.to_dict())

    def keep_own(self, record: AttemptRecord | None) -> None:
        """Write the record where Airflow keeps the task's own state, too, if it keeps one; None deletes it."""
        if self.task_state is not None:
            self.task_state.drop() if record is None else self.task_state.write(record.to_dict())

    def keep(self, record: AttemptRecord, following: AttemptRecord) -> None:
        """Record what came of a request, unless a later request or another attempt has recorded something there.

        :param record: the record as this attempt knows it
        :param following: the record with its execution, or with the fact that there is none
        """
        same = (record.attempt_id, record.submission_id, record.execution_id)

        def decide(present: AttemptRecord | None) -> AttemptRecord | None:
            if present is None or present.sequence < record.sequence:
                return following
            return following if (present.attempt_id, present.submission_id, present.execution_id) == same else present

        self.sequence = max(self.sequence, record.sequence)
        is_kept = self.update(decide, KNOWN) is following
        self.drop(record.submission_id)
        if is_kept:
            self.keep_own(following)

    def drop(self, submission_id: str, attempt_id: str | None = None) -> None:
        """Delete the record of a request: its execution is known, or it had no effect.

        :param attempt_id: the attempt that may delete it; None allows any
        """

        def decide(present: AttemptRecord | None) -> AttemptRecord | None:
            if present is None or present.submission_id != submission_id:
                return present
            return None if attempt_id in (None, present.attempt_id) else present

        self.update(decide)

    def amend(self, execution_id: str, **changes: Any) -> AttemptRecord | None:
        """Change the record that names an execution wherever it is kept, and return it as it was, if it was there."""
        found: AttemptRecord | None = None

        def decide(present: AttemptRecord | None) -> AttemptRecord | None:
            nonlocal found
            found = present if present is not None and present.execution_id == execution_id else None
            return present if found is None else replace(found, **changes)

        own = self._read_own()
        if self.update(decide, KNOWN) is None and self.migrate() is not None:
            self.update(decide, KNOWN)
        if own is not None and own.execution_id == execution_id:
            found = found or own
            self.keep_own(replace(found, **changes))
        return found

    def migrate(self, note: dict[str, Any] | None = None) -> AttemptRecord | None:
        """Move what was recorded under a former name or by version 0.1.0 to the present name, and return that.

        :param note: what version 0.1.0 has written in the task's own state
        """
        found = [] if self._legacy is None else [self._legacy.read(note)]
        others = [AttemptStore(self._store, self.site, name) for name in self._former]
        for record in (*(other.read_shared() for other in others), *found):
            if record is not None:
                self.update(partial(_first, record), PENDING if record.execution_id is None else KNOWN)
        for other in others:
            other.update(_nothing)
            other.update(_nothing, KNOWN)
        if self._legacy is not None:
            self._legacy.drop()
        return self.read_shared()

    def pending(self) -> list[AttemptRecord]:
        """Return the records that name no execution yet, of all submitters."""
        found = [self._readable(entry, str) for entry in self._store.entries(f"{self.site}/{PENDING}")]
        if self._legacy is not None:
            found += [self._readable(entry, read_intent) for entry in self._legacy.intents()]
        return [each for each in found if each is not None]

    def known(self) -> list[AttemptRecord]:
        """Return the records that name an execution, of all submitters."""
        found = (self._readable(entry, str) for entry in self._store.entries(f"{self.site}/{KNOWN}"))
        return [each for each in found if each is not None and each.execution_id is not None]

    def claimed(self) -> list[tuple[str, str, str, float]]:
        """Return the workflow, the execution, the submitter and the age in seconds of each claim."""
        entries = ((entry, *entry.name.partition("/")) for entry in self._store.entries(f"{self.site}/{CLAIMS}"))
        return [
            (percent_decode(workflow), execution, Claim.read(entry.value).submitter, entry.age_seconds)
            for entry, workflow, _, execution in entries
        ]

    def _readable(self, entry: Entry, parse: Callable[[str], Any]) -> AttemptRecord | None:
        try:
            return AttemptRecord.read(parse(entry.value), entry.age_seconds)
        except (StoreError, ValueError, AttributeError) as error:
            if entry.name not in self._unreadable:
                log.warning("The record of %s is ignored: %s", entry.name, error)
            self._unreadable.add(entry.name)
            return None

    def claim(self, workflow_id: str, execution_id: str, claim: Claim) -> Claim:
        """Claim an execution for a submission unless it is claimed, and return the claim that there is now."""

        def change(entry: Entry | None, _: float) -> tuple[Write | None, Claim]:
            if entry is None:
                return Write(json.dumps(asdict(claim)), RECORD_TTL_SECONDS), claim
            return None, Claim.read(entry.value)

        return self._store.update(f"{self.site}/{CLAIMS}", _claim_name(workflow_id, execution_id), change)

    def claims(self, executions: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Claim]:
        """Return the claims of executions, given by workflow and id; those that nobody claims are left out."""
        found: dict[tuple[str, str], Claim] = {}
        for workflow_id, execution_id in executions:
            entry, _ = self._store.update(f"{self.site}/{CLAIMS}", _claim_name(workflow_id, execution_id), read_only)
            if entry is None and self._legacy is not None:
                entry = self._legacy.claim(execution_id)
            if entry is not None:
                found[workflow_id, execution_id] = Claim.read(entry.value)
        return found

    def oldest_seconds(self) -> float:
        """Return how long the shared state has certainly kept what was written there."""
        entries = [each for kind in (KNOWN, CLAIMS) for each in self._store.entries(f"{self.site}/{kind}")]
        identity, _ = self._store.update(NAMESPACE, NAME, read_only)
        return max((entry.age_seconds for entry in (*entries, identity) if entry is not None), default=0.0)


def _record_of(entry: Entry, now: float) -> AttemptRecord:
    return AttemptRecord.read(entry.value, entry.age_seconds, now)


def _claim_name(workflow_id: str, execution_id: str) -> str:
    # Ids may be unique within a workflow only.
    return f"{percent_encode(workflow_id, safe='')}/{execution_id}"


def _first(record: AttemptRecord, present: AttemptRecord | None) -> AttemptRecord:
    return present or record


def _nothing(_: AttemptRecord | None) -> None:
    return None


def _rank(record: AttemptRecord) -> tuple[int, bool, bool]:
    return record.sequence, record.execution_id is not None, record.done or record.failed


async def use_state(context: FlowContext, act: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Run an operation on the records, and retry it when it fails.

    :raises StoreError: it still fails
    """
    waited, delays = 0.0, chain(STATE_RETRY_DELAYS, repeat(STATE_RETRY_DELAYS[-1]))
    while True:
        try:
            return await context.io.use_state(partial(act, *arguments, **options))
        except StoreError as error:
            delay = next(delays)
            # A server may be restarting; a file that can't be used now most likely can't be soon.
            longest = UNREACHABLE_SECONDS if isinstance(error, UnreachableError) else sum(STATE_RETRY_DELAYS)
            if waited + delay > min(longest, context.settings.deadline_seconds):
                raise
        waited += delay
        await context.io.sleep(delay * (0.5 + context.random()))
