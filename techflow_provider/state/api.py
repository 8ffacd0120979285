"""The operations of the state's API, as JSON for both of its sides.

An update runs where the caller is, which knows what to write; the server only reads rows and swaps them. Changes to a
budget run at the server instead, so that callers that never wait can't shut each other out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from techflow_provider.state import identity
from techflow_provider.state.budget_state import read_change, result_to_dict
from techflow_provider.state.optimistic import OptimisticStore, Reply, Row, Session
from techflow_provider.state.store import Entry, Store, Write, read_only
from techflow_provider.state.wire import build

# A namespace or a name; the longest that this package uses are far shorter.
MAX_NAME_LENGTH = 2000
# When an entry expires, where the store doesn't say it.
UNKNOWN_EXPIRY = 1e12


@dataclass(frozen=True, slots=True)
class _Swap:
    found: Row | None
    following: Row | None
    now: float


def carry_out(store: Store, operation: Mapping[str, Any]) -> Any:
    """Carry out an operation on a store, and return its result as JSON.

    :raises ValueError: it isn't an operation
    :raises StoreError: the store can't be used
    """
    namespace = _text(operation, "namespace")
    if "prefix" in operation:
        found = store.entries(namespace, _text(operation, "prefix"))
        return [[each.name, each.value, each.age_seconds] for each in found]
    name = _text(operation, "name")
    if "change" in operation:
        change: Any = read_change(operation)
        return result_to_dict(store.update(namespace, name, change))
    session: Session = store if isinstance(store, OptimisticStore) else _RowsOf(store)
    if "now" in operation:
        swap = build(_Swap, operation)
        return asdict(session.swap(namespace, name, swap.found, swap.following, swap.now))
    if namespace == identity.NAMESPACE:
        # A store has an id from the moment at which somebody asks for it.
        identity.store_entry(store)
    return asdict(session.fetch(namespace, name))


def is_write(operation: Mapping[str, Any]) -> bool:
    """Whether an operation may write something."""
    return "now" in operation or "change" in operation


class _RowsOf:
    """The entries of a store that has no versions as rows, compared by their text alone."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def fetch(self, namespace: str, name: str) -> Reply:
        entry, now = self._store.update(namespace, name, read_only)
        return Reply(_row(entry, now), now)

    def swap(self, namespace: str, name: str, found: Row | None, following: Row | None, now: float) -> Reply:  # noqa: ARG002 - such a store has its own
        def change(entry: Entry | None, now: float) -> tuple[Write | None, Reply]:
            if (entry and entry.value) != (found and found.value):
                return None, Reply(_row(entry, now), now)
            write = Write(None) if following is None else Write(following.value, following.expires - following.written)
            return write, Reply(None, now, done=True)

        return self._store.update(namespace, name, change)


def _row(entry: Entry | None, now: float) -> Row | None:
    return None if entry is None else Row(entry.value, "", now - entry.age_seconds, UNKNOWN_EXPIRY)


def _text(operation: Mapping[str, Any], field: str) -> str:
    value = operation.get(field)
    if not isinstance(value, str) or len(value) > MAX_NAME_LENGTH:
        raise ValueError(f"{field}: expected a text of at most {MAX_NAME_LENGTH} characters")
    return value
