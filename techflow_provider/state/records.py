"""What processes write down for each other beside the budget: intents, claims, webhooks, watchers, pollers, the bell.

An intent says that a task is about to start an execution, and later which one it is; a claim says to which task an
execution belongs. Every method is one atomic operation on the store and may raise `StoreError`: unlike a budget,
records have no fallback, since a record that others can't see protects nobody.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime

from techflow_provider.state.store import Entry, Store, StoreError

# Longer than any task that a record could matter to.
RECORD_TTL_SECONDS = 30 * 24 * 3600.0
DELIVERY_TTL_SECONDS = 24 * 3600.0
# A poller says that it is there with each look, which are never further apart.
POLLER_TTL_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Intent:
    """A task's wish to start an execution of a workflow.

    :param task: the task's identity
    :param workflow_id: the workflow
    :param begun_at: aware time from which an execution could be this task's
    :param author: names the try that wrote it, so that two tries of one task can be told apart
    :param lease_seconds: how long after it was written its request may still be on the way
    :param payload_digest: what tells its payload from another, None without a payload
    :param execution_id: the execution, once it is known
    :param age_seconds: time since it was written, by the store's clock
    """

    task: str
    workflow_id: str
    begun_at: datetime
    author: str
    lease_seconds: float
    payload_digest: str | None = None
    execution_id: str | None = None
    age_seconds: float = 0.0

    @property
    def in_flight(self) -> bool:
        """Whether the request may be on the way, so that an execution that nobody claims may be this task's."""
        return self.execution_id is None and self.age_seconds < self.lease_seconds


class Records:
    """The records of one budget's users.

    :param store: where they are kept
    :param key: the budget's name (see `budget_key`)
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._intents = f"{key}/intents"
        self._claims = f"{key}/claims"
        self._deliveries = f"{key}/deliveries"
        self._pollers = f"{key}/pollers"
        self._lookouts = f"{key}/lookouts"
        self._bell = key

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
        entry = self._store.get(self._intents, task)
        return None if entry is None else _intent_of(entry)

    def intents(self, workflow_id: str) -> list[Intent]:
        """Return all intents for a workflow, settled or not."""
        found = map(_intent_of, self._store.entries(self._intents))
        return [intent for intent in found if intent.workflow_id == workflow_id]

    def replace(self, present: Intent, following: Intent) -> bool:
        """Write another intent in place of the present one, whose lease it begins anew; False when it changed since."""
        return self._swap_intent(present.task, _text_of(present), _text_of(following))

    def renew(self, intent: Intent) -> bool:
        """Begin the lease of an intent anew; False when it changed since."""
        return self.replace(intent, intent)

    def settle(self, intent: Intent, execution_id: str) -> bool:
        """Write down the execution of an intent; False when the intent changed since. Claim the execution first."""
        return self.replace(intent, replace(intent, execution_id=execution_id))

    def finish(self, intent: Intent) -> bool:
        """Drop an intent; False when it changed since."""
        return self._swap_intent(intent.task, _text_of(intent), None)

    def _swap_intent(self, task: str, expected: str | None, value: str | None) -> bool:
        return self._store.swap(self._intents, task, expected, value, RECORD_TTL_SECONDS) == expected

    def claim(self, execution_id: str, task: str) -> str:
        """Claim an execution for a task unless it is claimed, and return the task that holds it now."""
        return self._store.swap(self._claims, execution_id, None, task, RECORD_TTL_SECONDS) or task

    def holder(self, execution_id: str) -> str | None:
        """Return the task that holds an execution."""
        entry = self._store.get(self._claims, execution_id)
        return None if entry is None else entry.value

    def claims(self) -> dict[str, str]:
        """Return all claimed executions with the tasks that hold them."""
        return {entry.name: entry.value for entry in self._store.entries(self._claims)}

    def release(self, execution_id: str, task: str) -> bool:
        """Give up a task's claim; False when the task does not hold it."""
        return self._store.swap(self._claims, execution_id, task, None, RECORD_TTL_SECONDS) == task

    def see_delivery(self, delivery_id: str, ttl_seconds: float = DELIVERY_TTL_SECONDS) -> bool:
        """Remember a webhook's delivery; False when it was seen before."""
        return self._store.swap(self._deliveries, delivery_id, None, "seen", ttl_seconds) is None

    def attend(self, poller: str) -> int:
        """Write down that a poller is there, and return how many were in the last two minutes."""
        self._store.put(self._pollers, poller, "", POLLER_TTL_SECONDS)
        return len(self._store.entries(self._pollers))

    def delivery_ages(self) -> list[float]:
        """Return the ages of the deliveries that are remembered, in seconds."""
        return [entry.age_seconds for entry in self._store.entries(self._deliveries)]

    def lookout(self, watcher: str) -> Entry | None:
        """Return what a watcher of events has written down."""
        return self._store.get(self._lookouts, watcher)

    def replace_lookout(self, watcher: str, present: str | None, following: str) -> bool:
        """Write down what a watcher of events knows; False when another process did so since."""
        return self._store.swap(self._lookouts, watcher, present, following, RECORD_TTL_SECONDS) == present

    def ring(self) -> int:
        """Let those who listen know that there may be news, and return the bell's count."""
        return self._store.ring(self._bell)

    def bell(self) -> int:
        """Return the bell's count; another one than last time says that it rang."""
        return self._store.bell(self._bell)


def _text_of(intent: Intent) -> str:
    fields = {
        "workflow_id": intent.workflow_id,
        "begun_at": intent.begun_at.isoformat(),
        "author": intent.author,
        "lease_seconds": float(intent.lease_seconds),
        "payload_digest": intent.payload_digest,
        "execution_id": intent.execution_id,
    }
    return json.dumps(fields, sort_keys=True)


def _intent_of(entry: Entry) -> Intent:
    """Return the intent that a record holds; it may come from another version of this package, so it is checked."""
    try:
        fields = json.loads(entry.value)
        intent = Intent(
            task=entry.name,
            workflow_id=fields["workflow_id"],
            begun_at=datetime.fromisoformat(fields["begun_at"]),
            author=fields["author"],
            lease_seconds=float(fields["lease_seconds"]),
            payload_digest=fields.get("payload_digest"),
            execution_id=fields.get("execution_id"),
            age_seconds=entry.age_seconds,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"expected an intent of task {entry.name}, got {entry.value[:200]!r}") from error
    return intent
