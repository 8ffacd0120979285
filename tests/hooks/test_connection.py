"""An Airflow connection is read in every form in which it can be written."""

from __future__ import annotations

import asyncio
import json
import pickle
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import Connection

from techflow_provider.client import InvalidParameterError
from techflow_provider.client.errors import rebuild_error
from techflow_provider.hooks.connection import TechFlowConnection
from techflow_provider.hooks.techflow import TechFlowHook

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
        ({"host": None, "schema": "https", "port": 443}, "https://api.techflow.com/v2"),
        ({"host": "http://127.0.0.1", "schema": "v2", "port": 8765}, "http://127.0.0.1:8765/v2"),
        ({"host": "http://127.0.0.1/v2/", "schema": "v2", "port": 8765}, "http://127.0.0.1:8765/v2"),
        ({"host": "http://h/gateway", "schema": "v2"}, "http://h/gateway/v2"),
        ({"host": "https://h:8443/v2", "schema": "http", "port": 8443}, "https://h:8443/v2"),
        ({"host": "h/v2", "schema": "http", "port": 8080}, "http://h:8080/v2"),
        ({"host": "h:8765", "schema": "HTTP"}, "http://h:8765"),
        ({"host": "h", "schema": "/api/v2/"}, "https://h/api/v2"),
        ({"host": "::1", "schema": "v2", "port": 8765}, "https://[::1]:8765/v2"),
        ({"host": "[::1]", "port": 8765}, "https://[::1]:8765"),
        ({"host": "[::1]:8765", "schema": "http"}, "http://[::1]:8765"),
        ({"host": "http://::1", "port": 8765, "schema": "v2"}, "http://[::1]:8765/v2"),
        ({"host": "http://[2001:db8::1]/v2", "port": 0}, "http://[2001:db8::1]/v2"),
        ({"host": "2001:db8::8765"}, "https://[2001:db8::8765]"),
    ],
)
def test_the_base_url_is_the_host_or_is_built_from_the_parts_of_a_uri(fields: dict[str, Any], base_url: str) -> None:
    assert read(**fields).settings.base_url == base_url


@pytest.mark.filterwarnings("ignore")  # Airflow 2.11 warns about itself when a connection is made
@pytest.mark.parametrize(
    ("uri", "base_url"),
    [
        ("techflow://:{}@api.example.com:444/v2?requests_per_minute=40", "https://api.example.com:444/v2"),
        ("techflow://http://:{}@127.0.0.1:8765/v2?requests_per_minute=40", "http://127.0.0.1:8765/v2"),
        ("techflow://https://:{}@api.example.com/api%2Fv2?requests_per_minute=40", "https://api.example.com/api/v2"),
        ("techflow://:{}@[::1]:8765/v2?requests_per_minute=40", "https://[::1]:8765/v2"),
        ("techflow://http://:{}@[::1]:8765/v2?requests_per_minute=40", "http://[::1]:8765/v2"),
        ("techflow://:{}@http%3A%2F%2F127.0.0.1%3A8765%2Fv2/?requests_per_minute=40", "http://127.0.0.1:8765/v2"),
        ("techflow://:{}@h:8765/http?requests_per_minute=40", "http://h:8765"),
        ("techflow://:{}@?requests_per_minute=40", "https://api.techflow.com/v2"),
    ],
)
def test_a_uri_that_airflow_has_parsed_is_read(uri: str, base_url: str) -> None:
    connection = Connection(conn_id="c", uri=uri.format(KEY))  # type: ignore[call-arg]  # a hand-written __init__
    content = TechFlowConnection.read(connection, connection.extra_dejson)
    assert content.settings.base_url == base_url
    assert content.settings.api_key == KEY
    assert content.requests_per_minute == 40


@pytest.mark.parametrize("conn_type", ["slack", "http", "Techflow2", "aws"])
def test_the_password_of_another_service_is_not_used(conn_type: str) -> None:
    with pytest.raises(InvalidParameterError, match=rf"type: expected 'techflow', .*, got '{conn_type}'"):
        read(conn_type=conn_type)


@pytest.mark.parametrize("conn_type", ["techflow", "TechFlow", None, ""])
def test_the_own_type_is_used(conn_type: str | None) -> None:
    assert read(conn_type=conn_type).settings.api_key == KEY


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        *(("request_per_minute", "requests_per_minute"), ("Requests-Per-Minute", "requests_per_minute")),
        *(("webhook-secret", "webhook_secret"), ("timout", "timeout"), ("completed_status", "completed_statuses")),
        ("colour", None),
    ],
)
def test_an_unknown_extra_is_named_once_with_the_nearest_known_one(
    caplog: pytest.LogCaptureFixture, name: str, hint: str | None
) -> None:
    expected = f"extra {name!r} is unknown and has no effect{f'; is it {hint!r}?' if hint else ''}"
    for _ in range(3):
        assert read({name: "x"}, conn_id=f"unknown-{name}").problems == (expected,)
    assert [each.getMessage() for each in caplog.records] == [f"Connection 'unknown-{name}': {expected}"]


def test_an_extra_that_is_not_json_is_not_ignored() -> None:
    """Airflow passes an empty one in its place."""
    connection = SimpleNamespace(conn_id="c", host="", schema="", port=None, password=KEY, extra="{'timeout': 5}")
    with pytest.raises(InvalidParameterError, match="extra: expected a JSON object, got text that isn't JSON"):
        TechFlowConnection.read(connection, {})
    connection.extra = " { }"
    assert TechFlowConnection.read(connection, {}).settings.timeout_seconds == 30


