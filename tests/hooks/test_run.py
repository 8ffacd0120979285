"""`TechFlowHook.run` does what `HttpHook.run` does, or raises an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from techflow_provider.client import InvalidParameterError, NotFoundError
from techflow_provider.client.flow import build_request
from techflow_provider.client.settings import Settings
from techflow_provider.hooks.requests import raw_call
from techflow_provider.hooks.techflow import TechFlowHook
from techflow_provider.sandbox import Sandbox

KEY = "key-of-the-run-tests"


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox with one workflow, and the default connection pointing to it."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    sandbox = Sandbox(api_keys=(KEY,), workflows_at_start={"wf_1": "Nightly"})
    with sandbox.serve() as url:
        connection = {"conn_type": "techflow", "host": url, "password": KEY}
        monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps(connection))
        yield sandbox


@pytest.fixture
def hook(served: Sandbox) -> Iterator[TechFlowHook]:
    """A hook that sends GETs."""
    hook = TechFlowHook(method="GET")
    yield hook
    hook.get_conn().close()


def sent(method: str, endpoint: str, data: Any = None, headers: Any = None, body: Any = None) -> Any:
    return build_request(raw_call(method, endpoint, data, headers, body), Settings(KEY))


def test_the_response_is_returned_unchanged(hook):
    response = hook.run("workflows")
    assert [each["id"] for each in response.json()["workflows"]] == ["wf_1"]


def test_a_response_other_than_2xx_is_an_error_unless_check_response_is_false(hook):
    with pytest.raises(NotFoundError):
        hook.run("workflows/wf_9")
    assert hook.run("workflows/wf_9", extra_options={"check_response": False}).status_code == 404


def test_timeout_and_verify_can_be_changed(hook):
    options = {"timeout": 7, "verify": False, "stream": False, "allow_redirects": False, "cert": None}
    assert hook.run("workflows", extra_options=options).status_code == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allow_redirects": True}, "expected timeout, verify or check_response"),
        ({"max_redirects": 3}, "the key 'max_redirects'"),
        ({"stream": True}, "the key 'stream'"),
        ({"proxies": {"https": "http://p"}}, "the key 'proxies'"),
        ({"cert": "a.pem"}, "the key 'cert'"),
        ({"verify": 3}, "expected True, False or a file"),
        ({"check_response": "no"}, "expected True or False"),
        ({"timeout": -1}, "timeout_seconds: expected a number above 0"),
        ({"colour": "red"}, "the key 'colour'"),
    ],
)
def test_an_unsupported_option_is_rejected(served, hook, options, message):
    with pytest.raises(InvalidParameterError) as caught:
        hook.run("workflows", extra_options=options)
    assert message in str(caught.value)
    assert served.count() == 0


def test_the_data_of_a_get_is_sent_as_the_query():
    url = sent("get", "executions?a=1", {"b": [2, 3], "c": None, "d": "e f"}).url
    assert url.params.multi_items() == [("a", "1"), ("b", "2"), ("b", "3"), ("d", "e f")]
    assert sent("GET", "/executions", "a=1&a=2").url.params.multi_items() == [("a", "1"), ("a", "2")]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_the_data_of_other_methods_is_sent_as_the_body(method):
    request = sent(method, "/x", {"a": 1, "b": [2, 3]})
    assert request.content == b"a=1&b=2&b=3"
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert sent(method, "/x", "text", {"Content-Type": "text/plain"}).headers.get_list("content-type") == ["text/plain"]
    assert sent(method, "/x", {}).content == b""
    assert sent(method, "/x", None, None, {"a": 1}).headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("method", "data", "body", "message"),
    [
        ("HEAD", None, None, "method: expected GET, POST"),
        ("GET", 5, None, "data: expected a dict or text"),
        ("POST", [1], None, "data: expected a dict, text or bytes"),
        ("POST", None, {"a": object()}, "json: expected a value that JSON can represent"),
    ],
)
def test_data_that_cannot_be_sent_is_rejected(method, data, body, message):
    with pytest.raises(InvalidParameterError) as caught:
        sent(method, "/x", data, None, body)
    assert message in str(caught.value)
