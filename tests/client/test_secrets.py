"""The API key and a proxy's password: where they may go, and that they are shown nowhere."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import traceback
from contextlib import suppress
from functools import partial
from urllib.parse import quote

import httpx
import pytest

from techflow_provider.client import (
    AsyncClient,
    Client,
    InvalidParameterError,
    Settings,
    TechFlowError,
    TransportError,
    UnexpectedResponseError,
)
from techflow_provider.client.calls import raw
from techflow_provider.client.flow import build_request
from techflow_provider.sandbox import Fault

# With characters that JSON and URLs write in more than one way.
KEY = 'sk/live+8f"3a\\91c7%d2e6'
FRAGMENT = 6
FILLER = "x" * 190
ESCAPED = "".join(f"\\u{ord(character):04x}" for character in KEY)
ECHOES = {
    "text": KEY,
    "long text": FILLER + KEY,
    "page": f"<html>your key is {KEY}</html>",
    "json": json.dumps({"error": {"message": f"no such key {KEY}"}}),
    "long json": json.dumps({"message": FILLER + KEY}),
    "slashes": json.dumps({"message": KEY}).replace("/", "\\/"),
    "escapes": f'{{"message": "{ESCAPED}"}}',
    "half json": f'{{"message": "{ESCAPED}',
    "half json with slashes": json.dumps({"message": KEY}).replace("/", "\\/")[:-2],
    "field": json.dumps({KEY: 1}),
    "list": json.dumps([KEY]),
    "status": json.dumps({"id": "x", "status": [KEY]}),
    "url": json.dumps({"detail": f"/login?key={quote(KEY, safe='')}"}),
}
OPERATIONS = {
    "list": lambda client: client.workflows.list(),
    "get": lambda client: client.workflows.get("wf_1"),
    "create": lambda client: client.workflows.create("n"),
    "execute": lambda client: client.workflows.execute("wf_1"),
    "history": lambda client: client.executions.list(),
}


def shows(text: str) -> list[str]:
    """Return the pieces of the key that a text contains, however they are encoded."""
    forms = (KEY, quote(KEY, safe=""), json.dumps(KEY)[1:-1], json.dumps(KEY)[1:-1].replace("/", "\\/"), ESCAPED)
    pieces = {form[at : at + FRAGMENT] for form in forms[:4] for at in range(len(form) - FRAGMENT + 1)}
    return sorted(piece for piece in {*pieces, ESCAPED[:18]} if piece in text)


def everything_in(error: BaseException) -> str:
    """Return all that an error may reveal: its texts, its cause, its traceback, and what a pickle of it contains."""
    trace = "".join(traceback.format_exception(error))
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.args, type(copy)) == (str(error), error.args, type(error))
    return f"{error} {error!r} {error.args} {vars(error)} {trace} {pickle.dumps(error).decode('latin-1')}"


@pytest.mark.parametrize(
    ("operation", "status"),
    [
        *((operation, 200) for operation in OPERATIONS),
        *(("create", status) for status in (400, 401, 404, 409, 429, 500)),
    ],
)
def test_a_key_that_the_server_repeats_is_not_in_the_error(connect, caplog, status, operation):
    caplog.set_level(logging.DEBUG)

    for echo in ECHOES.values():
        response = partial(httpx.Response, status, text=echo, headers={"x-key": KEY, "retry-after": "60"})
        ask = connect(respond=lambda _, response=response: response(), api_key=KEY, deadline_seconds=100)
        with pytest.raises(TechFlowError) as caught:
            ask(OPERATIONS[operation])
        assert shows(everything_in(caught.value)) == []
    assert shows(caplog.text) == []


@pytest.mark.parametrize("location", [f"https://evil.test/?key={KEY}", f"/v2?key={quote(KEY, safe='')}", KEY])
def test_a_key_in_a_redirects_target_is_not_in_the_error(connect, location):
    ask = connect(respond=lambda _: httpx.Response(302, headers={"location": location}), api_key=KEY)
    with pytest.raises(UnexpectedResponseError, match="returned 302: text that repeats the API key") as caught:
        ask(OPERATIONS["list"])
    assert shows(everything_in(caught.value)) == []


@pytest.mark.parametrize(
    ("status", "location"),
    [
        *((status, "https://evil.test/v2/workflows") for status in (301, 302, 303, 307, 308)),
        *((302, location) for location in ("http://api.techflow.com/v2/workflows", "/v3")),
    ],
)
def test_a_redirect_is_reported_and_not_followed(connect, status, location):
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(status, headers={"location": location})

    with pytest.raises(UnexpectedResponseError, match=rf"{status}: a redirect to '{location}', which is not followed"):
        connect(respond=respond)(OPERATIONS["list"])
    assert [str(request.url) for request in seen] == ["https://api.techflow.com/v2/workflows"]


@pytest.mark.parametrize(
    "following",
    [
        f"https://evil.test/v2/executions?key={quote(KEY, safe='')}",
        f"//evil.test/{KEY}",
        "http://api.techflow.com/v2/executions",
        "https://api.techflow.com:444/v2/executions",
        "https://api.techflow.com.evil.test/v2/executions",
        "https://api.techflow.com@evil.test/v2/executions",
        "file:///etc/passwd",
        "https://evil.test:99999999/",
    ],
)
@pytest.mark.parametrize("place", ["link", "body"])
def test_a_next_page_elsewhere_is_rejected_and_gets_no_key(connect, following, place):
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        headers = {"link": f'<{following}>; rel="next"'} if place == "link" else {}
        return httpx.Response(200, json={"executions": [], "next": following}, headers=headers)

    with pytest.raises(UnexpectedResponseError, match=r"GET /executions .*expected a next page on the same") as caught:
        connect(respond=respond, api_key=KEY)(OPERATIONS["history"])
    assert len(seen) == 1
    assert shows(everything_in(caught.value)) == []


@pytest.mark.parametrize(
    "following", ["https://[broken", "https://api.techflow.com/\x01", "https://h:port/", "\ud800"], ids=ascii
)
def test_a_next_page_that_is_not_a_url_is_rejected(connect, following):
    ask = connect(respond=lambda _: httpx.Response(200, text=json.dumps({"executions": [], "next": following})))
    with pytest.raises(UnexpectedResponseError, match=r"^GET /executions returned 200: expected .*next page"):
        ask(OPERATIONS["history"])


def test_a_next_page_may_name_the_default_port(connect):
    pages = iter([{"executions": [], "next": "https://api.techflow.com:443/v2/executions?page=2"}, {"executions": []}])
    ask = connect(respond=lambda _: httpx.Response(200, json=next(pages)))
    assert ask(OPERATIONS["history"]) == []


def test_the_key_is_in_the_authorization_header_and_nowhere_else():
    request = build_request(raw("POST", "/x", content=b"{}", headers={"Authorization": "mine"}), Settings(KEY))
    assert request.headers.get_list("authorization") == [f"Bearer {KEY}"]
    del request.headers["authorization"]
    assert shows(f"{request.url} {request.headers.raw} {request.content!r}") == []


def test_the_key_and_a_proxys_password_are_in_no_repr():
    settings = Settings(KEY, proxy="http://me:proxy-password@proxy.test:3128")
    client, asynchronous = Client(settings=settings), AsyncClient(settings=settings)
    shown = [settings, client, client.context, client.workflows, client.executions, asynchronous, asynchronous.context]
    shown += [client.budget, build_request(raw("GET", "/x"), settings)]
    text = " ".join(f"{each!r} {each}" for each in shown)
    client.close()
    asyncio.run(asynchronous.aclose())
    assert shows(text) == []
    assert "proxy-password" not in text


@pytest.mark.parametrize("proxy", ["ftp://me:proxy-password@proxy.test", "me:proxy-password@proxy.test", "", 5])
def test_an_invalid_proxy_is_rejected_without_showing_its_password(proxy):
    with pytest.raises(InvalidParameterError, match=r"^proxy: expected a URL") as caught:
        Client(settings=Settings(KEY, proxy=proxy))
    assert "proxy-password" not in everything_in(caught.value)


@pytest.mark.parametrize("operation", ["create", "history"])
@pytest.mark.parametrize("kind", [None, "reset", "lost_response", "garbage", "html", "status"])
def test_nothing_logged_on_any_level_shows_the_key(connect, sandbox, workflow_id, caplog, *, kind, operation):
    caplog.set_level(logging.DEBUG)
    sandbox.api_keys = (KEY,)
    if kind:
        sandbox.faults.add(Fault(kind))
    with suppress(TechFlowError):
        connect(api_key=KEY)(OPERATIONS[operation])
    assert sandbox.count() > 0
    records = " ".join(f"{record.getMessage()} {record.args!r} {record.exc_info!r}" for record in caplog.records)
    assert shows(records) == []


def test_an_error_from_below_keeps_its_cause_without_the_key(connect, sandbox):
    sandbox.api_keys = (KEY,)
    sandbox.faults.add(Fault("reset"))
    with pytest.raises(TransportError) as caught:
        connect(api_key=KEY)(OPERATIONS["create"])
    assert isinstance(caught.value.__cause__, httpx.ReadError)
    assert shows(f"{everything_in(caught.value)} {vars(caught.value.__cause__)}") == []


@pytest.mark.parametrize(
    "key",
    [
        *("", " ", "a b", " padded", "padded ", "a\nb", "a\r\nx-injected: 1", "a\tb", "a\0b", "a\x7fb"),
        *("schlüssel", "ключ", "a\u200bb", "a\ud800b", None, 5, b"bytes", ["a"]),
    ],
    ids=ascii,
)
def test_a_key_that_no_header_can_contain_is_rejected_at_once(key):
    for kind in (Client, AsyncClient, Settings):
        with pytest.raises(InvalidParameterError, match=r"^api_key: expected the API key as text without spaces"):
            kind(key)


def test_a_rejected_key_is_not_shown():
    with pytest.raises(InvalidParameterError) as caught:
        Settings(f"{KEY}\n")
    assert shows(everything_in(caught.value)) == []
    assert "'\\n' at position" in str(caught.value)
