"""What processes write down for each other beside the budget: intents, claims, webhooks, watchers, pollers, the bell.

An intent says that a task is about to start an execution and does not know yet which one it is; a claim says whose an
execution is. Every method is one atomic operation on the store and may raise `StoreError`: unlike a budget,
records have no fallback, since a record that others can't see protects nobody.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime

from techflow_provider.state.store import Entry, Store, StoreError, Write, read_only

# Longer than any task that a record could matter to.
RECORD_TTL_SECONDS = 30 * 24 * 3600.0
DELIVERY_TTL_SECONDS = 24 * 3600.0
# A poller sends a heartbeat with each poll; polls are never further apart.
POLLER_TTL_SECONDS = 120.0
WAKEUPS_NAME = "wakeups"
WAKEUPS_TTL_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Intent:
    """A task's wish to start an execution of a workflow, as long as it does not know which one it got.

    :param task: the task's identity
    :param ticket: names the one execution that is wanted; a task that needs another one later takes a new ticket
    :param workflow_id: the workflow
    :param author: names the try that wrote it, so that two tries of one task can be told apart
    :param lease_seconds: how long after its request has left an answer may still come
    :param payload_digest: what tells its payload from another, None without a payload
    :param sent_at: when its request left, by its host's clock; None as long as none did
    :param sent_seconds: how long before the intent was written that was, by the store's clock
    :param lost: whether no answer will come any more, so that the task looks for its execution in the history
    :param age_seconds: time since it was written, by the store's clock
    """

    task: str
    ticket: str
    workflow_id: str
    author: str
    lease_seconds: float
    payload_digest: str | None = None
    sent_at: datetime | None = None
    sent_seconds: float = 0.0
    lost: bool = False
    age_seconds: float = 0.0

    @property
    def maybe_sent(self) -> bool:
        """Whether a request may have left."""
        return self.sent_at is not None

    @property
    def in_flight(self) -> bool:
        """Whether an answer may still come, so that an execution that nobody claims may be this task's."""
        return self.maybe_sent and not self.lost and self.since_sent < self.lease_seconds

    @property
    def since_sent(self) -> float:
        """Seconds since the request left; too few after a reboot of the host that keeps the record."""
        return self.sent_seconds + self.age_seconds

    def longest_since_sent(self, now: datetime) -> float:
        """Return the seconds since the request left, by the clock that shows more of them.

        The store's clock knows nothing of the time before a reboot, and a host's may have been set back.
        """
        return max(self.since_sent, (now - self.sent_at).total_seconds() if self.sent_at else 0.0)

    def sending(self, now: datetime) -> Intent:
        """Return the intent of a task that sends its request now; one that it has sent before had no effect."""
        return replace(self, sent_at=now, sent_seconds=0.0, lost=False, age_seconds=0.0)

    def looking(self, author: str) -> Intent:
        """Return the intent of a try that expects no answer and looks for the execution."""
        return replace(self, author=author, lost=True, sent_seconds=self.since_sent, age_seconds=0.0)


KEPT_FIELDS = tuple(name for name in Intent.__dataclass_fields__ if name not in ("task", "age_seconds"))


