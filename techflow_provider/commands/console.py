"""What all commands share: from `--conn-id` to a client outside of any task, and from a result to what is printed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from airflow.models.connection import Connection
from airflow.providers.common.compat.sdk import AirflowNotFoundException

from techflow_provider.client import Client, InvalidParameterError
from techflow_provider.client.parsing import Json, shorten
from techflow_provider.hooks.budget import open_budget, open_reader, open_starts
from techflow_provider.hooks.connection import CONNECTION_TYPE, TechFlowConnection

MAX_CELL_LENGTH = 60


def read_connection(conn_id: str) -> TechFlowConnection:
    """Read a connection from wherever Airflow stores it: environment, secrets backend or database.

    :raises InvalidParameterError: it doesn't exist, is of another type, or has a field that can't be used
    """
    try:
        # Outside of tasks and servers, Airflow's BaseHook doesn't read the database.
        connection = Connection.get_connection_from_secrets(conn_id)
    except AirflowNotFoundException as error:
        command = f"airflow connections add {conn_id} --conn-type {CONNECTION_TYPE} …"
        expected = f"an existing connection (to create it: {command})"
        raise InvalidParameterError("--conn-id", f"{conn_id!r}, which is not defined", expected) from error
    if connection.conn_type != CONNECTION_TYPE:
        received = f"{conn_id!r} of the type {connection.conn_type!r}"
        raise InvalidParameterError("--conn-id", received, f"a connection of the type {CONNECTION_TYPE!r}")
    return TechFlowConnection.read(connection, connection.extra_dejson)


def open_client(conn_id: str, sleep: Callable[[float], None] = time.sleep) -> Client:
    """Return a client with a connection's settings and budget; close it.

    :raises InvalidParameterError: the connection can't be used
    """
    connection = read_connection(conn_id)
    reader, starts = open_reader(connection), open_starts(connection)
    budget = open_budget(connection)
    return Client(settings=connection.settings, budget=budget, sleep=sleep, reader=reader, starts=starts)


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a command.

    :param value: for programs, as JSON
    :param text: for people
    :param code: the exit code
    """

    value: Json
    text: str
    code: int = 0

    def render(self, output: str) -> str:
        """Return what is printed for an `--output`."""
        return json.dumps(self.value, indent=2, ensure_ascii=False) if output == "json" else self.text


def table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    """Format rows as columns of text, without control characters; long cells are cut."""
    if not rows:
        return "none"
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    lines = [[column.upper() for column in columns], *cells]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def key_values(pairs: Mapping[str, object]) -> str:
    """Format names and values, one pair a line."""
    width = max(map(len, pairs), default=0)
    return "\n".join(f"{name.ljust(width)}  {_cell(value)}".rstrip() for name, value in pairs.items())


def _cell(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "" if value is None else shorten(text, MAX_CELL_LENGTH)
