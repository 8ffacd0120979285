"""`state show` and `state init`: where the shared state is kept, and the statements that create its table."""

from __future__ import annotations

from argparse import Namespace

from techflow_provider.commands.console import Report, read_connection
from techflow_provider.hooks.state import choice, open_state, served_store
from techflow_provider.state.optimistic import OptimisticStore
from techflow_provider.state.sql import SqlStore
from techflow_provider.state.store import StoreError


def show(args: Namespace) -> Report:
    """Show where the state is kept, why, and what endangers it there."""
    chosen, (store, _) = choice(), open_state(read_connection(args.conn_id))
    found = {"kind": chosen.kind, "location": store.location, "reason": chosen.reason}
    try:
        warnings = store.warnings() if isinstance(store, OptimisticStore) else []
        store.entries("store")
    except StoreError as error:
        return Report({**found, "error": str(error)}, code=1)
    return Report({**found, "warnings": warnings})


def init(_: Namespace) -> Report:
    """Return the statements that create the table, for a user who may."""
    store = served_store()
    if not isinstance(store, SqlStore):
        return Report([], text=f"-- {store.location} needs no table")
    return Report([*store.ddl], text="\n".join(f"{statement};" for statement in store.ddl))
