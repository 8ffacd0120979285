"""Where the processes of an Airflow share their state: what `[techflow] state_url` says, or what suits this Airflow.

Airflow's own database is the one thing that all its components share. Where Airflow keeps a process away from it, the
API server stands in between. A file serves where SQLite shows that there is only one host.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from airflow.providers.common.compat.sdk import conf

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.parsing import quote
from techflow_provider.client.text import get_logger
from techflow_provider.compat import is_database_blocked
from techflow_provider.hooks.api_server import api_server_state_url, http_store
from techflow_provider.hooks.connection import TechFlowConnection
from techflow_provider.state.migration import migrate
from techflow_provider.state.open import fallback_store, open_store
from techflow_provider.state.sqlite import SqliteStore
from techflow_provider.state.store import StateUrlError, Store, StoreError, budget_key

log: logging.Logger = get_logger(__name__)

SETTING = "[techflow] state_url"
FILE, METADATA, BROKER, API_SERVER, URL = "file", "metadata", "broker", "api-server", "url"
# The executors whose tasks all run on the scheduler's host.
ONE_HOST_EXECUTORS = frozenset({"LocalExecutor", "SequentialExecutor", "DebugExecutor", "InProcessExecutor"})
# The options of Celery's broker that name a part of a URL for Redis.
BROKER_OPTIONS = ("socket_timeout", "socket_connect_timeout", "socket_keepalive", "health_check_interval")


@dataclass(frozen=True, slots=True)
class Observation:
    """What a process observes of its Airflow.

    :param database: the kind of Airflow's database, such as `sqlite`; empty where it keeps the process away
    :param has_file: whether the SQLite database exists
    :param api_server: `[core] execution_api_server_url`; empty where it is not set
    """

    database: str
    has_file: bool = True
    api_server: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where the state is kept.

    :param kind: `file`, `metadata`, `broker`, `api-server`, or `url` for any other
    :param reason: why
    """

    kind: str
    reason: str


def choose(observed: Observation) -> Choice:
    """Return where the state is kept when `[techflow] state_url` is not set."""
    if not observed.database:
        return Choice(API_SERVER, "Airflow keeps this process away from its database")
    if observed.database != "sqlite":
        return Choice(METADATA, "all components of Airflow share its database")
    if observed.api_server and not observed.has_file:
        return Choice(API_SERVER, "Airflow's database isn't on this host, and [core] execution_api_server_url is set")
    return Choice(FILE, "Airflow's database is SQLite, so all its processes run on this host")


def observe() -> Observation:
    """Return what this process observes of its Airflow."""
    from airflow.configuration import conf as core

    api_server = core.get("core", "execution_api_server_url", fallback="")
    if is_database_blocked():
        return Observation("", api_server=api_server)
    kind, _, path = core.get("database", "sql_alchemy_conn").partition("://")
    return Observation(
        re.split(r"\W", kind.lower())[0], Path(path.removeprefix("/").partition("?")[0]).exists(), api_server
    )


def choice() -> Choice:
    """Return where this process keeps the state, and why."""
    return _choice(state_url(), os.getpid())


# A process that was forked from one that Airflow lets use its database decides for itself.
@functools.lru_cache(maxsize=16)
def _choice(url: str, process_id: int) -> Choice:  # noqa: ARG001 - see above
    kind = _kind(url)
    if not kind or (kind == METADATA and not observe().database):
        return choose(observe())
    return Choice(kind, f"{SETTING} says so")


def _kind(url: str) -> str:
    """Return which kind of store a `state_url` names; empty for one that isn't set."""
    scheme, colon, _ = url.lower().partition("://")
    if not colon:
        return scheme if scheme in ("", FILE, METADATA, BROKER) else FILE
    return {"http": API_SERVER, "https": API_SERVER, "sqlite": FILE}.get(scheme, URL)


class State(NamedTuple):
    """What the users of a connection share their state in.

    :param store: the store of all of them
    :param fallback: this host's own, to use while that one fails
    :param kind: the kind of the former (see `Choice`)
    """

    store: Store
    fallback: Store
    kind: str


def open_state(connection: TechFlowConnection) -> State:
    """Return what the users of a connection share their state in.

    :raises InvalidParameterError: `[techflow] state_url` names no store
    """
    url, file = state_url(), default_state_file()
    chosen, here = _choice(url, os.getpid()), _open(FILE, FILE, file, os.getpid())
    if chosen.kind == API_SERVER:
        store: Store = http_store(url if _kind(url) == API_SERVER else api_server_state_url(), connection)
    else:
        store = _open(chosen.kind, url, file, os.getpid())
    _announce(store.location, chosen.reason, os.getpid())
    if store is here:
        return State(store, fallback_store(), chosen.kind)
    if file.exists():
        _migrate_from(here, store, connection)
    return State(store, here, chosen.kind)


def served_store() -> Store:
    """Return the store that an API server offers to other processes.

    :raises InvalidParameterError: `[techflow] state_url` names no store
    :raises StoreError: this process itself needs an API server
    """
    url = state_url()
    kind = _choice(url, os.getpid()).kind
    if kind == API_SERVER and (kind := choose(observe()).kind) == API_SERVER:
        raise StoreError(f"the state is at {api_server_state_url()}, which can be reached only with a connection")
    return _open(kind, url, default_state_file(), os.getpid())


