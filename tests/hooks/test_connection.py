"""An Airflow connection is read in every form in which it can be written."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import Connection

from techflow_provider.client import InvalidParameterError
from techflow_provider.hooks.connection import ConnectionFieldError, TechFlowConnection

pytestmark = pytest.mark.airflow
KEY = "key-of-the-connection-tests"


def read(extra: dict[str, Any] | None = None, **fields: Any) -> TechFlowConnection:
    known = {"conn_id": "c", "host": None, "schema": None, "port": None, "password": KEY}
    return TechFlowConnection.read(SimpleNamespace(**{**known, **fields}), extra or {})


def test_an_api_key_is_sufficient() -> None:
    connection = read()
    assert connection.settings.api_key == KEY
    assert connection.settings.base_url == "https://api.techflow.com/v2"
    assert (connection.requests_per_minute, connection.burst) == (100, 6)


@pytest.mark.parametrize(
    ("fields", "base_url"),
    [
        ({"host": "http://localhost:8765/v2/"}, "http://localhost:8765/v2"),
        ({"host": "api.example.com"}, "https://api.example.com"),
        ({"host": "api.example.com", "schema": "v3"}, "https://api.example.com/v3"),
        ({"host": "api.example.com", "schema": "http", "port": 8080}, "http://api.example.com:8080"),
        ({"host": "  "}, "https://api.techflow.com/v2"),
    ],
)
def test_the_base_url_is_the_host_or_is_built_from_the_parts_of_a_uri(fields: dict[str, Any], base_url: str) -> None:
    assert read(**fields).settings.base_url == base_url


@pytest.mark.filterwarnings("ignore")  # Airflow 2.11 warns about itself when a connection is made
def test_a_uri_that_airflow_has_parsed_is_read() -> None:
    connection = Connection(  # type: ignore[call-arg]  # taken by a hand-written __init__
        conn_id="c", uri=f"techflow://:{KEY}@api.example.com:444/v2?requests_per_minute=40"
    )
    content = TechFlowConnection.read(connection, connection.extra_dejson)
    assert content.settings.base_url == "https://api.example.com:444/v2"
    assert content.settings.api_key == KEY
    assert content.requests_per_minute == 40


def test_numbers_may_be_strings_as_forms_send_them() -> None:
    connection = read({"requests_per_minute": "50", "burst": "", "timeout": "2.5", "verify": "False"})
    assert (connection.requests_per_minute, connection.burst) == (50, 6)
    assert connection.settings.timeout_seconds == 2.5
    assert connection.settings.verify is False


@pytest.mark.parametrize(
    ("fields", "extra", "message"),
    [
        ({"password": ""}, {}, "connection 'c', password (the API key): expected"),
        ({"host": "ftp://x"}, {}, "connection 'c', host (the base URL): expected"),
        ({}, {"requests_per_minute": "many"}, "extra requests_per_minute: expected a number from 1 to 100000"),
        ({}, {"requests_per_minute": 0}, "extra requests_per_minute: expected a number from 1 to 100000"),
        ({}, {"burst": True}, "extra burst: expected"),
        ({}, {"timeout": -1}, "extra timeout: expected"),
        ({}, {"webhook_secret": "short"}, "extra webhook_secret: expected 16 characters or more"),
        ({}, {"verify": 3}, "extra verify: expected true, false or the path"),
    ],
)
def test_the_error_names_an_invalid_field(fields: dict[str, Any], extra: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        read(extra, **fields)
    assert message in str(caught.value)


def test_the_error_keeps_field_and_connection_when_it_is_pickled() -> None:
    with pytest.raises(ConnectionFieldError) as caught:
        read({"timeout": "soon"})
    there = pickle.loads(pickle.dumps(caught.value))
    assert (there.conn_id, there.field, str(there)) == ("c", "extra timeout", str(caught.value))


def test_the_repr_shows_neither_the_key_nor_the_password_of_the_proxy() -> None:
    shown = repr(read({"proxy": "http://user:proxy-secret@proxy.example:3128"}))
    assert KEY not in shown
    assert "proxy-secret" not in shown


def test_a_webhook_secret_is_read_and_not_shown_in_the_repr() -> None:
    connection = read({"webhook_secret": "a-secret-of-some-length"})
    assert connection.webhook_secret is not None
    assert connection.webhook_secret.verify_token("a-secret-of-some-length")
    assert "a-secret-of-some-length" not in repr(connection)
    assert read({"webhook_secret": ""}).webhook_secret is None
