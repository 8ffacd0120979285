"""Which store a store is: a random id that it gets on first use, and loses with everything else that it holds.

Before anything is concluded from what a store doesn't hold, the id is compared: an empty store has another, and so has
one that was emptied meanwhile.
"""

from __future__ import annotations

import secrets

from techflow_provider.state.store import Entry, Store, Write, read_only

# Named like a budget's key, so that it lies beside those, and never collides with one.
NAMESPACE = "store"
NAME = "id"
TTL_SECONDS = 10 * 365 * 24 * 3600.0


def store_entry(store: Store) -> Entry:
    """Return the entry with the store's id, whose age is that of the store.

    :raises StoreError: the store can't be used
    """
    present, _ = store.update(NAMESPACE, NAME, read_only)
    if present is not None:
        return present
    following = secrets.token_hex(8)

    def create(entry: Entry | None, _: float) -> tuple[Write | None, Entry]:
        if entry is not None:
            return None, entry
        return Write(following, TTL_SECONDS), Entry(NAME, following, 0.0)

    return store.update(NAMESPACE, NAME, create)
