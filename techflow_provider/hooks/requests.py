"""The arguments of `HttpHook.run` as a call and settings; options that aren't supported are rejected, never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import urlencode

import httpx

from techflow_provider.client.calls import encode_json, raw
from techflow_provider.client.errors import InvalidParameterError, without_frames
from techflow_provider.client.flow import Call, Method
from techflow_provider.client.parsing import Json, quote
from techflow_provider.client.settings import Settings

METHODS: tuple[Method, ...] = ("GET", "POST", "PUT", "PATCH", "DELETE")
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
        supported = {each.name for each in fields(cls)}
        unsupported = sorted(name for name in given.keys() - supported if given[name] != NO_EFFECT.get(name))
        if unsupported:
            raise InvalidParameterError("extra_options", f"the key {unsupported[0]!r}", EXPECTED)
        read = cls(**{name: given[name] for name in supported & given.keys()})
        if not isinstance(read.check_response, bool):
            raise InvalidParameterError("extra_options['check_response']", quote(read.check_response), "True or False")
        if not isinstance(read.verify, bool | str | None):
            expected = "True, False or a file of certificates"
            raise InvalidParameterError("extra_options['verify']", quote(read.verify), expected)
        return read

    @without_frames
    def change(self, settings: Settings) -> Settings:
        """Return a connection's settings with these options applied."""
        timeout = settings.timeout_seconds if self.timeout is None else self.timeout
        verify = settings.verify if self.verify is None else self.verify
        return replace(settings, timeout_seconds=timeout, verify=verify)


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
