"""The commands about starts whose execution isn't known: they read and change the shared state, and send nothing."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

from techflow_provider.client import InvalidParameterError, TechFlowError
from techflow_provider.client.parsing import Json
from techflow_provider.commands.console import Report, key_values, read_connection, table
from techflow_provider.hooks.state import open_state
from techflow_provider.state.store import StoreError
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.records import AttemptRecord

COLUMNS = ("name", "workflow_id", "sent_at", "waiting_for")


def list_starts(args: Namespace) -> Report:
    """List the starts of a connection's account that name no execution."""
    try:
        records = _store(args.conn_id).pending()
    except StoreError as error:
        raise TechFlowError(str(error)) from error
    rows = [_row(each) for each in sorted(records, key=lambda record: record.sent_at)]
    return Report([*rows], table(rows, COLUMNS))


def show_start(args: Namespace) -> Report:
    """Show the record of a start."""
    record = _record(args)
    value: dict[str, Json] = {**_row(record), **record.to_dict()}
    return Report(value, key_values(value))


def forget_start(args: Namespace) -> Report:
    """Record that nothing more is wanted from a request, so that the task's next attempt starts an execution."""
    record, store = _record(args), _store(args.conn_id, args.name)
    try:
        store.migrate()
        store.keep(record, replace(record, failed=True))
    except StoreError as error:
        raise TechFlowError(str(error)) from error
    value: dict[str, Json] = {"name": args.name, "forgotten": True}
    return Report(value, f"{args.name} is forgotten: its next attempt starts an execution")


def _store(conn_id: str, name: str = "") -> AttemptStore:
    connection = read_connection(conn_id)
    settings = connection.settings
    return AttemptStore(open_state(connection)[0], settings.site, name, former=((settings.account, name),))


def _record(args: Namespace) -> AttemptRecord:
    try:
        found = [each for each in _store(args.conn_id).pending() if _name(each) == args.name]
    except StoreError as error:
        raise TechFlowError(str(error)) from error
    if not found:
        raise InvalidParameterError("name", repr(args.name), "a name that `starts list` shows")
    return found[0]


def _name(record: AttemptRecord) -> str:
    return record.submission_id.rpartition("#")[0] or record.submission_id


def _row(record: AttemptRecord) -> dict[str, Json]:
    waiting_for = "its response" if record.in_flight else "a search of the history, or a person"
    return {
        "name": _name(record),
        "workflow_id": record.workflow_id,
        "sent_at": record.sent_at.isoformat(timespec="seconds"),
        "waiting_for": waiting_for,
    }
