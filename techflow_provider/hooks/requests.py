"""The arguments of `HttpHook.run` as a call and settings; options that aren't supported are rejected, never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import httpx

from techflow_provider.client.calls import encode_json, raw
from techflow_provider.client.errors import InvalidParameterError, without_frames
from techflow_provider.client.flow import Call, Method
from techflow_provider.client.parsing import Json, quote
from techflow_provider.client.settings import Settings

METHODS: tuple[Method, ...] = ("GET", "POST", "PUT", "PATCH", "DELETE")
SUPPORTED = ("timeout", "verify", "check_response")
EXPECTED = "timeout, verify or check_response (the connection sets the proxy, and redirects aren't followed)"
# Further options of HttpHook that describe what happens here anyway.
NO_EFFECT: dict[str, object] = {"stream": False, "allow_redirects": False}


@without_frames
def apply_options(options: Mapping[str, Any], settings: Settings) -> tuple[Settings, bool]:
    """Return a connection's settings with a request's extra options, and whether a response must be a 2xx.

    :param options: those that are None count as not given
    :raises InvalidParameterError: an option isn't supported, or has an invalid value
    """
    given = {name: value for name, value in options.items() if value is not None}
    unsupported = sorted(name for name in given.keys() - SUPPORTED if given[name] != NO_EFFECT.get(name))
    if unsupported:
        raise InvalidParameterError("extra_options", f"the key {unsupported[0]!r}", EXPECTED)
    check_response, verify = given.get("check_response", True), given.get("verify", settings.verify)
    if not isinstance(check_response, bool):
        raise InvalidParameterError("extra_options['check_response']", quote(check_response), "True or False")
    if not isinstance(verify, bool | str):
        raise InvalidParameterError("extra_options['verify']", quote(verify), "True, False or a file of certificates")
    timeout = given.get("timeout", settings.timeout_seconds)
    return replace(settings, timeout_seconds=timeout, verify=verify), check_response


def raw_call(
    method: str,
    endpoint: str,
    data: Mapping[str, Any] | str | bytes | None,
    headers: Mapping[str, str] | None,
    body: Json = None,
    *,
    any_status: bool = False,
) -> Call[httpx.Response]:
    """Return the call that `HttpHook.run` would make.

    :param data: for GET the query, else the body: a dict is sent as a form
    :param body: a body to send as JSON
    :param any_status: whether a response other than a 2xx is returned as well
    :raises InvalidParameterError: the method is unknown, or a value is of a type that can't be sent
    """
    known = next((each for each in METHODS if each == str(method).upper()), None)
    if known is None:
        raise InvalidParameterError("method", quote(method), ", ".join(METHODS))
    path, _, query = endpoint.partition("?")
    try:
        encoded, content_type = _encode(data)
        if known == "GET":
            query, encoded, content_type = f"{query}&{encoded.decode()}", b"", None
        if body is not None:
            encoded, content_type = encode_json("json", body), "application/json"
        params = tuple(httpx.QueryParams(query).multi_items())
    except UnicodeError as error:
        raise InvalidParameterError("data", type(error).__name__, "text that UTF-8 can encode") from error
    sent = {**({"content-type": content_type} if content_type else {}), **(headers or {})}
    return raw(known, path or "/", params=params or None, content=encoded or None, headers=sent, any_status=any_status)


def _encode(data: object) -> tuple[bytes, str | None]:
    """Return data as `requests` encodes it, and its type: a list repeats its name for each item; None is left out."""
    if isinstance(data, Mapping):
        given = {name: _given(value) for name, value in data.items() if value is not None}
        return urlencode(given, doseq=True).encode(), "application/x-www-form-urlencoded" if data else None
    if not isinstance(data, str | bytes | None):
        raise InvalidParameterError("data", quote(data), "a dict, text or bytes")
    return (data.encode() if isinstance(data, str) else data or b""), None


def _given(value: object) -> object:
    return [each for each in value if each is not None] if isinstance(value, list | tuple | set) else value
