"""What a task writes down for its own later tries: that it is about to start an execution, which one it got, the end.

A note outlives the process that wrote it. Where it is kept is the caller's matter: in the state that processes share,
or where Airflow keeps a task's own state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Protocol

from techflow_provider.state.records import drop_entry, get_entry, put_entry
from techflow_provider.state.store import Store, StoreError

# A note without an end is needed as long as its task may be tried again.
NOTE_TTL_SECONDS = 30 * 24 * 3600.0
# After the end it matters only to a try that comes because Airflow never heard of the success.
ENDED_TTL_SECONDS = 2 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """What a task knows of the execution that it wants.

    :param account: names the API key and base URL that it is started with
    :param workflow_id: the workflow
    :param ticket: names the one execution that is wanted
    :param round: names the tries among which one execution is enough; clearing a finished task begins another
    :param noted_at: when the note was begun, by its host's clock
    :param payload_digest: what tells its payload from another, None without a payload
    :param execution_id: the execution, once it is known
    :param told: how that came about, as it was told in the log and the XCom
    :param ended: whether the task has got from the execution what it wanted, and only its success is left to report
    """

    account: str
    workflow_id: str
    ticket: str
    round: str
    noted_at: datetime
    payload_digest: str | None = None
    execution_id: str | None = None
    told: Mapping[str, Any] | None = None
    ended: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the note as JSON."""
        return {**asdict(self), "noted_at": self.noted_at.isoformat()}

    @classmethod
    def read(cls, value: Any) -> AttemptRecord:
        """Read a note; it may come from another version of this package, so it is checked.

        :raises StoreError: it is none
        """
        try:
            return cls(**{**value, "noted_at": datetime.fromisoformat(value["noted_at"])})
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"expected a task's note about its execution, got {str(value)[:200]!r}") from error


class AttemptStore(Protocol):
    """Where the note of one task is kept. Every method may raise `StoreError`."""

    def read(self) -> AttemptRecord | None:
        """Return the note, or None when there is none."""

    def write(self, note: AttemptRecord) -> None:
        """Write the note, whatever was there."""

    def drop(self) -> None:
        """Delete the note, if there is one."""


class SharedAttemptStore:
    """A task's note in the state that processes share.

    :param store: where it is kept
    :param account: the name of the API key's budget (see `budget_key`)
    :param task: the task's identity
    """

    def __init__(self, store: Store, account: str, task: str) -> None:
        self._store = store
        self._space = f"{account}/notes"
        self._task = task

    def read(self) -> AttemptRecord | None:
        """Return the note, or None when there is none."""
        entry = get_entry(self._store, self._space, self._task)
        if entry is None:
            return None
        try:
            return AttemptRecord.read(json.loads(entry.value))
        except ValueError as error:
            raise StoreError(f"expected a task's note about its execution, got {entry.value[:200]!r}") from error

    def write(self, note: AttemptRecord) -> None:
        """Write the note, whatever was there."""
        ttl = ENDED_TTL_SECONDS if note.ended else NOTE_TTL_SECONDS
        put_entry(self._store, self._space, self._task, json.dumps(note.to_dict()), ttl)

    def drop(self) -> None:
        """Delete the note, if there is one."""
        drop_entry(self._store, self._space, self._task)