class Records:
    """The records of one budget's users.

    :param store: where they are kept
    :param key: the budget's name (see `budget_key`)
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key
        self._intents = f"{key}/intents"
        self._claims = f"{key}/claims"
        self._deliveries = f"{key}/deliveries"
        self._pollers = f"{key}/pollers"
        # The name that version 0.1.0 gave to cursors.
        self._cursors = f"{key}/lookouts"

    def begin(self, intent: Intent) -> Intent:
        """Write an intent unless its task has one, and return the one that stands."""
        while True:
            if self._swap_intent(intent.task, None, _text_of(intent)):
                return intent
            standing = self.intent(intent.task)
            if standing is not None:
                return standing

    def intent(self, task: str) -> Intent | None:
        """Return a task's intent."""
        entry = get_entry(self._store, self._intents, task)
        return None if entry is None else _intent_of(entry)

    def intents(self, workflow_id: str) -> list[Intent]:
        """Return all intents for a workflow."""
        found = map(_intent_of, self._store.entries(self._intents))
        return [intent for intent in found if intent.workflow_id == workflow_id]

    def replace(self, present: Intent, following: Intent) -> bool:
        """Write another intent in place of the present one; False when that changed since."""
        return self._swap_intent(present.task, _text_of(present), _text_of(following))

    def finish(self, intent: Intent) -> bool:
        """Drop an intent; False when it changed since."""
        return self._swap_intent(intent.task, _text_of(intent), None)

    def _swap_intent(self, task: str, expected: str | None, value: str | None) -> bool:
        return compare_and_set(self._store, self._intents, task, expected, value, RECORD_TTL_SECONDS) == expected

    def claim(self, execution_id: str, ticket: str) -> str:
        """Claim an execution for a ticket unless it is claimed, and return the ticket that holds it now."""
        return compare_and_set(self._store, self._claims, execution_id, None, ticket, RECORD_TTL_SECONDS) or ticket

    def holder(self, execution_id: str) -> str | None:
        """Return the ticket that holds an execution."""
        entry = get_entry(self._store, self._claims, execution_id)
        return None if entry is None else entry.value

    def claims(self) -> dict[str, str]:
        """Return all claimed executions with the tickets that hold them."""
        return {entry.name: entry.value for entry in self._store.entries(self._claims)}

    def release(self, execution_id: str, ticket: str) -> bool:
        """Give up a claim; False when the ticket does not hold it."""
        return compare_and_set(self._store, self._claims, execution_id, ticket, None, RECORD_TTL_SECONDS) == ticket

    def see_delivery(self, delivery_id: str, ttl_seconds: float = DELIVERY_TTL_SECONDS) -> bool:
        """Remember a webhook's delivery; False when it was seen before."""
        return compare_and_set(self._store, self._deliveries, delivery_id, None, "seen", ttl_seconds) is None

    def delivery_ages(self) -> list[float]:
        """Return the ages of the deliveries that are remembered, in seconds."""
        return [entry.age_seconds for entry in self._store.entries(self._deliveries)]

    def heartbeat(self, poller: str) -> int:
        """Record that a poller is running, and return how many were in the last two minutes."""
        put_entry(self._store, self._pollers, poller, "", POLLER_TTL_SECONDS)
        return len(self._store.entries(self._pollers))

    def cursor(self, trigger: str) -> Entry | None:
        """Return the cursor of an event trigger."""
        return get_entry(self._store, self._cursors, trigger)

    def replace_cursor(self, trigger: str, present: str | None, following: str) -> bool:
        """Move the cursor of an event trigger; False when another process has done so since."""
        return compare_and_set(self._store, self._cursors, trigger, present, following, RECORD_TTL_SECONDS) == present

    def notify(self) -> int:
        """Let those that wait know that there may be something new, and return the wake-up counter."""

        def count(entry: Entry | None, _: float) -> tuple[Write, int]:
            counter = _counter(entry) + 1
            return Write(str(counter), WAKEUPS_TTL_SECONDS), counter

        return self._store.update(self._key, WAKEUPS_NAME, count)

    def wakeups(self) -> int:
        """Return the wake-up counter; a change says that there may be something new."""
        return _counter(get_entry(self._store, self._key, WAKEUPS_NAME))


def get_entry(store: Store, namespace: str, name: str) -> Entry | None:
    """Return an entry, or None when there is none or it has expired."""
    return store.update(namespace, name, read_only)[0]


def put_entry(store: Store, namespace: str, name: str, value: str, ttl_seconds: float) -> None:
    """Write an entry, whatever was there."""
    store.update(namespace, name, lambda *_: (Write(value, ttl_seconds), None))


def drop_entry(store: Store, namespace: str, name: str) -> None:
    """Delete an entry, if there is one."""
    store.update(namespace, name, lambda *_: (Write(None), None))


def compare_and_set(  # noqa: PLR0917 - in the order of reading
    store: Store, namespace: str, name: str, expected: str | None, value: str | None, ttl_seconds: float
) -> str | None:
    """Write an entry only where the present text is as expected, and return the text that was found.

    :param expected: the text that must be there; None: nothing may be there
    :param value: the text to write; None deletes the entry
    """

    def change(entry: Entry | None, _: float) -> tuple[Write | None, str | None]:
        found = None if entry is None else entry.value
        return (Write(value, ttl_seconds) if found == expected else None), found

    return store.update(namespace, name, change)


def _counter(entry: Entry | None) -> int:
    return int(entry.value) if entry is not None and entry.value.isdecimal() else 0


def _text_of(intent: Intent) -> str:
    fields = {name: getattr(intent, name) for name in KEPT_FIELDS}
    fields["sent_at"] = intent.sent_at.isoformat() if intent.sent_at else None
    return json.dumps(fields, sort_keys=True)


def _intent_of(entry: Entry) -> Intent:
    """Return the intent that a record holds; it may come from another version of this package, so it is checked."""
    try:
        fields = json.loads(entry.value)
        at = fields["sent_at"]
        kept = {name: fields[name] for name in KEPT_FIELDS}
        kept["sent_at"] = None if at is None else datetime.fromisoformat(at)
        intent = Intent(task=entry.name, age_seconds=entry.age_seconds, **kept)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"expected an intent of task {entry.name}, got {entry.value[:200]!r}") from error
    return intent
