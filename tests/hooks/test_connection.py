"""What is read of an Airflow connection, in every form in which one can be written."""

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


def test_a_key_alone_is_enough() -> None:
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
def test_the_host_is_a_whole_url_or_the_parts_of_a_uri(fields: dict[str, Any], base_url: str) -> None:
    assert read(**fields).settings.base_url == base_url


@pytest.mark.filterwarnings("ignore")  # Airflow 2.11 warns about itself when a connection is made
def test_a_uri_as_airflow_takes_it_apart_is_read() -> None:
    connection = Connection(  # type: ignore[call-arg]  # taken by a hand-written __init__
        conn_id="c", uri=f"techflow://:{KEY}@api.example.com:444/v2?requests_per_minute=40"
    )
    content = TechFlowConnection.read(connection, connection.extra_dejson)
    assert content.settings.base_url == "https://api.example.com:444/v2"
    assert content.settings.api_key == KEY
    assert content.requests_per_minute == 40


def test_numbers_are_accepted_as_the_texts_that_forms_send() -> None:
    connection = read({"requests_per_minute": "50", "burst": "", "timeout": "2.5", "verify": "False"})
    assert (connection.requests_per_minute, connection.burst) == (50, 6)
    assert connection.settings.timeout_seconds == 2.5
    assert connection.settings.verify is False


@pytest.mark.parametrize(
    ("fields", "extra", "said"),
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
def test_a_field_that_cannot_be_used_is_named(fields: dict[str, Any], extra: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        read(extra, **fields)
    assert said in str(caught.value)


def test_the_field_is_told_apart_from_its_connection_also_in_another_process() -> None:
    with pytest.raises(ConnectionFieldError) as caught:
        read({"timeout": "soon"})
    there = pickle.loads(pickle.dumps(caught.value))
    assert (there.conn_id, there.field, str(there)) == ("c", "extra timeout", str(caught.value))


def test_neither_the_key_nor_the_proxys_password_is_shown() -> None:
    shown = repr(read({"proxy": "http://user:proxy-secret@proxy.example:3128"}))
    assert KEY not in shown
    assert "proxy-secret" not in shown


def test_a_webhook_secret_is_read_and_not_shown() -> None:
    connection = read({"webhook_secret": "a-secret-of-some-length"})
    assert connection.webhook_secret is not None
    assert connection.webhook_secret.verify_token("a-secret-of-some-length")
    assert "a-secret-of-some-length" not in repr(connection)
    assert read({"webhook_secret": ""}).webhook_secret is None
