"""Read what version 0.1.0 wrote about a start: notes for a task's own retries, and intents for other tasks."""

from __future__ import annotations

import json
from typing import Any

from techflow_provider.state.store import Store, read_only
from techflow_provider.submission.records import AttemptRecord

NAMES = {"ticket": "submission_id", "round": "generation", "noted_at": "sent_at", "told": "report", "ended": "done"}
# What a note leaves out: its attempt is gone, and nobody waits for the response any more.
NOTE_FIELDS: dict[str, Any] = {"attempt_id": "of version 0.1.0", "response_seconds": 0.0, "lost": True}
NOTES, INTENTS = KINDS = ("notes", "intents")


def is_note(value: Any) -> bool:
    """Whether a stored value is a note of version 0.1.0, and not a record."""
    return isinstance(value, dict) and "ticket" in value


def read_note(value: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the record that a note stands for."""
    return {NAMES.get(name, name): field for name, field in value.items()} | NOTE_FIELDS


def read_intent(text: str) -> dict[str, Any]:
    """Return the fields of the record that an intent stands for.

    :raises ValueError: it isn't JSON
    :raises KeyError: a field is missing
    """
    value = json.loads(text)
    return {
        "workflow_id": value["workflow_id"],
        "submission_id": value["ticket"],
        "generation": "",
        "attempt_id": value["author"],
        "sent_at": value["sent_at"],
        "response_seconds": value["lease_seconds"],
        "payload_digest": value["payload_digest"],
        "sent_seconds": value["sent_seconds"],
        "lost": value["lost"],
    }


def read_start(store: Store, site: str, submitter: str, own_note: dict[str, Any] | None) -> AttemptRecord | None:
    """Return the record that a submitter's note and intent stand for.

    None when there is no note, or when the request was surely not sent.

    :param own_note: the note in the task's own state, where Airflow 3.3 kept it; None where it is in the store
    :raises ValueError: they aren't JSON
    :raises KeyError: a field is missing
    """
    (note, now), (intent, _) = (store.update(f"{site}/{kind}", submitter, read_only) for kind in KINDS)
    value = own_note if own_note is not None or note is None else json.loads(note.value)
    if value is None:
        return None
    fields, age = read_note(value), 0.0
    if intent is not None and fields["execution_id"] is None:
        sent = read_intent(intent.value)
        if sent["sent_at"] is None:
            return None
        fields |= {"sent_at": sent["sent_at"], "sent_seconds": sent["sent_seconds"]}
        age = intent.age_seconds
    return AttemptRecord.read(fields, age, now)
