"""Parameters: what is sent for each, and what is rejected before anything is sent."""

from __future__ import annotations

import json
import math
from datetime import datetime
from types import MappingProxyType
from typing import Any

import httpx
import pytest

from techflow_provider.client import Client, InvalidParameterError, NotFoundError, Settings
from techflow_provider.client.calls import raw
from techflow_provider.client.history import ExecutionSelector

BY_ID = {
    "get": lambda value: lambda client: client.workflows.get(value),
    "update": lambda value: lambda client: client.workflows.update(value, name="n"),
    "delete": lambda value: lambda client: client.workflows.delete(value),
    "execute": lambda value: lambda client: client.workflows.execute(value),
}
CYCLE: dict[str, Any] = {}
CYCLE["self"] = CYCLE
DEEP: list[Any] = []
for _ in range(200_000):
    DEEP = [DEEP]
NOT_JSON = [
    math.nan,
    math.inf,
    -math.inf,
    {1, b"x"},
    b"x",
    object(),
    "\ud800",
    CYCLE,
    {(1, 2): 3},
    DEEP,
]
NOT_JSON_IDS = ["nan", "inf", "-inf", "set", "bytes", "object", "surrogate", "cycle", "tuple-key", "deep"]


@pytest.mark.parametrize(
    "value", ["", " ", ".", "..", " .. ", None, True, 1.5, b"wf_1", ["wf_1"], "a\ud800b"], ids=ascii
)
def test_an_invalid_workflow_id_is_rejected_before_anything_is_sent(ask, sandbox, value):
    operations: list[Any] = list(BY_ID.values())
    for operation in operations:
        with pytest.raises(InvalidParameterError, match=r"^workflow_id: expected "):
            ask(operation(value))
    assert sandbox.count() == 0


@pytest.mark.parametrize(
    ("value", "segment"),
    [
        ("wf_1", "wf_1"),
        ("/", "%2F"),
        ("../executions", "..%2Fexecutions"),
        ("a b?c#d", "a%20b%3Fc%23d"),
        ("%2e%2e", "%252e%252e"),
        ("ü/日本", "%C3%BC%2F%E6%97%A5%E6%9C%AC"),
        ("a\r\nb\0", "a%0D%0Ab%00"),
        ("a;b=c&d+e@f:g", "a%3Bb%3Dc%26d%2Be%40f%3Ag"),
        ("\\", "%5C"),
        ("...", "..."),
    ],
)
def test_an_id_is_one_percent_encoded_segment_and_arrives_as_it_was(connect, sandbox, value, segment):
    sandbox.add_workflow("Odd", id=value)
    ask = connect()
    assert ask(BY_ID["get"](value)).id == value
    assert ask(BY_ID["execute"](value)).workflow_id == value
    assert ask(BY_ID["update"](value)).name == "n"
    assert ask(BY_ID["delete"](value)) is None
    assert {record.path for record in sandbox.requests} == {
        f"/workflows/{segment}",
        f"/workflows/{segment}/execute",
    }


def test_an_id_with_a_slash_reaches_no_other_resource(connect, sandbox, workflow_id):
    with pytest.raises(NotFoundError):
        connect()(BY_ID["delete"](f"x/../{workflow_id}"))
    assert [each["id"] for each in sandbox.workflows] == [workflow_id]


@pytest.mark.parametrize(
    ("field", "values", "expected"),
    [
        ("name", ["", " ", None, 1.5, b"n", ["n"]], "text that is not empty, got "),
        ("description", [1.5, b"d", ["d"]], "text or None"),
        ("triggers", ["manual", {"type": "manual"}, 5, None, [5], [None], [["a"]], [b"a"]], ""),
    ],
)
def test_an_invalid_field_of_a_workflow_is_rejected_before_anything_is_sent(ask, sandbox, field, values, expected):
    for value in values:
        with pytest.raises(InvalidParameterError, match=rf"^{field}: expected {expected}"):
            ask(lambda client, value=value: client.workflows.create(**{"name": "n", field: value}))
    assert sandbox.count() == 0


@pytest.mark.parametrize("value", NOT_JSON, ids=NOT_JSON_IDS)
def test_a_value_that_json_cannot_represent_is_rejected_before_anything_is_sent(ask, sandbox, workflow_id, value):
    with pytest.raises(InvalidParameterError, match=r"^payload: expected a value that JSON can represent, got "):
        ask(lambda client: client.workflows.execute(workflow_id, {"deep": [value]}))
    with pytest.raises(InvalidParameterError, match=r"^triggers: expected a value that JSON can represent, got "):
        ask(lambda client: client.workflows.create("n", triggers=[{"deep": value}]))
    with pytest.raises(
        InvalidParameterError, match=r"^(triggers|workflow): expected a value that JSON can represent, got "
    ):
        ask(lambda client: client.workflows.update(workflow_id, triggers=[{"deep": value}]))
    assert {record.method for record in sandbox.requests} <= {"GET"}


