"""The operations of the state's API, as JSON for both of its sides.

An update runs where the caller is, which knows what to write; the server only reads rows and swaps them. Changes to a
budget run at the server instead, so that callers that never wait can't shut each other out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from techflow_provider.state import identity
from techflow_provider.state.budget_state import read_change
from techflow_provider.state.optimistic import Operation, OptimisticStore, Reply, Row
from techflow_provider.state.store import Entry, Store, Write
from techflow_provider.state.wire import build

# A namespace or a name; the longest that this package uses are far shorter.
MAX_NAME_LENGTH = 2000
# What one request may hold; its body is many times as long as the longest operation.
MAX_OPERATIONS = 20
MAX_BODY_BYTES = 1024 * 1024
# When an entry expires, where the store doesn't say it.
UNKNOWN_EXPIRY = 1e12


def request_bodies(operations: Iterable[Mapping[str, Any]]) -> Iterator[tuple[bytes, int]]:
    """Return the bodies of the requests that operations take, each with how many it holds."""
    batch: list[str] = []
    for text in (json.dumps(each, separators=(",", ":")) for each in operations):
        if batch and (len(batch) == MAX_OPERATIONS or sum(map(len, (text, *batch))) > MAX_BODY_BYTES - 100):
            yield _body(batch), len(batch)
            batch = []
        batch.append(text)
    yield _body(batch), len(batch)


def _body(operations: list[str]) -> bytes:
    return f'{{"operations":[{",".join(operations)}]}}'.encode()


def carry_out(store: Store, operation: Mapping[str, Any]) -> Any:
    """Carry out an operation on a store, and return its result as JSON.

    :raises ValueError: it isn't an operation
    :raises StoreError: the store can't be used
    """
    if not all(len(str(operation[field])) <= MAX_NAME_LENGTH for field in ("namespace", "name") if field in operation):
        raise ValueError(f"expected names of at most {MAX_NAME_LENGTH} characters")
    if "prefix" in operation:
        return [asdict(each) for each in store.entries(str(operation["namespace"]), str(operation["prefix"]))]
    if "change" in operation:
        change: Any = read_change(operation)
        return asdict(store.update(str(operation["namespace"]), str(operation["name"]), change))
    asked = build(Operation, operation)
    if asked.namespace == identity.NAMESPACE:
        # A store has an id from the moment at which somebody asks for it.
        identity.store_entry(store)
    if isinstance(store, OptimisticStore):
        return asdict(store.exchange([asked])[0])
    return asdict(store.update(asked.namespace, asked.name, partial(_swap, asked)))


def is_write(operation: Mapping[str, Any]) -> bool:
    """Whether an operation may write something."""
    return operation.get("now") is not None or "change" in operation


def _swap(asked: Operation, entry: Entry | None, now: float) -> tuple[Write | None, Reply]:
    """Carry out an operation on an entry of a store that has no versions, by comparing the texts alone."""
    found, following = asked.found, asked.following
    if asked.now is None or (entry and entry.value) != (found and found.value):
        row = None if entry is None else Row(entry.value, "", now - entry.age_seconds, UNKNOWN_EXPIRY)
        return None, Reply(row, now)
    write = Write(None) if following is None else Write(following.value, following.expires - following.written)
    return write, Reply(None, now, done=True)
