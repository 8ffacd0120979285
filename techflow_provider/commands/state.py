"""`state` and `starts`: where the shared state is kept, and the starts in it whose execution isn't known.

They read and change the shared state, and send nothing.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

from techflow_provider.client import InvalidParameterError
from techflow_provider.client.parsing import Json
from techflow_provider.commands.console import Report, read_connection
from techflow_provider.hooks.state import choice, open_state, served_store
from techflow_provider.state.optimistic import OptimisticStore
from techflow_provider.state.sql import SqlStore
from techflow_provider.state.store import StoreError
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.legacy import LegacyState
from techflow_provider.submission.records import AttemptRecord

START_COLUMNS = ("name", "workflow_id", "sent_at", "waiting_for")


def show(args: Namespace) -> Report:
    """Show where the state is kept, why, and what endangers it there."""
    chosen, store = choice(), open_state(read_connection(args.conn_id)).store
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


def list_starts(args: Namespace) -> Report:
    """List the starts of a connection's account that name no execution."""
    records = sorted(_store(args.conn_id).pending(), key=lambda record: record.sent_at)
    return Report([_row(each) for each in records], START_COLUMNS)


def show_start(args: Namespace) -> Report:
    """Show the record of a start."""
    record = _record(args)
    return Report({**_row(record), **record.to_dict()})


def forget_start(args: Namespace) -> Report:
    """Record that nothing more is wanted from a request, so that the task's next attempt starts an execution."""
    record, store = _record(args), _store(args.conn_id, args.name)
    store.migrate()
    store.keep(record, replace(record, failed=True))
    text = f"{args.name} is forgotten: its next attempt starts an execution"
    return Report({"name": args.name, "forgotten": True}, text=text)


def _store(conn_id: str, name: str = "") -> AttemptStore:
    connection = read_connection(conn_id)
    store, settings = open_state(connection).store, connection.settings
    return AttemptStore(store, settings.site, name, legacy=LegacyState(store, settings.account, name))


def _record(args: Namespace) -> AttemptRecord:
    for each in _store(args.conn_id).pending():
        if each.submitter == args.name:
            return each
    raise InvalidParameterError("name", repr(args.name), "a name that `starts list` shows")


def _row(record: AttemptRecord) -> dict[str, Json]:
    return {
        "name": record.submitter,
        "workflow_id": record.workflow_id,
        "sent_at": record.sent_at.isoformat(timespec="seconds"),
        "waiting_for": record.awaited,
    }
