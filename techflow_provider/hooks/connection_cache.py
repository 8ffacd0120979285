"""What a server remembers of connections, so that neither its callers nor an attacker cause many lookups."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.text import get_logger
from techflow_provider.hooks.connection import CONNECTION_TYPE, TechFlowConnection

log: logging.Logger = get_logger(__name__)

T = TypeVar("T")

# As in Airflow.
CONNECTION_ID = re.compile(r"[\w#!()\-.:/\\]{1,250}")
# A changed connection takes effect after this time.
CACHE_SECONDS = 30.0
MAX_UNKNOWN_NAMES = 1000
# Bounds the lookups that a caller can cause by guessing names, per process.
UNKNOWN_LOOKUPS_PER_SECOND = 100


def find_connection(conn_id: str) -> TechFlowConnection | None:
    """Return a connection as Airflow knows it; None when it is unknown, of another type, or can't be used."""
    try:
        connection = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        return None
    if connection.conn_type != CONNECTION_TYPE:
        return None
    try:
        return TechFlowConnection.read(connection, connection.extra_dejson)
    except InvalidParameterError as error:
        log.warning("Requests in the name of a connection are rejected, since it can't be used: %s", error)
        return None


class ConnectionCache(Generic[T]):
    """Caches what is known of connections and which names are unknown, and limits how often those are looked up.

    :param find: returns what is needed of a connection; None for a name that can't be used
    :param clock: monotonic seconds
    """

    def __init__(self, find: Callable[[str], T | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._find = find
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, T]] = {}
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._lookups = (0, 0)

    def get(self, conn_id: str, oldest_seconds: float = CACHE_SECONDS) -> T | None:
        """Return what is known of a connection, looked up unless that was at most `oldest_seconds` ago."""
        if CONNECTION_ID.fullmatch(conn_id) is None:
            return None
        with self._lock:
            now = self._clock()
            read_at, known = self._known.get(conn_id, (0.0, None))
            if known is not None and now < read_at + oldest_seconds:
                return known
            if known is None and not self._may_look_up(conn_id, now):
                return None
        return self._store(conn_id, self._find(conn_id), now)

    def known(self, conn_id: str) -> T | None:
        """Return what `get` would without a lookup, None where it needs one."""
        read_at, known = self._known.get(conn_id, (0.0, None))
        return known if self._clock() < read_at + CACHE_SECONDS else None

    def is_unknown(self, conn_id: str) -> bool:
        """Whether a name is certainly not known, unlike one that was not looked up for want of a free lookup."""
        return CONNECTION_ID.fullmatch(conn_id) is None or self._clock() < self._unknown.get(conn_id, 0.0)

    def was_known(self, conn_id: str) -> bool:
        """Whether a name has been known; its lookups are not limited."""
        return conn_id in self._known

    def _may_look_up(self, conn_id: str, now: float) -> bool:
        if now < self._unknown.get(conn_id, 0.0):
            return False
        second, count = self._lookups
        self._lookups = (int(now), count + 1 if int(now) == second else 1)
        return self._lookups[1] <= UNKNOWN_LOOKUPS_PER_SECOND

    def _store(self, conn_id: str, found: T | None, now: float) -> T | None:
        with self._lock:
            self._known.pop(conn_id, None)
            if found is not None:
                self._known[conn_id] = (now, found)
                return found
            self._unknown[conn_id] = now + CACHE_SECONDS
            if len(self._unknown) > MAX_UNKNOWN_NAMES:
                self._unknown.popitem(last=False)
            return None
