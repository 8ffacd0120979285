"""`TechFlowHook.run` does what `HttpHook.run` does, or raises an error."""

from __future__ import annotations

import json
import traceback
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
        ("GET", 5, None, "data: expected a dict, text or bytes"),
        ("POST", [1], None, "data: expected a dict, text or bytes"),
        ("POST", None, {"a": object()}, "json: expected a value that JSON can represent"),
    ],
)
def test_data_that_cannot_be_sent_is_rejected(method, data, body, message):
    with pytest.raises(InvalidParameterError) as caught:
        sent(method, "/x", data, None, body)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "endpoint",
    [
        *("%2e%2e/admin", "../admin", "a/%2E./b", "%252e%252e/x", "a\\..\\b", "a%5c..%5cb", "..;/admin", "a/..;x=1/b"),
        *("..%2fadmin", "%2e%2e%2fadmin", "a/.%00/b", "a\r\nX-Y: z", "a%0d%0ab", "https://evil.test/", "//evil.test"),
        *("/%2fevil.test", "%68ttps%3a//evil.test", "a/. /b", "%25252525252e", "\ud800"),
    ],
)
def test_an_endpoint_stays_below_the_base_url_however_it_is_written(endpoint):
    with pytest.raises(InvalidParameterError, match=r"^endpoint: expected a path below the connection's base URL"):
        sent("GET", endpoint)


@pytest.mark.parametrize(
    "endpoint", ["a..b", "...", ".well-known/x", "wf%201", "a;b", "100%", "ä/ö", "a/%C3%A9", "a:b@c"]
)
def test_an_ordinary_endpoint_is_sent(endpoint):
    assert sent("GET", endpoint).url.path.startswith("/v2/")


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("Host", "evil.test"), ("host", "evil.test"), ("Content-Length", "3"), ("TRANSFER-ENCODING", "chunked")),
        *(("connection", "close"), ("Upgrade", "h2c"), ("a b", "x"), ("", "x"), ("é", "x"), ("x:", "y"), (5, "x")),
        *(("x-y", "a\r\nHost: evil.test"), ("x-y", "\0"), ("x-y", "é"), ("x-y", 5), ("x-y", None), ("x-y", b"a\n")),
    ],
)
def test_a_header_cannot_change_where_a_request_goes_or_where_it_ends(method, name, value):
    with pytest.raises(InvalidParameterError, match=r"^headers: expected "):
        sent(method, "x", headers={name: value})


def test_other_headers_are_sent():
    headers = {"X-Trace": "a\tb", "Prefer": b"return=minimal", "x-forwarded-host": "h"}
    assert sent("GET", "x", headers=headers).headers["prefer"] == "return=minimal"


@pytest.mark.parametrize(
    ("method", "endpoint", "data"),
    [
        *(("GET", "x" * 70_000, None), ("GET", "x", {"a": "y" * 70_000}), ("GET", "x", {"a": "\ud800"})),
        *(
            ("POST", "x", {"a": "\ud800"}),
            ("POST", "x", "\ud800"),
            ("GET", "x", b"\xff"),
        ),
    ],
)
def test_what_cannot_be_written_into_a_request_is_rejected(method, endpoint, data):
    with pytest.raises(InvalidParameterError):
        sent(method, endpoint, data)


def test_an_option_that_is_rejected_leaves_no_key_in_the_frames_of_the_error(hook):
    with pytest.raises(InvalidParameterError) as caught:
        hook.run("workflows", extra_options={"timeout": -1})
    frames = [frame for frame, _ in traceback.walk_tb(caught.tb) if "techflow_provider" in frame.f_code.co_filename]
    assert frames
    assert KEY not in repr([frame.f_locals for frame in frames])
