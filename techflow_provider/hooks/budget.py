"""The rate budget that belongs to a connection: shared by all processes that use its API key."""

from __future__ import annotations

import functools
import logging
import os
import re
from datetime import timedelta
from pathlib import Path

from airflow.providers.common.compat.sdk import Stats, conf

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.text import get_logger
from techflow_provider.hooks.api_server import http_store
from techflow_provider.hooks.connection import TechFlowConnection
from techflow_provider.state.budget import RequestClass, Reservation, SharedBudget
from techflow_provider.state.open import fallback_store, open_store
from techflow_provider.state.records import Records
from techflow_provider.state.store import StateUrlError, Store, budget_key

log: logging.Logger = get_logger(__name__)

# The executors whose tasks all run on the scheduler's host.
ONE_HOST_EXECUTORS = frozenset({"LocalExecutor", "SequentialExecutor", "DebugExecutor", "InProcessExecutor"})


class MeteredBudget(SharedBudget):
    """A connection's budget that reports to Airflow's metrics, tagged with `conn_id`.

    `techflow.requests` counts the requests sent, `techflow.budget.wait` times each wait for a slot, and
    `techflow.budget.rejected` counts the requests that got none: `by` the budget, because the slot was too far away, or
    `by` the server, with a 429.

    :param connection: the connection
    :param store: where the budget is kept
    :param fallback: where this host's processes keep it while `store` can't be used
    """

    def __init__(self, connection: TechFlowConnection, store: Store, fallback: Store) -> None:
        key = connection.settings.account
        super().__init__(store, key, connection.requests_per_minute, connection.burst, fallback=fallback)
        self._tags = {"conn_id": connection.conn_id}

    def reserve(
        self, request_class: RequestClass, within_seconds: float, earlier: Reservation | None = None
    ) -> Reservation:
        """Take the next slot if it is no further away than `within_seconds`; never waits."""
        reservation = super().reserve(request_class, within_seconds, earlier)
        if request_class is not RequestClass.ADMISSION:
            self._count(request_class, reservation)
        return reservation

    def _count(self, request_class: RequestClass, reservation: Reservation) -> None:
        tags = {**self._tags, "request_class": request_class.value}
        if reservation.may_send:
            Stats.incr("techflow.requests", tags=tags)
        elif reservation.granted:
            Stats.timing("techflow.budget.wait", timedelta(seconds=reservation.wait_seconds), tags=tags)
        else:
            Stats.incr("techflow.budget.rejected", tags={**tags, "by": "budget"})

    def cool_down(self, seconds: float | None, reservation: Reservation) -> float:
        """Let no caller send for a while, because the server responded with 429, and return how long."""
        Stats.incr("techflow.budget.rejected", tags={**self._tags, "by": "server"})
        return super().cool_down(seconds, reservation)


def open_budget(connection: TechFlowConnection) -> MeteredBudget:
    """Return the budget of a connection's API key; connections with one key and base URL share it.

    :raises InvalidParameterError: `[techflow] state_url` names no store
    """
    store, fallback = open_state(connection)
    if is_for_one_host():
        warn_of_hosts(store.location)
    return MeteredBudget(connection, store, fallback)


def open_records(connection: TechFlowConnection) -> Records:
    """Return the records that the users of a connection's API key share.

    :raises InvalidParameterError: `[techflow] state_url` names no store
    """
    store, _ = open_state(connection)
    return Records(store, connection.settings.account)


def open_cursors(connection: TechFlowConnection) -> Records:
    """Return where event triggers keep their cursors: a place that doesn't change with the connection's API key.

    :raises InvalidParameterError: `[techflow] state_url` names no store
    """
    store, _ = open_state(connection)
    return Records(store, cursors_key(connection))


def cursors_key(connection: TechFlowConnection) -> str:
    """Return the name under which a connection's event triggers keep their cursors."""
    return budget_key(connection.settings.base_url, f"connection {connection.conn_id}")


def served_store() -> Store:
    """Return the store that an API server offers to other processes.

    :raises InvalidParameterError: `[techflow] state_url` names no store
    """
    return open_state()[0]


def open_state(connection: TechFlowConnection | None = None) -> tuple[Store, Store]:
    """Return the store that `[techflow] state_url` names, and this host's own to use while that one fails.

    :param connection: signs the requests to an API server
    :raises InvalidParameterError: it names no store
    """
    here = open_store(str(default_state_file()))
    if not state_url():
        return here, fallback_store()
    if connection is not None and state_url().lower().startswith(("https://", "http://")):
        return http_store(state_url(), connection), here
    try:
        return open_store(state_url()), here
    except StateUrlError as error:
        raise InvalidParameterError("[techflow] state_url", error.received, error.expected) from error


def state_url() -> str:
    """Return `[techflow] state_url`, empty for the default file; it may hold a password."""
    url: str = conf.get("techflow", "state_url", fallback="").strip()
    return url


def default_state_file() -> Path:
    """Return the file in which the processes of one host share their state."""
    home = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser().absolute()
    return home / "techflow" / "state.db"


def is_for_one_host() -> bool:
    """Whether the state is a file, which hosts can't share."""
    scheme, colon, _ = state_url().partition("://")
    return not colon or scheme == "sqlite"


def spreading_executors() -> list[str]:
    """Return the configured executors that may run tasks on several hosts (`[core] executor`)."""
    configured = re.split(r"[,;\s]+", conf.get("core", "executor", fallback=""))
    # A class may be preceded by a team, an alias and a module: `team=alias:module.Class`.
    names = {re.split(r"[=:.]", entry)[-1] for entry in configured}
    return sorted(name for name in names if name and name not in ONE_HOST_EXECUTORS)


@functools.cache
def warn_of_hosts(store: str) -> None:
    """Warn once per process that hosts that don't share the state each use the whole limit."""
    executors = spreading_executors()
    if executors:
        log.warning(
            "%s may run tasks on several hosts, and the rate budget is kept in %s, which other hosts can't see: set "
            "[techflow] state_url to a Redis, or the connection's requests_per_minute to one host's part of the limit",
            " and ".join(executors),
            store,
        )
