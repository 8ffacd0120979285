"""`TechFlowHook.run` does what `HttpHook.run` does, or says that it doesn't."""

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


def test_the_answer_is_returned_as_it_came(hook):
    response = hook.run("workflows")
    assert [each["id"] for each in response.json()["workflows"]] == ["wf_1"]


def test_an_answer_that_is_no_2xx_is_an_error_unless_it_is_asked_for(hook):
    with pytest.raises(NotFoundError):
        hook.run("workflows/wf_9")
    assert hook.run("workflows/wf_9", extra_options={"check_response": False}).status_code == 404


def test_a_timeout_and_verify_of_ones_own_are_honoured(hook):
    options = {"timeout": 7, "verify": False, "stream": False, "allow_redirects": False, "cert": None}
    assert hook.run("workflows", extra_options=options).status_code == 200


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"allow_redirects": True}, "no redirects: they could carry the key elsewhere"),
        ({"max_redirects": 3}, "no redirects"),
        ({"stream": True}, "no streaming"),
        ({"proxies": {"https": "http://p"}}, "the connection's extra proxy"),
        ({"cert": "a.pem"}, "no client certificate"),
        ({"verify": 3}, "expected True, False or a file"),
        ({"check_response": "no"}, "expected True or False"),
        ({"timeout": -1}, "timeout_seconds: expected a number above 0"),
        ({"colour": "red"}, "the key 'colour'"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_refused(served, hook, options, said):
    with pytest.raises(InvalidParameterError) as caught:
        hook.run("workflows", extra_options=options)
    assert said in str(caught.value)
    assert served.count() == 0


def test_the_data_of_a_get_is_its_query():
    url = sent("get", "executions?a=1", {"b": [2, 3], "c": None, "d": "e f"}).url
    assert url.params.multi_items() == [("a", "1"), ("b", "2"), ("b", "3"), ("d", "e f")]
    assert sent("GET", "/executions", "a=1&a=2").url.params.multi_items() == [("a", "1"), ("a", "2")]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_the_data_of_any_other_is_its_body(method):
    request = sent(method, "/x", {"a": 1, "b": [2, 3]})
    assert request.content == b"a=1&b=2&b=3"
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert sent(method, "/x", "text", {"Content-Type": "text/plain"}).headers.get_list("content-type") == ["text/plain"]
    assert sent(method, "/x", {}).content == b""
    assert sent(method, "/x", None, None, {"a": 1}).headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("method", "data", "body", "said"),
    [
        ("HEAD", None, None, "method: expected GET, POST"),
        ("GET", 5, None, "data: expected a dict or text"),
        ("POST", [1], None, "data: expected a dict, text or bytes"),
        ("POST", None, {"a": object()}, "json: expected a value that JSON can represent"),
    ],
)
def test_what_cannot_be_sent_is_refused(method, data, body, said):
    with pytest.raises(InvalidParameterError) as caught:
        sent(method, "/x", data, None, body)
    assert said in str(caught.value)
