"""Which store a `state_url` names. Importing a store, and connecting to it, is left to its first use."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import tempfile
from pathlib import Path

from techflow_provider.state.file_access import PRIVATE_MODE
from techflow_provider.state.sqlite import SqliteStore
from techflow_provider.state.store import StateUrlError, Store

# Each may be followed by +sentinel or +cluster.
REDIS_SCHEMES = ("redis", "rediss", "valkey", "valkeys")
REDIS_MODES = ("", "sentinel", "cluster")
# The redis package, Celery and others name a socket's URL differently.
SOCKETS = ("unix", "redis+socket", "redis-socket")
SQL_SCHEMES = ("postgresql", "postgres", "mysql", "mariadb")


@functools.lru_cache(maxsize=16)
def open_store(state_url: str, file_mode: int = PRIVATE_MODE) -> Store:
    """Return the store that a URL names, one per process and URL; connects to nothing yet.

    :param file_mode: the mode of a file, which may let a group share it
    :raises StateUrlError: the URL names no store, or what the store needs is not installed
    """
    scheme, colon, rest = state_url.partition("://")
    kind = "unix" if scheme.lower() in SOCKETS else scheme.lower()
    base, _, mode = kind.partition("+")
    if not colon or kind == "sqlite":
        return _sqlite(rest.removeprefix("/") if colon else state_url, state_url, file_mode)
    if base in SQL_SCHEMES:
        from techflow_provider.state.sql import SqlStore

        return SqlStore(state_url)
    if kind != "unix" and not (base in REDIS_SCHEMES and mode in REDIS_MODES):
        raise StateUrlError(f"{scheme}://…" if re.fullmatch(r"[\w+.'\"-]+", scheme) else "something else")
    if importlib.util.find_spec("redis") is None:
        raise StateUrlError("a Redis URL", "the redis package (pip install 'airflow-provider-techflow[redis]')")
    from techflow_provider.state.redis import RedisStore

    return RedisStore(f"{kind}://{rest}")


@functools.cache
def fallback_store() -> Store:
    """Return the store that this user's processes on this host share while their own store can't be used."""
    folder = Path(tempfile.gettempdir()) / f"airflow-techflow-{os.geteuid()}"
    return SqliteStore(folder / "fallback.sqlite", private=True)


def _sqlite(path: str, received: str, mode: int) -> Store:
    file = Path(path).expanduser()
    if not file.is_absolute() or "\0" in path or path.endswith("/") or "?" in path:
        # Something that isn't a path may be a mistyped URL with a password.
        raise StateUrlError("a URL or path that is not absolute" if "@" in received else repr(received))
    return SqliteStore(file, mode=mode)