@pytest.mark.parametrize("payload", [[], "x", "[1]", 5, b"{}", [("a", 1)]], ids=repr)
def test_a_payload_that_is_not_an_object_is_rejected(ask, sandbox, workflow_id, payload):
    with pytest.raises(InvalidParameterError, match=r"^payload: expected a dict, or text that contains a JSON object"):
        ask(lambda client: client.workflows.execute(workflow_id, payload))
    assert sandbox.count() == 0


@pytest.mark.parametrize(
    ("payload", "body", "content_type"),
    [
        (None, b"", None),
        ({}, b"{}", "application/json"),
        ({"a": [1, None, "ü"]}, '{"a": [1, null, "ü"]}'.encode(), "application/json"),
        (MappingProxyType({"a": (1, 2)}), b'{"a": [1, 2]}', "application/json"),
    ],
)
def test_a_payload_is_sent_as_json_and_no_payload_as_no_body(connect, payload, body, content_type):
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"id": "ex_1"})

    connect(respond=respond)(lambda client: client.workflows.execute("wf_1", payload))
    assert [(each.content, each.headers.get("content-type")) for each in seen] == [(body, content_type)]


def test_a_workflow_is_created_with_what_was_given_alone(connect):
    seen: list[Any] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return httpx.Response(200, json={"id": "wf_1"})

    ask = connect(respond=respond)
    ask(lambda client: client.workflows.create(name="n"))
    ask(lambda client: client.workflows.create("n", "", ("manual", MappingProxyType({"cron": "@daily"}))))
    assert seen == [
        {"name": "n", "triggers": []},
        {"name": "n", "description": "", "triggers": ["manual", {"cron": "@daily"}]},
    ]


def test_an_update_writes_the_whole_workflow_with_the_changes(connect, sandbox):
    sandbox.add_workflow("Old", id="wf_1", description="kept", triggers=["manual"], owner={"team": "data"})
    connect()(lambda client: client.workflows.update("wf_1", name="New", triggers=[]))
    (stored,) = sandbox.workflows
    assert stored.items() >= {"name": "New", "description": "kept", "triggers": [], "owner": {"team": "data"}}.items()


def test_an_update_without_changes_is_rejected(ask, sandbox, workflow_id):
    with pytest.raises(InvalidParameterError, match="expected at least one to change"):
        ask(lambda client: client.workflows.update(workflow_id))
    assert sandbox.count() == 0


@pytest.mark.parametrize(
    "url",
    [
        *("", "api.techflow.com", "/v2", "ftp://api.techflow.com", "https://", "file:///v2", "https://a b/v2"),
        *("https://me@api.techflow.com", "https://me:pw@api.techflow.com", "https://h/v2?", "https://h/v2?x=1"),
        *("https://h/v2#", "https://h/v2#top", "https://h:port/v2", "https://h:99999/v2", "https://h/\n", None, 5),
    ],
    ids=repr,
)
def test_an_invalid_base_url_is_rejected_at_once(url):
    with pytest.raises(
        InvalidParameterError, match=r"^base_url: expected a URL such as https://api\.techflow"
    ) as caught:
        Client("key", base_url=url)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["https://h/v2", "https://h/v2/", "https://h/v2//", "http://127.0.0.1:80", "http://[::1]:8080/"]
)
def test_a_base_url_keeps_its_path_and_loses_its_last_slash(url):
    assert Settings("key", url).base_url == url.removesuffix(":80").rstrip("/")


@pytest.mark.parametrize("name", ["timeout_seconds", "response_seconds", "max_response_bytes", "deadline_seconds"])
def test_a_limit_that_is_not_a_number_above_zero_is_rejected(name):
    invalid: tuple[Any, ...] = (0, -1, math.nan, math.inf, True, "5", None)
    for value in invalid:
        with pytest.raises(InvalidParameterError, match=rf"^{name}: expected a number above 0"):
            Settings("key", **{name: value})


def test_a_missing_bundle_of_certificates_is_rejected(tmp_path):
    with pytest.raises(
        InvalidParameterError,
        match=r"^verify: expected a file of certificates in PEM format, or .*, got '.*none\.pem' \(",
    ):
        Client(settings=Settings("key", verify=str(tmp_path / "none.pem")))


def test_every_request_has_connect_read_write_and_pool_time_outs(connect):
    seen: list[Any] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request.extensions["timeout"])
        return httpx.Response(200, json=[])

    connect(respond=respond)(lambda client: client.workflows.list())
    assert seen == [{"connect": 30.0, "read": 30.0, "write": 30.0, "pool": 30.0}]


@pytest.mark.parametrize("path", ["../x", "/a/../b", "/./a", "https://evil.test/", "//evil.test/", "a/.."])
def test_a_raw_call_stays_below_the_base_url(path):
    with pytest.raises(InvalidParameterError, match=r"^endpoint: expected a path below"):
        raw("GET", path)


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({}, "execution_id"),
        ({"execution_id": ""}, "execution_id"),
        ({"workflow_id": "wf_1"}, "started_after"),
        ({"workflow_id": "wf_1", "started_after": datetime(2020, 11, 1)}, "started_after"),  # noqa: DTZ001  # the point
    ],
)
def test_a_selector_names_one_execution_in_one_way(fields, parameter):
    with pytest.raises(InvalidParameterError, match=rf"^{parameter}: "):
        ExecutionSelector(**fields)
