"""Read an Airflow connection of the type `techflow` once, and validate every field before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Any, Protocol
from urllib.parse import quote as percent_encode
from urllib.parse import urlsplit

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.models import USUAL_WORDS, StatusWords, status_word
from techflow_provider.client.parsing import quote
from techflow_provider.client.settings import DEFAULT_BASE_URL, Settings
from techflow_provider.client.webhooks import WebhookSecret
from techflow_provider.hooks.form import DEFAULT_DASHBOARD_URL, EXTRA_FIELDS
from techflow_provider.state.budget import DEFAULT_BURST, DEFAULT_REQUESTS_PER_MINUTE

CONNECTION_TYPE = "techflow"
BOOLEANS = {**dict.fromkeys(("true", "yes", "on", "1"), True), **dict.fromkeys(("false", "no", "off", "0"), False)}
# The user's names for what the settings call otherwise.
FIELDS = {
    "api_key": "password (the API key)",
    "base_url": "host (the base URL)",
    "timeout_seconds": "extra timeout",
}


class AirflowConnection(Protocol):
    """The fields of Airflow's connection that are read."""

    conn_id: str
    host: str | None
    schema: str | None
    port: int | None
    password: str | None


class ConnectionFieldError(InvalidParameterError):
    """A field of a connection is invalid.

    :param conn_id: the connection's id
    :param field: the field's name as the user knows it
    :param received: its value, or the value's type
    :param expected: the value expected instead
    """

    def __init__(self, conn_id: str, field: str, received: str, expected: str) -> None:
        super().__init__(f"connection {conn_id!r}, {field}", received, expected)
        # A copy or pickle is rebuilt from these.
        Exception.__init__(self, conn_id, field, received, expected)
        self.conn_id = conn_id
        self.field = field


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
    """

    conn_id: str
    settings: Settings = field(repr=False)
    requests_per_minute: int = DEFAULT_REQUESTS_PER_MINUTE
    burst: int = DEFAULT_BURST
    dashboard_url: str = DEFAULT_DASHBOARD_URL
    webhook_secret: WebhookSecret | None = field(default=None, repr=False)

    @classmethod
    def read(cls, connection: AirflowConnection, extra: Mapping[str, Any]) -> TechFlowConnection:
        """Read a connection.

        :param extra: the connection's extra as a dict; numbers may be strings, since forms send them so
        :raises ConnectionFieldError: a field is invalid; the message names the connection and the field
        """
        try:
            return cls._read(connection, extra)
        except InvalidParameterError as error:
            field = FIELDS.get(error.parameter, f"extra {error.parameter}")
            raise ConnectionFieldError(connection.conn_id, field, error.received, error.expected) from error

    @classmethod
    def _read(cls, connection: AirflowConnection, extra: Mapping[str, Any]) -> TechFlowConnection:
        numbers = _read_numbers(extra)
        settings = Settings(
            api_key=connection.password or "",
            base_url=_read_base_url(connection),
            timeout_seconds=numbers["timeout"],
            verify=_read_verify(extra.get("verify")),
            proxy=extra.get("proxy") or None,
            status_words=_read_status_words(extra),
        )
        dashboard_url, webhook_secret = extra.get("dashboard_url"), extra.get("webhook_secret")
        return cls(
            conn_id=connection.conn_id,
            settings=settings,
            requests_per_minute=int(numbers["requests_per_minute"]),
            burst=int(numbers["burst"]),
            dashboard_url=_check_dashboard_url(dashboard_url) if dashboard_url else DEFAULT_DASHBOARD_URL,
            webhook_secret=WebhookSecret(webhook_secret) if webhook_secret else None,
        )

    def execution_url(self, execution_id: str, workflow_id: str | None = None) -> str | None:
        """Return the URL of an execution in the dashboard, or None if the template needs an unknown id."""
        ids = {"execution_id": execution_id, "workflow_id": workflow_id}
        names = [name for _, name, _, _ in Formatter().parse(self.dashboard_url) if name]
        values = {name: percent_encode(value, safe="") for name in names if (value := ids[name]) is not None}
        return self.dashboard_url.format(**values) if len(values) == len(set(names)) else None


def _read_base_url(connection: AirflowConnection) -> str:
    """Return the base URL, from a whole URL as host or from the parts of the connection's URI.

    Airflow parses a URI's path into `schema`; some forms put the protocol there.
    """
    host = (connection.host or "").strip()
    if not host or "://" in host:
        return host or DEFAULT_BASE_URL
    schema = (connection.schema or "").strip("/ ")
    protocol, path = (schema, "") if schema in ("http", "https") else ("https", f"/{schema}" if schema else "")
    return f"{protocol}://{host}{f':{connection.port}' if connection.port else ''}{path}"


def _read_numbers(extra: Mapping[str, Any]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name in ("timeout", "requests_per_minute", "burst"):
        schema, value = EXTRA_FIELDS[name]["schema"], extra.get(name)
        value = schema["default"] if value is None or value == "" else value
        try:
            number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
        except ValueError:
            number = None
        if number is None or not schema["minimum"] <= number <= schema["maximum"]:
            expected = f"a number from {schema['minimum']:g} to {schema['maximum']:g}"
            raise InvalidParameterError(name, quote(value), expected)
        numbers[name] = number
    return numbers


def _read_status_words(extra: Mapping[str, Any]) -> StatusWords:
    if not extra.get("completed_statuses") and not extra.get("failed_statuses"):
        return USUAL_WORDS
    words = StatusWords(_read_words(extra, "completed_statuses"), _read_words(extra, "failed_statuses"))
    both = sorted(words.completed & words.failed)
    if both:
        raise InvalidParameterError("failed_statuses", f"{both[0]!r}", "words that are not in completed_statuses too")
    return words


def _read_words(extra: Mapping[str, Any], name: str) -> frozenset[str]:
    """Return normalised status words from a list or from comma-separated text."""
    value = extra.get(name) or []
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise InvalidParameterError(name, quote(value), "status words as a list, or separated by commas")
    return frozenset(map(status_word, parts)) - {""}


def _read_verify(value: object) -> bool | str:
    if value is None or value == "":
        return True
    word = str(value).strip().lower()
    if isinstance(value, str) or word in BOOLEANS:
        return BOOLEANS.get(word, str(value))
    raise InvalidParameterError("verify", quote(value), "true, false or the path of a file of certificates")


def _check_dashboard_url(value: object) -> str:
    expected = f"a URL such as {DEFAULT_DASHBOARD_URL}, with {{execution_id}} and {{workflow_id}} as placeholders"
    if not isinstance(value, str):
        raise InvalidParameterError("dashboard_url", type(value).__name__, expected)
    try:
        parts = list(Formatter().parse(value))
        url = urlsplit(value)
    except ValueError as error:
        raise InvalidParameterError("dashboard_url", f"{value[:200]!r} ({error})", expected) from error
    placeholders = {(name, form, conversion) for _, name, form, conversion in parts if name is not None}
    is_web_page = url.scheme in ("http", "https") and url.hostname and not {"{", "@"} & set(url.netloc)
    if not is_web_page or placeholders - {("execution_id", "", None), ("workflow_id", "", None)}:
        raise InvalidParameterError("dashboard_url", repr(value[:200]), expected)
    return value
