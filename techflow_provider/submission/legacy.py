"""Read what version 0.1.0 wrote about a start: notes for a task's own retries, intents and claims for other tasks."""

from __future__ import annotations

import json
from typing import Any

from techflow_provider.state.store import Entry, Store, StoreError, Write, read_only
from techflow_provider.submission.records import AttemptRecord

NAMES = {"ticket": "submission_id", "round": "generation", "noted_at": "sent_at", "told": "report", "ended": "done"}
# What a note leaves out: its attempt is gone, and nobody waits for the response any more.
NOTE_FIELDS: dict[str, Any] = {"attempt_id": "of version 0.1.0", "response_seconds": 0.0, "lost": True}
INTENT_NAMES = {"ticket": "submission_id", "author": "attempt_id", "lease_seconds": "response_seconds"}
NOTES, INTENTS, CLAIMS = "notes", "intents", "claims"


def is_note(value: Any) -> bool:
    """Whether a stored value is a note of version 0.1.0, and not a record."""
    return isinstance(value, dict) and "ticket" in value


class LegacyState:
    """What version 0.1.0 wrote, by API key.

    :param store: where it is kept
    :param account: the API key's name there
    :param name: the submitter's identity, as that version wrote it
    """

    def __init__(self, store: Store, account: str, name: str) -> None:
        self._store = store
        self._account = account
        self._name = name

    def read(self, own_note: dict[str, Any] | None) -> AttemptRecord | None:
        """Return the record that the submitter's note and intent stand for.

        None when there is no note, or when the request was surely not sent.

        :param own_note: the note in the task's own state, where Airflow 3.3 kept it; None where it is in the store
        """
        (note, now), (intent, _) = self._read(NOTES, self._name), self._read(INTENTS, self._name)
        try:
            value = json.loads(note.value) if own_note is None and note is not None else own_note
            if value is None:
                return None
            fields, age = _renamed(value, NAMES) | NOTE_FIELDS, 0.0
            if intent is not None and fields["execution_id"] is None:
                sent, age = json.loads(intent.value), intent.age_seconds
                if sent["sent_at"] is None:
                    return None
                fields |= {name: sent[name] for name in ("sent_at", "sent_seconds")}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"expected the note of {self._name} written by version 0.1.0, got {error!r}") from error
        return AttemptRecord.read(fields, age, now)

    def drop(self) -> None:
        """Delete the submitter's note and intent."""
        for kind in (NOTES, INTENTS):
            self._store.update(f"{self._account}/{kind}", self._name, lambda _entry, _: (Write(None), None))

    def intents(self) -> list[Entry]:
        """Return the intents of all submitters whose request may have been sent."""
        found = self._store.entries(f"{self._account}/{INTENTS}")
        return [each for each in found if '"sent_at": null' not in each.value]

    def claim(self, execution_id: str) -> Entry | None:
        """Return the claim of an execution, which doesn't name its workflow."""
        return self._read(CLAIMS, execution_id)[0]

    def _read(self, kind: str, name: str) -> tuple[Entry | None, float]:
        return self._store.update(f"{self._account}/{kind}", name, read_only)


def read_intent(text: str) -> dict[str, Any]:
    """Return the fields of the record that an intent stands for.

    :raises ValueError: it isn't JSON
    """
    return _renamed(json.loads(text), INTENT_NAMES) | {"generation": ""}


def _renamed(value: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(name, name): field for name, field in value.items()}
