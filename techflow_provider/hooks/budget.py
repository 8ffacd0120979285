"""The rate budget that belongs to a connection: shared by all processes that use its API key."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import Stats

from techflow_provider.hooks.api_server import this_component
from techflow_provider.hooks.connection import TechFlowConnection
from techflow_provider.hooks.state import API_SERVER, FILE, State, cursors_key, open_state, warn_of_hosts
from techflow_provider.polling.shared import SharedReader
from techflow_provider.state.budget import RequestClass, Reservation, SharedBudget
from techflow_provider.state.components import report_now_and_then
from techflow_provider.state.records import Records
from techflow_provider.state.store import Store
from techflow_provider.submission.direct import DirectStarts


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
        if request_class is RequestClass.ADMISSION:
            return reservation
        tags = {**self._tags, "request_class": request_class.value}
        if reservation.may_send:
            Stats.incr("techflow.requests", tags=tags)
        elif reservation.granted:
            Stats.timing("techflow.budget.wait", timedelta(seconds=reservation.wait_seconds), tags=tags)
        else:
            Stats.incr("techflow.budget.rejected", tags={**tags, "by": "budget"})
        return reservation

    def cool_down(self, seconds: float | None, reservation: Reservation) -> float:
        """Let no caller send for a while, because the server responded with 429, and return how long."""
        Stats.incr("techflow.budget.rejected", tags={**self._tags, "by": "server"})
        return super().cool_down(seconds, reservation)


def open_budget(connection: TechFlowConnection) -> MeteredBudget:
    """Return the budget of a connection's API key; connections with one key and base URL share it.

    :raises InvalidParameterError: `[techflow] state_url` names no store
    """
    return _budget_in(connection, open_state(connection))


def open_resources(connection: TechFlowConnection, reader_name: str | None = None) -> dict[str, Any]:
    """Return what a client takes of a connection: settings, budget, reader of the history, and log of its starts.

    :param reader_name: of a process that polls all the time
    :raises InvalidParameterError: `[techflow] state_url` names no store
    """
    state, settings = open_state(connection), connection.settings
    # Without a secret no webhook is accepted, and the wake-up counter never changes.
    wakeups = None if connection.webhook_secret is None else Records(state.store, settings.account).wakeups
    return {
        "settings": settings,
        "budget": _budget_in(connection, state),
        "reader": SharedReader(state.store, settings.account, reader_name, wakeups),
        "starts": DirectStarts(state.store, settings),
    }


def _budget_in(connection: TechFlowConnection, state: State) -> MeteredBudget:
    store, fallback, kind = state
    if kind == FILE:
        warn_of_hosts(store.location)
    if kind != API_SERVER:
        # An API server does it for its own callers.
        report_now_and_then(store, connection.settings.account, this_component())
    return MeteredBudget(connection, store, fallback)


def open_records(connection: TechFlowConnection) -> Records:
    """Return the records that the users of a connection's API key share.

    :raises InvalidParameterError: `[techflow] state_url` names no store
    """
    store = open_state(connection).store
    return Records(store, connection.settings.account)


def open_cursors(connection: TechFlowConnection) -> Records:
    """Return where event triggers keep their cursors: a place that doesn't change with the connection's API key.

    :raises InvalidParameterError: `[techflow] state_url` names no store
    """
    store = open_state(connection).store
    return Records(store, cursors_key(connection))