@pytest.mark.parametrize("secret", ["short", "with a space and more than sixteen", "whsec_%%%", 5, ["a"]])
def test_a_webhook_secret_that_cannot_be_used_turns_webhooks_off_and_nothing_else(secret: Any) -> None:
    connection = read({"webhook_secret": secret})
    assert connection.webhook_secret is None
    assert connection.settings.api_key == KEY
    (problem,) = connection.problems
    assert problem.startswith("webhooks are off, because of extra webhook_secret: expected ")
    assert str(secret) not in problem or secret == 5


SECRETS = {
    "webhook_secret": "webhook-secret-0123456789",
    "proxy": "http://user:proxy-secret-0123@h",
    "client_key_password": "key-secret-0123456789",
}


@pytest.mark.parametrize(
    ("fields", "extra"),
    [
        *(({"host": "ftp://h"}, {}), ({"host": "h:1", "port": 2}, {}), ({"conn_type": "slack"}, {})),
        *(({}, {"timeout": "soon"}), ({}, {"verify": 5}), ({}, {"dashboard_url": "{x}"}), ({}, {"client_cert": 5})),
        *(({}, {"failed_statuses": 5}), ({}, {"proxy": "socks4://user:proxy-secret-0123@h"}), ({}, {"burst": []})),
        ({"password": f"{KEY} "}, {}),
    ],
)
def test_no_secret_is_in_a_frame_of_an_error(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        read({**SECRETS, **extra}, **fields)
    # Of the package: what the caller passed is in the caller's own frames.
    shown = [repr(frame.f_locals) for each in chain(caught.value) for frame in frames_of(each)]
    assert shown
    secrets = (KEY, "proxy-secret-0123", *SECRETS.values())
    assert [secret for secret in secrets for text in shown if secret in text] == []


@pytest.mark.filterwarnings("ignore")  # Airflow 2.11 warns about itself when a connection is made
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_no_secret_is_in_a_frame_of_the_hooks_error(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    fields = {"conn_type": "techflow", "password": KEY, "extra": {**SECRETS, "timeout": "soon"}}
    monkeypatch.setenv("AIRFLOW_CONN_FRAMES", json.dumps(fields))
    hook = TechFlowHook("frames")
    with pytest.raises(InvalidParameterError) as caught:
        _ = hook.connection if kind == "sync" else asyncio.run(hook.aget_techflow_connection())
    shown = [repr(frame.f_locals) for each in chain(caught.value) for frame in frames_of(each)]
    assert shown
    assert [secret for secret in (KEY, *SECRETS.values()) for text in shown if secret in text] == []


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def frames_of(error: BaseException) -> list[Any]:
    """Return the frames of an error that are the package's."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return [frame for frame in frames if "/techflow_provider/" in frame.f_code.co_filename]


VARIABLES = [
    *(("ALL_PROXY", "socks://127.0.0.1:1080/"), ("NO_PROXY", "localhost,[::1]"), ("SSL_CERT_FILE", "/nonexistent")),
    *(("SSL_CERT_DIR", "/nonexistent"), ("REQUESTS_CA_BUNDLE", "/nonexistent"), ("https_proxy", "ftp://h")),
]


@pytest.mark.filterwarnings("ignore")  # Airflow 2.11 warns about itself when a connection is made
@pytest.mark.parametrize(("name", "value"), VARIABLES)
def test_a_variable_that_cannot_be_used_is_named_by_every_call_and_the_test_does_not_raise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str
) -> None:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    monkeypatch.setenv("AIRFLOW_CONN_VARIABLES", json.dumps({"conn_type": "techflow", "password": KEY}))
    monkeypatch.setenv(name, value)
    hook = TechFlowHook("variables")
    works, message = hook.test_connection()
    assert not works
    assert f"environment variable {name}: expected" in message
    for call in (hook.list_workflows, lambda: hook.trigger_workflow("wf_1"), lambda: hook.run("x")):
        with pytest.raises(InvalidParameterError, match=f"environment variable {name}"):
            call()


@pytest.mark.filterwarnings("ignore")  # Airflow 2.11 warns about itself when a connection is made
def test_the_test_of_a_connection_that_does_not_exist_returns_the_reason() -> None:
    works, message = TechFlowHook("nowhere_to_be_found").test_connection()
    assert not works
    assert "nowhere_to_be_found" in message


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
        ({}, {"client_key": "/key.pem"}, "extra client_key: expected text, and a client_cert"),
        ({}, {"proxy": "socks4://h"}, "extra proxy: expected a URL such as"),
        ({}, ["a"], "connection 'c', extra: expected a JSON object, got a list"),
        ({"host": "h:1", "port": 2}, {}, "connection 'c', port: expected none, or 1 as in the host, got 2"),
        ({"host": "http://h:1/v2", "port": 2}, {}, "connection 'c', port: expected none, or 1 as in the host, got 2"),
        ({}, {"verify": 3}, "extra verify: expected true, false or the path"),
    ],
)
def test_the_error_names_an_invalid_field(fields: dict[str, Any], extra: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        read(extra, **fields)
    assert message in str(caught.value)


def test_the_error_keeps_field_and_connection_when_it_is_pickled_or_sent_in_an_event() -> None:
    with pytest.raises(InvalidParameterError, match="connection 'c', extra timeout: ") as caught:
        read({"timeout": "soon"})
    resumed = rebuild_error(type(caught.value).__name__, caught.value.args)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(resumed) == str(caught.value)


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
