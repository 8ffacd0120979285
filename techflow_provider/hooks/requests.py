"""The arguments of `HttpHook.run` as a call and settings; options that aren't supported are rejected, never ignored."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import httpx

from techflow_provider.client.calls import raw
from techflow_provider.client.errors import InvalidParameterError, without_frames
from techflow_provider.client.flow import Call, Method
from techflow_provider.client.parsing import Json, quote
from techflow_provider.client.settings import Settings

METHODS: tuple[Method, ...] = ("GET", "POST", "PUT", "PATCH", "DELETE")
SUPPORTED = ("timeout", "verify", "check_response")
EXPECTED = "timeout, verify or check_response (the connection sets the proxy, and redirects aren't followed)"
# Further options of HttpHook that describe what happens here anyway.
NO_EFFECT: dict[str, object] = {"stream": False, "allow_redirects": False}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The extra options of a request.

    :param timeout: seconds; the connection's when None
    :param verify: as in the connection's extra; the connection's when None
    :param check_response: whether a response other than a 2xx is an error
    """

    timeout: float | None = None
    verify: bool | str | None = None
    check_response: bool = True

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> RunOptions:
        """Read extra options; those that are None count as not given.

        :raises InvalidParameterError: an option isn't supported, or has an invalid value
        """
        given = {name: value for name, value in options.items() if value is not None}
        unsupported = sorted(name for name in given if name not in SUPPORTED and given[name] != NO_EFFECT.get(name))
        if unsupported:
            raise InvalidParameterError("extra_options", f"the key {unsupported[0]!r}", EXPECTED)
        check_response = given.get("check_response", True)
        if not isinstance(check_response, bool):
            raise InvalidParameterError("extra_options['check_response']", quote(check_response), "True or False")
        return cls(given.get("timeout"), _verify(given.get("verify")), check_response)

    @without_frames
    def change(self, settings: Settings) -> Settings:
        """Return a connection's settings with these options applied."""
        timeout = settings.timeout_seconds if self.timeout is None else self.timeout
        verify = settings.verify if self.verify is None else self.verify
        return replace(settings, timeout_seconds=timeout, verify=verify)


def _verify(value: object) -> bool | str | None:
    if value is not None and not isinstance(value, bool | str):
        raise InvalidParameterError("extra_options['verify']", quote(value), "True, False or a file of certificates")
    return value


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
        params = (*_pairs(query), *(_pairs(data) if known == "GET" else ()))
        content, content_type = _json_body(body) if body is not None else _body(None if known == "GET" else data)
    except UnicodeError as error:
        raise InvalidParameterError("data", type(error).__name__, "text that UTF-8 can encode") from error
    sent = {**({"content-type": content_type} if content_type else {}), **(headers or {})}
    return raw(known, path or "/", params=params or None, content=content, headers=sent, any_status=any_status)


def _pairs(data: object) -> tuple[tuple[str, str], ...]:
    """Return a query's names and values; a list repeats its name for each item, and None is left out."""
    if not data:
        return ()
    if isinstance(data, str | bytes):
        return tuple(httpx.QueryParams(data).multi_items())
    if not isinstance(data, Mapping):
        raise InvalidParameterError("data", quote(data), "a dict or text")
    return tuple((name, _text(each)) for name, value in data.items() for each in _each(value) if each is not None)


def _each(value: object) -> Iterable[object]:
    return value if isinstance(value, list | tuple | set) else (value,)


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _json_body(body: Json) -> tuple[bytes, str]:
    try:
        return json.dumps(body, allow_nan=False).encode(), "application/json"
    except (TypeError, ValueError) as error:
        raise InvalidParameterError("json", str(error), "a value that JSON can represent") from error


def _body(data: object) -> tuple[bytes | None, str | None]:
    if data is None or isinstance(data, Mapping):
        form = httpx.QueryParams(_pairs(data))
        return (str(form).encode(), "application/x-www-form-urlencoded") if data else (None, None)
    if not isinstance(data, str | bytes):
        raise InvalidParameterError("data", quote(data), "a dict, text or bytes")
    return (data.encode() if isinstance(data, str) else data), None
