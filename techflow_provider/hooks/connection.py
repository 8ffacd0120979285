"""Read an Airflow connection of the type `techflow`, once, into what the rest of the package works with.

Every value is checked here, so that a wrong one is named before anything is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.models import StatusWords, status_word
from techflow_provider.client.parsing import quote
from techflow_provider.client.settings import DEFAULT_BASE_URL, Settings
from techflow_provider.client.webhooks import WebhookSecret
from techflow_provider.hooks.dashboard import DEFAULT_DASHBOARD_URL, check_dashboard_url
from techflow_provider.state.budget import DEFAULT_BURST, DEFAULT_REQUESTS_PER_MINUTE

CONNECTION_TYPE = "techflow"
PROTOCOLS = ("http", "https")
WORDS_FOR_TRUE = ("true", "yes", "on", "1")
WORDS_FOR_FALSE = ("false", "no", "off", "0")


class AirflowConnection(Protocol):
    """What is read of Airflow's connection."""

    conn_id: str
    host: str | None
    schema: str | None
    port: int | None
    password: str | None


class ConnectionFieldError(InvalidParameterError):
    """A field of a connection can't be used.

    :param conn_id: the connection's id
    :param field: the field, as the user finds it
    :param received: what stands there, or its type
    :param expected: what may stand there
    """

    def __init__(self, conn_id: str, field: str, received: str, expected: str) -> None:
        super().__init__(f"connection {conn_id!r}, {field}", received, expected)
        # What a copy or a pickle is made of.
        self.args = (conn_id, field, received, expected)
        self.conn_id = conn_id
        self.field = field


@dataclass(frozen=True, slots=True)
class TechFlowConnection:
    """A connection's content.

    :param conn_id: the connection's id
    :param settings: how to reach TechFlow
    :param requests_per_minute: the limit of requests that this deployment keeps (Rate Limiting)
    :param burst: requests that may leave at once after a pause
    :param dashboard_url: template of the page of an execution in TechFlow's dashboard
    :param webhook_secret: what webhooks prove themselves with; None where none are received
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

        :param extra: the connection's extra as a dict; texts are accepted for numbers, since forms send them
        :raises ConnectionFieldError: a field can't be used; the message names the connection and the field
        """
        try:
            return cls._read(connection, extra)
        except InvalidParameterError as error:
            field = FIELDS.get(error.parameter, f"extra {error.parameter}")
            raise ConnectionFieldError(connection.conn_id, field, error.received, error.expected) from error

    @classmethod
    def _read(cls, connection: AirflowConnection, extra: Mapping[str, Any]) -> TechFlowConnection:
        settings = Settings(
            api_key=connection.password or "",
            base_url=_base_url(connection),
            timeout_seconds=_number(extra, "timeout", 30.0, 0.1, 3600),
            verify=_verify(extra.get("verify")),
            proxy=extra.get("proxy") or None,
            status_words=_status_words(extra),
        )
        return cls(
            conn_id=connection.conn_id,
            settings=settings,
            requests_per_minute=int(_number(extra, "requests_per_minute", DEFAULT_REQUESTS_PER_MINUTE, 1, 100_000)),
            burst=int(_number(extra, "burst", DEFAULT_BURST, 1, 10_000)),
            dashboard_url=check_dashboard_url(extra.get("dashboard_url") or DEFAULT_DASHBOARD_URL),
            webhook_secret=WebhookSecret(extra["webhook_secret"]) if extra.get("webhook_secret") else None,
        )


# Where the user finds what the settings call by their own names.
FIELDS = {
    "api_key": "password (the API key)",
    "base_url": "host (the base URL)",
    "timeout_seconds": "extra timeout",
}


def _base_url(connection: AirflowConnection) -> str:
    """Return the base URL: a whole URL as host, or the parts into which Airflow takes a connection's URI apart.

    In a URI the path arrives as `schema`, and so does the protocol where a form calls that field by its name.
    """
    host = (connection.host or "").strip()
    if not host or "://" in host:
        return host or DEFAULT_BASE_URL
    schema = (connection.schema or "").strip("/ ")
    protocol, path = (schema, "") if schema in PROTOCOLS else ("https", f"/{schema}" if schema else "")
    return f"{protocol}://{host}{f':{connection.port}' if connection.port else ''}{path}"


def _number(extra: Mapping[str, Any], name: str, default: float, lowest: float, highest: float) -> float:
    value = extra.get(name)
    if value is None or value == "":
        return default
    expected = f"a number from {lowest:g} to {highest:g}"
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    if number is None or not lowest <= number <= highest:
        raise InvalidParameterError(name, quote(value), expected)
    return number


def _status_words(extra: Mapping[str, Any]) -> StatusWords:
    words = StatusWords(*(_words(extra, name) for name in ("completed_statuses", "failed_statuses")))
    both = sorted(words.completed & words.failed)
    if both:
        raise InvalidParameterError("failed_statuses", f"{both[0]!r}", "words that are not in completed_statuses too")
    return words


def _words(extra: Mapping[str, Any], name: str) -> frozenset[str]:
    """Return status words in one spelling, from a list or from text with commas between them."""
    value = extra.get(name) or []
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise InvalidParameterError(name, quote(value), "status words as a list, or as text with commas between them")
    return frozenset(map(status_word, parts)) - {""}


def _verify(value: object) -> bool | str:
    if value is None or value == "" or isinstance(value, bool):
        return value if isinstance(value, bool) else True
    word = str(value).strip().lower()
    if word in WORDS_FOR_TRUE or word in WORDS_FOR_FALSE:
        return word in WORDS_FOR_TRUE
    if not isinstance(value, str):
        raise InvalidParameterError("verify", quote(value), "true, false or the path of a file of certificates")
    return value
