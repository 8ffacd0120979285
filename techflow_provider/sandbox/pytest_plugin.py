"""Fixtures for testing DAGs: a TechFlow sandbox, and Airflow's default connection pointing to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from techflow_provider.sandbox import Sandbox

# Every pytest run in the environment loads this module, so only the fixtures import the sandbox.
CONNECTION_VARIABLE = "AIRFLOW_CONN_TECHFLOW_DEFAULT"


@pytest.fixture
def techflow_sandbox() -> Iterator[Sandbox]:
    """Return a sandbox, served at its `base_url` while the test runs; executions take 0.2 seconds."""
    from techflow_provider.sandbox import Sandbox

    sandbox = Sandbox(execution_seconds=0.2)
    with sandbox.serve():
        yield sandbox


@pytest.fixture
def techflow_connection(techflow_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> str:
    """Point the connection `techflow_default` to `techflow_sandbox` while the test runs, and return its id."""
    connection = {
        "conn_type": "techflow",
        "host": techflow_sandbox.base_url,
        "password": techflow_sandbox.api_keys[0],
    }
    monkeypatch.setenv(CONNECTION_VARIABLE, json.dumps(connection))
    return "techflow_default"
