"""The reader of connections: fields, extras and URIs as people write them."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any

from airflow.providers.common.compat.sdk import Connection

from techflow_provider.client import Client, InvalidParameterError, TechFlowError
from techflow_provider.hooks.connection import TechFlowConnection
from techflow_provider.hooks.form import EXTRA_FIELDS
from techflow_provider.hooks.requests import apply_options, raw_call
from tests.fuzz import values
from tests.fuzz.client_target import KEY, kind_of
from tests.fuzz.driver import ViolationError

HOSTS = (
    *(
        "",
        "api.example.com",
        "http://127.0.0.1",
        "https://h:8443/v2/",
        "::1",
        "[::1]:1",
        "http://::1",
        "h:99999",
        "://",
    ),
    *(
        "ftp://h",
        "h/../x",
        "h?q",
        "h#f",
        "u:p@h",
        "xn--",
        "[",
        "http://[::1",
        "http://http://h",
        "%",
        "h%20",
        "h:",
        "é.example",
    ),
)
EXTRAS: dict[str, tuple[Any, ...]] = {
    "proxy": ("http://u:p@h:3128", "socks5://h", "socks://h", "http://"),
    "verify": ("true", "FALSE", False, "/nonexistent", "\0"),
    "webhook_secret": ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "x" * 20),
    "dashboard_url": ("https://h/{execution_id}", "https://h/{0}", "https://h/{execution_id!r}", "{", "https://{x}/"),
    "timeout": (5, "5", "1e999", "nan", -1),
    "client_cert": ("/nonexistent",),
    "completed_statuses": ("done, finished", ["done"], [5]),
}
URIS = (
    "techflow://:k@h/v2?{}",
    "techflow://http://:k@h:1/v2?{}",
    "techflow://:k@[::1]:1/?{}",
    "techflow://{}",
    "{}://h",
    "{}",
)


def case(random: Random) -> str:
    """Read a connection, use what was read, and return the kind of the result."""
    try:
        connection, extra = _connection(random)
    except Exception as error:  # noqa: BLE001  # Airflow's own, which it raises before the package is called
        return f"rejected by Airflow ({type(error).__name__})"
    try:
        read = TechFlowConnection.read(connection, extra)
    except InvalidParameterError as error:
        return kind_of(error)
    read.execution_url(values.text(random), random.choice((None, values.text(random))))
    if KEY in repr(read):
        raise ViolationError("the key is in the connection's repr")
    try:
        _use(random, read)
    except TechFlowError as error:
        return f"read, then {kind_of(error)}"
    return "read"


def _connection(random: Random) -> tuple[Any, Any]:
    if random.random() < 0.2:
        uri = random.choice(URIS).format(values.text(random))
        made = Connection(conn_id="c", uri=uri)  # type: ignore[call-arg]  # taken by a hand-written __init__
        return made, made.extra_dejson
    names = random.sample(sorted(EXTRA_FIELDS), random.randrange(4))
    extra: Any = {name: random.choice((*EXTRAS.get(name, ()), values.value(random))) for name in names}
    if random.random() < 0.1:
        extra = random.choice((values.value(random), {**extra, values.text(random): values.value(random)}))
    fields = {
        "conn_id": values.text(random),
        "conn_type": random.choice(("techflow", "techflow", "techflow", None, values.text(random))),
        "host": random.choice((*HOSTS, values.text(random), None)),
        "schema": random.choice((None, "", "http", "https", "v2", values.text(random))),
        "port": random.choice((None, 0, 1, 8765, 65536, -1)),
        "password": random.choice((KEY, KEY, KEY, values.text(random), None)),
        "extra": None,
    }
    return SimpleNamespace(**fields, extra_dejson=extra), extra


def _use(random: Random, read: TechFlowConnection) -> None:
    if random.random() < 0.02:
        # It reads the certificates, which takes longer than everything else.
        Client(settings=read.settings).close()
    options = random.choice(({}, {"timeout": values.value(random)}, {values.text(random): values.value(random)}))
    apply_options(options, read.settings)
    method = random.choice(("GET", "POST", values.text(random)))
    headers = {values.text(random): values.text(random)} if random.random() < 0.3 else None
    data = random.choice((None, values.value(random), {values.text(random): values.value(random)}))
    raw_call(method, values.text(random), data, headers, random.choice((None, values.value(random))))
