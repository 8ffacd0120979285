"""Read an Airflow connection of the type `techflow` once, and validate every field before anything is sent."""

from __future__ import annotations

import functools
import ipaddress
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from urllib.parse import quote as percent_encode

from techflow_provider.client.errors import InvalidParameterError, without_frames
from techflow_provider.client.models import FIELDS, StatusWords, status_word
from techflow_provider.client.parsing import Names, quote
from techflow_provider.client.reading import PLACEHOLDER
from techflow_provider.client.settings import DEFAULT_BASE_URL, Settings
from techflow_provider.client.text import get_logger
from techflow_provider.client.values import parse_literal
from techflow_provider.client.webhooks import WebhookSecret
from techflow_provider.hooks.form import EXTRA_FIELDS
from techflow_provider.state.budget import DEFAULT_BURST, DEFAULT_REQUESTS_PER_MINUTE

log: logging.Logger = get_logger(__name__)

CONNECTION_TYPE = "techflow"
PROTOCOLS = ("http", "https")
BOOLEANS = {**dict.fromkeys(("true", "yes", "on", "1"), True), **dict.fromkeys(("false", "no", "off", "0"), False)}
DEFAULT_DASHBOARD_URL = "https://dashboard.techflow.com/executions/{execution_id}"
DASHBOARD_ID = re.compile(r"\{(execution_id|workflow_id)\}")
STATUS_FIELDS = ("completed_statuses", "failed_statuses")
# The fields of the extra that become settings, each with the setting's name.
SETTINGS = {name: name for name in ("verify", "proxy", "client_cert", "client_key", "client_key_password")}
SETTINGS |= {"timeout": "timeout_seconds", "account": "account_name"}
SETTINGS |= {"fields": "field_names", "history_query": "history_query"}
# What users call the fields that have other names in the settings.
USER_NAMES = {
    "api_key": "password (the API key)",
    "base_url": "host (the base URL)",
    "timeout_seconds": "extra timeout",
    **{name: name for name in ("port", "type", "extra")},
}


@dataclass(frozen=True, slots=True)
class TechFlowConnection:
    """A connection's content.

    :param conn_id: the connection's id
    :param settings: how to reach TechFlow
    :param requests_per_minute: the limit that this deployment enforces (Rate Limiting)
    :param burst: requests that may be sent at once after an idle period
    :param dashboard_url: template of the URL of an execution in TechFlow's dashboard; the reference names only the
        dashboard's host, so the default's path is an assumption
    :param webhook_secret: verifies webhooks; None when none are received
    :param problems: what has no effect, and why
    """

    conn_id: str
    settings: Settings = field(repr=False)
    requests_per_minute: int = DEFAULT_REQUESTS_PER_MINUTE
    burst: int = DEFAULT_BURST
    dashboard_url: str = DEFAULT_DASHBOARD_URL
    webhook_secret: WebhookSecret | None = field(default=None, repr=False)
    problems: tuple[str, ...] = ()

    @classmethod
    @without_frames
    def read(cls, connection: Any, extra: Mapping[str, Any] | None = None) -> TechFlowConnection:
        """Read a connection, and log once per process what has no effect.

        :param connection: Airflow's
        :param extra: its extra as a dict, where that was read without blocking; numbers may be strings, as forms send
        :raises InvalidParameterError: a field is invalid; the message names the connection and the field
        """
        try:
            read = cls._read(connection, connection.extra_dejson if extra is None else extra)
        except InvalidParameterError as error:
            field = USER_NAMES.get(error.parameter, f"extra {error.parameter}")
            raise replace(error, parameter=f"connection {connection.conn_id!r}, {field}") from error
        for problem in read.problems:
            _log_once(connection.conn_id, problem)
        return read

    @classmethod
    def _read(cls, connection: Any, extra: Mapping[str, Any]) -> TechFlowConnection:
        _check_type(connection)
        _check_extra(connection, extra)
        given = {name: value for name, value in extra.items() if value is not None and value != ""}
        read = {name: READERS[name](name, value) if name in READERS else value for name, value in given.items()}
        problems, webhook_secret, scheme = list(_unknown_extras(extra)), None, _scheme_of(connection)
        try:
            webhook_secret = WebhookSecret(given["webhook_secret"]) if given.get("webhook_secret") else None
        except InvalidParameterError as error:
            # Tasks don't need it.
            problems.append(f"webhooks are off, because of extra {error}")
        return cls(
            conn_id=connection.conn_id,
            settings=Settings(
                api_key=connection.password or "",
                base_url=_read_base_url(connection, scheme),
                is_scheme_assumed=bool(connection.host) and not scheme,
                status_words=_status_words(read),
                **{SETTINGS[name]: value for name, value in read.items() if name in SETTINGS},
            ),
            webhook_secret=webhook_secret,
            problems=tuple(problems),
            **{name: read[name] for name in ("requests_per_minute", "burst", "dashboard_url") if name in read},
        )

    def execution_url(self, execution_id: str, workflow_id: str | None = None) -> str | None:
        """Return the URL of an execution in the dashboard, or None if the template needs an unknown id."""
        ids = {"execution_id": execution_id, "workflow_id": workflow_id}
        if any(ids[name] is None for name in DASHBOARD_ID.findall(self.dashboard_url)):
            return None
        encoded = {name: percent_encode(value or "", safe="", errors="replace") for name, value in ids.items()}
        return DASHBOARD_ID.sub(lambda name: encoded[name[1]], self.dashboard_url)


