"""The rate budget that belongs to a connection: shared by all processes that use its API key."""

from __future__ import annotations

import os
from pathlib import Path

from airflow.providers.common.compat.sdk import conf

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.hooks.connection import TechFlowConnection
from techflow_provider.state.budget import Budget, SharedBudget
from techflow_provider.state.store import StateUrlError, Store, budget_key, open_store


def open_budget(connection: TechFlowConnection) -> Budget:
    """Return the budget of a connection's API key; connections with one key and base URL share it.

    :raises InvalidParameterError: `[techflow] state_url` names no store
    """
    settings = connection.settings
    store, spare = open_state()
    key = budget_key(settings.base_url, settings.api_key)
    return SharedBudget(store, key, connection.requests_per_minute, connection.burst, fallback=spare)


def open_state() -> tuple[Store, Store | None]:
    """Return the store that `[techflow] state_url` names, and this host's file where that is another one.

    :raises InvalidParameterError: it names no store
    """
    url = conf.get("techflow", "state_url", fallback="").strip()
    here = open_store(str(default_state_file()))
    if not url:
        return here, None
    try:
        return open_store(url), here
    except StateUrlError as error:
        raise InvalidParameterError("[techflow] state_url", error.received, error.expected) from error


def default_state_file() -> Path:
    """Return the file in which the processes of one host share their state."""
    home = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser().absolute()
    return home / "techflow" / "state.db"
