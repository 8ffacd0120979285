"""What a server remembers of connections, so that neither its callers nor an attacker cause many lookups."""

from __future__ import annotations

import logging
import math
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

# What Airflow accepts as an id.
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
        return TechFlowConnection.read(connection)
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
        now, known = self._clock(), self.known(conn_id, oldest_seconds)
        if known is not None or self.is_unknown(conn_id) or not (self.was_known(conn_id) or self._may_look_up(now)):
            return known
        found = self._find(conn_id)
        with self._lock:
            self._known.pop(conn_id, None)
            if found is not None:
                self._known[conn_id] = (now, found)
            else:
                self._unknown[conn_id] = now + CACHE_SECONDS
            if len(self._unknown) > MAX_UNKNOWN_NAMES:
                self._unknown.popitem(last=False)
        return found

    def known(self, conn_id: str, oldest_seconds: float = CACHE_SECONDS) -> T | None:
        """Return what `get` would without a lookup, None where it needs one."""
        read_at, known = self._known.get(conn_id, (-math.inf, None))
        return known if self._clock() < read_at + oldest_seconds else None

    def is_unknown(self, conn_id: str) -> bool:
        """Whether a name is certainly not known, unlike one that was not looked up for want of a free lookup."""
        return CONNECTION_ID.fullmatch(conn_id) is None or self._clock() < self._unknown.get(conn_id, -math.inf)

    def was_known(self, conn_id: str) -> bool:
        """Whether a name has been known; its lookups are not limited."""
        return conn_id in self._known

    def _may_look_up(self, now: float) -> bool:
        with self._lock:
            second, count = self._lookups
            self._lookups = (int(now), count + 1 if int(now) == second else 1)
            return self._lookups[1] <= UNKNOWN_LOOKUPS_PER_SECOND
