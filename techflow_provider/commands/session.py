"""From `--conn-id` to a client, as a person at a terminal needs it: outside of any task."""

from __future__ import annotations

import time
from collections.abc import Callable

from airflow.models.connection import Connection
from airflow.providers.common.compat.sdk import AirflowNotFoundException

from techflow_provider.client import Client, InvalidParameterError
from techflow_provider.hooks.budget import open_budget
from techflow_provider.hooks.connection import CONNECTION_TYPE, TechFlowConnection


def look_up(conn_id: str) -> TechFlowConnection:
    """Return a connection from wherever Airflow keeps it: environment, secrets backend or database.

    :raises InvalidParameterError: there is none, it is of another type, or a field can't be used
    """
    try:
        # Airflow's BaseHook does not look into the database outside of tasks and servers.
        found = Connection.get_connection_from_secrets(conn_id)
    except AirflowNotFoundException as error:
        expected = f"the id of a connection (airflow connections add {conn_id} --conn-type {CONNECTION_TYPE} …)"
        raise InvalidParameterError("--conn-id", f"{conn_id!r}, which is not defined", expected) from error
    if found.conn_type != CONNECTION_TYPE:
        received = f"{conn_id!r} of the type {found.conn_type!r}"
        raise InvalidParameterError("--conn-id", received, f"a connection of the type {CONNECTION_TYPE!r}")
    return TechFlowConnection.read(found, found.extra_dejson)


def open_client(conn_id: str, sleep: Callable[[float], None] = time.sleep) -> Client:
    """Return a client with a connection's settings and budget; close it.

    :raises InvalidParameterError: the connection can't be used
    """
    connection = look_up(conn_id)
    return Client(settings=connection.settings, budget=open_budget(connection), sleep=sleep)
