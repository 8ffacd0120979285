"""Which connections receive webhooks, as Airflow keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from techflow_provider.webhooks.receiver import find_subscriber

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore")]
SECRET = "secret-of-the-webhook-tests"


@pytest.fixture(autouse=True)
def connections(airflow_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections in the environment; every other name is looked up in the database and not found."""
    extras: dict[str, dict[str, object]] = {
        "GOOD": {"conn_type": "techflow", "password": "k1", "extra": {"webhook_secret": SECRET}},
        "SAME_KEY": {"conn_type": "techflow", "password": "k1", "extra": {"webhook_secret": SECRET}},
        "OFF": {"conn_type": "techflow", "password": "k2"},
        "HTTP": {"conn_type": "http", "password": "k1", "extra": {"webhook_secret": SECRET}},
        "BROKEN": {"conn_type": "techflow", "password": "k1", "extra": {"webhook_secret": "short"}},
    }
    for name, connection in extras.items():
        monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps(connection))


def test_a_connection_with_a_secret_receives() -> None:
    found = find_subscriber("good")
    assert found is not None
    assert found.secret is not None
    assert found.secret.text == SECRET


def test_connections_with_one_api_key_share_a_wakeup_counter() -> None:
    good, same = find_subscriber("good"), find_subscriber("same_key")
    assert good is not None
    assert same is not None
    assert good.records.notify() == same.records.wakeups()


@pytest.mark.parametrize("conn_id", ["off", "broken"])
def test_a_connection_without_a_usable_secret_is_off(conn_id: str) -> None:
    found = find_subscriber(conn_id)
    assert found is not None
    assert found.secret is None


@pytest.mark.parametrize("conn_id", ["http", "unknown"])
def test_another_type_and_an_unknown_connection_are_foreign(conn_id: str) -> None:
    assert find_subscriber(conn_id) is None
