"""What all commands share: from `--conn-id` to a client outside of any task, and from a result to what is printed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow.models.connection import Connection
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.secrets.environment_variables import EnvironmentVariablesBackend

from techflow_provider.client import Client, InvalidParameterError
from techflow_provider.client.parsing import Json, shorten
from techflow_provider.client.text import printable
from techflow_provider.compat import is_database_blocked
from techflow_provider.hooks.budget import open_resources
from techflow_provider.hooks.connection import CONNECTION_TYPE, TechFlowConnection

MAX_CELL_LENGTH = 60


def read_connection(conn_id: str) -> TechFlowConnection:
    """Read a connection from wherever Airflow stores it: environment, secrets backend or database.

    :raises InvalidParameterError: it doesn't exist, is of another type, or has a field that can't be used
    """
    return TechFlowConnection.read(find_connection(conn_id))


def find_connection(conn_id: str) -> Connection:
    """Return a connection of the type `techflow`.

    :raises InvalidParameterError: it doesn't exist, or is of another type
    """
    try:
        # Outside of tasks and servers, Airflow's BaseHook doesn't read the database.
        connection = Connection.get_connection_from_secrets(conn_id)
    except AirflowNotFoundException as error:
        command = f"airflow connections add {conn_id} --conn-type {CONNECTION_TYPE} …"
        expected = f"an existing connection (to create it: {command})"
        received = f"{conn_id!r}, which is not defined"
        if is_database_blocked():
            received += " where a task's shell can read it: Airflow's database is for Python tasks"
        raise InvalidParameterError("--conn-id", received, expected) from error
    if connection.conn_type != CONNECTION_TYPE:
        received = f"{conn_id!r} of the type {connection.conn_type!r}"
        raise InvalidParameterError("--conn-id", received, f"a connection of the type {CONNECTION_TYPE!r}")
    return connection


def connection_in_environment(conn_id: str) -> Connection | None:
    """Return what an environment variable defines; None without one, and for one that Airflow passes over silently."""
    try:
        found: Connection | None = EnvironmentVariablesBackend().get_connection(conn_id)
    except (TypeError, ValueError):
        return None
    return found


def open_client(conn_id: str) -> Client:
    """Return a client with a connection's settings and budget; close it.

    :raises InvalidParameterError: the connection can't be used
    """
    return Client(**open_resources(read_connection(conn_id)))


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a command.

    :param value: what is printed as JSON, and otherwise as a table of rows or as names and values
    :param columns: those of the table
    :param text: what is printed for people instead
    :param code: the exit code
    """

    value: Any
    columns: Sequence[str] = ()
    text: str = ""
    code: int = 0

    def render(self, output: str) -> str:
        """Return what is printed for an `--output`."""
        if output == "json":
            return json.dumps(self.value, indent=2, ensure_ascii=False)
        if self.text:
            return self.text
        return table(self.value, self.columns) if isinstance(self.value, list) else _key_values(self.value)


def table(rows: Sequence[Mapping[str, Json]], columns: Sequence[str]) -> str:
    """Format rows as columns of text, without control characters; long cells are cut."""
    if not rows:
        return "none"
    cells = [[shorten(_text(row.get(column)), MAX_CELL_LENGTH) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    lines = [[column.upper() for column in columns], *cells]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _key_values(pairs: Mapping[str, Json]) -> str:
    """Format names and values, one pair a line."""
    names = {name: printable(name) for name in pairs}
    width = max(map(len, names.values()), default=0)
    return "\n".join(f"{names[name].ljust(width)}  {printable(_text(value))}".rstrip() for name, value in pairs.items())


def _text(value: Json) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return "" if value is None else str(value)
