"""Which connections may use which part of the shared state, as Airflow keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from techflow_provider.client.settings import Settings
from techflow_provider.hooks.connection_cache import find_connection
from techflow_provider.hooks.state import cursors_key
from techflow_provider.state.signing import DEPLOYMENT, derive_key
from techflow_provider.state_server.access import Access, find_access

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore")]
URL, KEY, OTHER_KEY = "https://techflow.example/v2", "key-of-the-state-tests", "another-key-of-the-state-tests"


@pytest.fixture(autouse=True)
def connections(airflow_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections in the environment; every other name is looked up in the database and not found."""
    for name, connection in {
        "ONE": {"conn_type": "techflow", "host": URL, "password": KEY},
        "TWO": {"conn_type": "techflow", "host": URL, "password": OTHER_KEY},
        "THREE": {"conn_type": "techflow", "host": URL, "password": OTHER_KEY, "extra": {"account": "other"}},
        "HTTP": {"conn_type": "http", "host": URL, "password": KEY},
        "BROKEN": {"conn_type": "techflow", "host": URL, "password": ""},
    }.items():
        monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps(connection))


def access(name: str) -> Access:
    found = find_access(name)
    assert found is not None
    return found


def get(namespace: str) -> dict[str, object]:
    return {"namespace": namespace, "name": "a"}


def test_a_connection_may_use_the_names_of_its_own_account_and_its_own_cursors() -> None:
    account, connection = Settings(KEY, URL).account, find_connection("one")
    assert connection is not None
    for namespace in (account, f"{account}/attempts", f"{cursors_key(connection)}/x"):
        assert access("one").allows(get(namespace))


def test_it_may_not_use_those_of_another() -> None:
    account, connection = Settings(OTHER_KEY, URL).account, find_connection("two")
    assert connection is not None
    for namespace in (
        account,
        f"{account}/attempts",
        f"{cursors_key(connection)}/x",
        "",
        "doctor",
        f"x/{account}",
    ):
        assert not access("one").allows(get(namespace))


def test_an_account_that_the_connection_names_has_records_of_its_own() -> None:
    site, other = (Settings(KEY, URL, account_name=name).site for name in ("", "other"))
    assert access("three").allows(get(f"{other}/claims"))
    assert not access("three").allows(get(f"{site}/claims"))
    assert not access("one").allows(get(f"{other}/claims"))


def test_it_may_read_which_store_this_is_and_not_write_it() -> None:
    assert access("one").allows(get("store"))
    assert not access("one").allows({**get("store"), "found": None, "following": None, "now": 1.0})


def test_it_may_read_all_wake_up_counters_and_increment_its_own() -> None:
    swap = {"namespace": "wakeups", "found": None, "following": None, "now": 1.0}
    assert access("one").allows({"namespace": "wakeups", "prefix": ""})
    assert access("one").allows({**swap, "name": Settings(KEY, URL).account})
    assert not access("one").allows({**swap, "name": Settings(OTHER_KEY, URL).account})


@pytest.mark.parametrize("name", ["http", "broken", "unknown", "", "one/../two", DEPLOYMENT])
def test_another_type_a_broken_and_an_unknown_connection_may_use_nothing(name: str) -> None:
    assert find_access(name) is None


def test_the_holder_of_the_state_secret_may_use_every_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_SECRET", "a-secret-of-the-deployment")
    found = access(DEPLOYMENT)
    assert found.signer.key == derive_key("a-secret-of-the-deployment", DEPLOYMENT)
    assert found.allows(get(Settings(KEY, URL).account))


def test_no_key_shows_in_a_repr() -> None:
    assert KEY not in repr(access("one"))
    assert repr(access("one").signer.key) not in repr(access("one"))
