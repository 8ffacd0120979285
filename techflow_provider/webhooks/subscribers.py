"""From a connection's id to what the receiver needs of it: the secret, and the bell of its API key."""

from __future__ import annotations

import logging

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.hooks.budget import open_records
from techflow_provider.hooks.connection import CONNECTION_TYPE, TechFlowConnection
from techflow_provider.webhooks.receiver import Subscriber

log = logging.getLogger(__name__)


def find_subscriber(conn_id: str) -> Subscriber | None:
    """Return what a connection says about webhooks; None when it is unknown, of another type, or can't be used."""
    try:
        connection = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        return None
    if connection.conn_type != CONNECTION_TYPE:
        return None
    try:
        content = TechFlowConnection.read(connection, connection.extra_dejson)
        return Subscriber(content.webhook_secret, open_records(content))
    except InvalidParameterError as error:
        log.warning("Webhooks for a connection that can't be used are refused: %s", error)
        return None