@functools.lru_cache(maxsize=100)
def _log_once(conn_id: str, problem: str) -> None:
    log.warning("Connection %r: %s", conn_id, problem)


def _check_type(connection: Any) -> None:
    """Check that the password is TechFlow's: a connection's id may come from a template."""
    # The type may be missing in JSON.
    found = getattr(connection, "conn_type", None)
    if found and found.replace("-", "_").lower() != CONNECTION_TYPE:
        expected = f"{CONNECTION_TYPE!r}, since the password of another service must not be sent to TechFlow"
        raise InvalidParameterError("type", repr(found), expected)


def _check_extra(connection: Any, extra: object) -> None:
    if not isinstance(extra, Mapping):
        raise InvalidParameterError("extra", quote(extra).partition(":")[0], "a JSON object")
    # Airflow only logs that it can't be read.
    written = str(getattr(connection, "extra", None) or "").strip()
    if not extra and written and not re.fullmatch(r"null|\{\s*\}", written):
        raise InvalidParameterError("extra", "text that isn't JSON", "a JSON object")


def _unknown_extras(extra: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(map(str, extra.keys() - EXTRA_FIELDS.keys())):
        near = get_close_matches(name.lower().replace("-", "_"), EXTRA_FIELDS, 1)
        yield f"extra {name[:100]!r} is unknown and has no effect{f'; is it {near[0]!r}?' if near else ''}"


def _scheme_of(connection: Any) -> str:
    """Return the scheme in front of the host or, without one, in `schema`; empty when there is none."""
    schema = (connection.schema or "").strip("/ ").lower()
    return (connection.host or "").strip().rpartition("://")[0] or (schema if schema in PROTOCOLS else "")


def _read_base_url(connection: Any, scheme: str) -> str:
    """Return the base URL, from a whole URL as host or from the parts of the connection's URI.

    Airflow parses a URI's path into `schema`; some forms put the protocol there. A protocol in front of the host, as in
    `techflow://http://:KEY@127.0.0.1:8765/v2`, stays there.

    :param scheme: what `_scheme_of` returns
    """
    schema = (connection.schema or "").strip("/ ")
    is_protocol = schema.lower() in PROTOCOLS
    protocol, separator, rest = (connection.host or "").strip().rpartition("://")
    if not rest:
        return f"{protocol}{separator}" or DEFAULT_BASE_URL
    authority, slash, path = rest.partition("/")
    path = path.rstrip("/")
    if schema and not is_protocol and f"/{path}".rpartition("/")[2] != schema:
        path = f"{path}/{schema}".lstrip("/")
    return f"{scheme or 'https'}://{_with_port(authority, connection.port)}{slash or '/'}{path}"


def _with_port(authority: str, port: int | None) -> str:
    """Return a host, in brackets when it is an IPv6 address, with the port that it has or is given."""
    try:
        host = f"[{ipaddress.IPv6Address(authority)}]"
    except ValueError:
        host = authority
    own = re.search(r":(\d+)$", host)
    if own and port and int(own[1]) != port:
        raise InvalidParameterError("port", str(port), f"none, or {own[1]} as in the host")
    return f"{host}:{port}" if port and not own else host


def _number(name: str, value: Any) -> float:
    schema = EXTRA_FIELDS[name]["schema"]
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (OverflowError, ValueError):
        number = math.nan
    if not schema["minimum"] <= number <= schema["maximum"]:
        expected = f"a number from {schema['minimum']:g} to {schema['maximum']:g}"
        raise InvalidParameterError(name, quote(value), expected)
    return int(number) if "integer" in schema["type"] else number


def _words(name: str, value: Any) -> frozenset[str]:
    """Return normalised status words from a list or from comma-separated text."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise InvalidParameterError(name, quote(value), "status words as a list, or separated by commas")
    return frozenset(map(status_word, parts)) - {""}


def _status_words(read: Mapping[str, Any]) -> StatusWords:
    completed, failed = read.get("completed_statuses", frozenset()), read.get("failed_statuses", frozenset())
    both = sorted(completed & failed)
    if both:
        raise InvalidParameterError("failed_statuses", f"{both[0]!r}", "words that are not in completed_statuses too")
    return StatusWords(completed, failed)


def _field_names(name: str, value: Any) -> Names:
    """Return the fields that have other names, from an object or from JSON text, as the form stores it."""
    usual = [f"{kind}.{each}" for kind, names in FIELDS.items() for each in names]
    expected = f'an object such as {{"execution.id": "run_uid"}}, with names for any of {", ".join(usual)}'
    # The form of Airflow 2 shows an object as Python writes it, and stores that.
    given = parse_literal(name, value, expected) if isinstance(value, str) else value
    if not isinstance(given, Mapping):
        raise InvalidParameterError(name, quote(value), expected)
    for each, own in given.items():
        if each not in usual or not isinstance(own, str) or not all(own.split(".")):
            raise InvalidParameterError(name, f"{each!r} with {quote(own)}", expected)
    return tuple(given.items())


def _query(name: str, value: Any) -> tuple[tuple[str, str], ...]:
    try:
        query = tuple(parse_qsl(value if isinstance(value, str) else "", keep_blank_values=True, strict_parsing=True))
    except ValueError:
        query = ()
    if not query or any("{" in f"{key}{PLACEHOLDER.sub('', text)}" for key, text in query):
        expected = "a query such as limit=200&since={since}, with {workflow_id} and {since} as placeholders"
        raise InvalidParameterError(name, quote(value), expected)
    return query


def _verify(name: str, value: Any) -> bool | str:
    word = str(value).strip().lower()
    if not isinstance(value, str) and word not in BOOLEANS:
        raise InvalidParameterError(
            name, quote(value), "true, false or the path of a file or directory of certificates"
        )
    return BOOLEANS.get(word, str(value))


def _dashboard_url(name: str, value: Any) -> str:
    text = value if isinstance(value, str) else ""
    try:
        url = urlsplit(text)
    except ValueError:
        url = urlsplit("")
    in_braces = set("{}") & set(DASHBOARD_ID.sub("", text))
    if url.scheme not in PROTOCOLS or not url.hostname or set("{@") & set(url.netloc) or in_braces:
        expected = f"a URL such as {DEFAULT_DASHBOARD_URL}, with {{execution_id}} and {{workflow_id}} as placeholders"
        raise InvalidParameterError(name, quote(value), expected)
    return text


# Reads the fields of the extra that aren't plain text; the settings check the others.
READERS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("requests_per_minute", "burst", "timeout"), _number),
    **dict.fromkeys(STATUS_FIELDS, _words),
    "account": lambda _, value: str(value),
    "dashboard_url": _dashboard_url,
    "fields": _field_names,
    "history_query": _query,
    "verify": _verify,
}