@functools.lru_cache(maxsize=16)
def _open(kind: str, url: str, default_file: Path, process_id: int) -> Store:  # noqa: ARG001 - one per process
    try:
        if kind == METADATA:
            return _open_metadata()
        if kind == BROKER:
            return open_store(_broker_url())
        if kind == FILE:
            return open_store(url if _kind(url) == FILE and url.lower() != FILE else str(default_file), _file_mode())
        return open_store(url)
    except StateUrlError as error:
        raise InvalidParameterError(SETTING, error.received, error.expected) from error


def _migrate_from(file: Any, store: Any, connection: TechFlowConnection) -> None:
    for key in (connection.settings.account, cursors_key(connection)):
        try:
            _migrate(file, store, key, os.getpid())
        except StoreError as error:
            log.warning("The records of an earlier version in %s could not be copied: %s", file.location, error)


@functools.lru_cache(maxsize=64)
def _migrate(file: SqliteStore, store: Any, key: str, process_id: int) -> None:  # noqa: ARG001 - once per process
    copied = migrate(file, store, key)
    if copied:
        log.info("Copied %d records of an earlier version from %s to %s", copied, file.location, store.location)


def _file_mode() -> int:
    mode = conf.get("techflow", "state_file_mode", fallback="").strip() or "0600"
    if mode.lstrip("0o") not in ("600", "660"):
        raise InvalidParameterError("[techflow] state_file_mode", quote(mode), "0600, or 0660 to share it with a group")
    return int(mode, 8)


def _open_metadata() -> Store:
    from airflow.configuration import conf as core

    from techflow_provider.state.sql import SqlStore

    url, schema = (core.get("database", name, fallback="") for name in ("sql_alchemy_conn", "sql_alchemy_schema"))
    has_arguments = core.has_option("database", "sql_alchemy_connect_args")
    return SqlStore(url, schema, core.getimport("database", "sql_alchemy_connect_args") if has_arguments else None)


def _broker_url() -> str:
    """Return the URL of the Redis that Celery uses as its broker.

    :raises StateUrlError: the broker isn't a Redis
    """
    from airflow.configuration import conf as core

    url = core.get("celery", "broker_url", fallback="")
    scheme, _, place = url.partition("://")
    if scheme.lower() not in ("redis", "rediss", "redis+socket", "sentinel"):
        raise StateUrlError(f"{BROKER!r}, and [celery] broker_url is {scheme or 'not set'}", "a broker that is a Redis")
    section = "celery_broker_transport_options"
    query = {name: found for name in BROKER_OPTIONS if (found := core.get(section, name, fallback=""))}
    if core.getboolean("celery", "ssl_active", fallback=False):
        scheme = "rediss" if scheme == "redis" else scheme
        files = {"ssl_keyfile": "ssl_key", "ssl_certfile": "ssl_cert", "ssl_ca_certs": "ssl_cacert"}
        query |= {name: found for name, key in files.items() if (found := core.get("celery", key, fallback=""))}
    if scheme.lower() == "sentinel":
        # Celery's form is `sentinel://:password@host:port;sentinel://…/number`.
        hosts, _, number = re.sub(r"(/\d*)?;\w+://([^;/]*@)?", ",", place).partition("/")
        scheme, place = "redis+sentinel", f"{hosts}/{core.get(section, 'master_name', fallback='')}/{number or 0}"
        kwargs = json.loads(core.get(section, "sentinel_kwargs", fallback="") or "{}")
        query |= {f"sentinel_{name}": str(kwargs[name]) for name in ("username", "password") if name in kwargs}
    return f"{scheme}://{place}{'&' if '?' in place else '?'}{urlencode(query)}" if query else f"{scheme}://{place}"


@functools.cache
def _announce(location: str, reason: str, process_id: int) -> None:  # noqa: ARG001 - once per process
    log.info("The state that processes share is kept in %s (%s)", location, reason)


def cursors_key(connection: TechFlowConnection) -> str:
    """Return the name under which a connection's event triggers keep their cursors."""
    return budget_key(connection.settings.base_url, f"connection {connection.conn_id}")


def state_url() -> str:
    """Return `[techflow] state_url`, empty if it is not set; it may hold a password."""
    url: str = conf.get("techflow", "state_url", fallback="").strip()
    return url


def default_state_file() -> Path:
    """Return the file in which the processes of one host share their state."""
    from airflow.configuration import get_airflow_home

    return Path(get_airflow_home()).absolute() / "techflow" / "state.db"


def spreading_executors() -> list[str]:
    """Return the configured executors that may run tasks on several hosts (`[core] executor`)."""
    configured = re.split(r"[,;\s]+", conf.get("core", "executor", fallback=""))
    # A class may be preceded by a team, an alias and a module: `team=alias:module.Class`.
    names = {re.split(r"[=:.]", entry)[-1] for entry in configured}
    return sorted(name for name in names if name and name not in ONE_HOST_EXECUTORS)


@functools.cache
def warn_of_hosts(store: str) -> None:
    """Warn once per process that hosts that don't share the state each use the whole limit."""
    executors = spreading_executors()
    if executors:
        log.error(
            "%s may run tasks on several hosts, and the state is kept in %s, which other hosts can't see: starts may "
            "be repeated and the rate limit exceeded. Leave [techflow] state_url empty, or set it to a store for all",
            " and ".join(executors),
            store,
        )
