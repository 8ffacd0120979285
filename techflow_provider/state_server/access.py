"""Access to the state's API: each connection reaches the part of the state that belongs to its own account."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from techflow_provider.client.text import get_logger
from techflow_provider.hooks.api_server import state_secret
from techflow_provider.hooks.connection_cache import CACHE_SECONDS, ConnectionCache, find_connection
from techflow_provider.hooks.state import cursors_key
from techflow_provider.state import identity
from techflow_provider.state.api import is_write
from techflow_provider.state.records import WAKEUPS
from techflow_provider.state.signing import DEPLOYMENT, TOLERANCE_SECONDS, Proof, Signer, derive_key

log: logging.Logger = get_logger(__name__)

# After a signature that doesn't match, a connection that was read longer ago than this is read again: its API key may
# have changed.
RENEW_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Access:
    """What the holder of a key may use.

    :param signer: verifies requests and signs the responses
    :param keys: the first parts of the namespaces that it may use; None for all of them
    """

    signer: Signer = field(repr=False)
    keys: frozenset[str] | None

    def allows(self, operation: Mapping[str, Any]) -> bool:
        """Whether an operation may be carried out: everybody may read which store this is, and all wake-up counters."""
        if not is_write(operation) and operation["namespace"] in (identity.NAMESPACE, WAKEUPS):
            return True
        key = operation["name"] if operation["namespace"] == WAKEUPS else operation["namespace"].partition("/")[0]
        return key != identity.NAMESPACE and (self.keys is None or key in self.keys)


def find_access(name: str) -> Access | None:
    """Return what a connection may use, or the deployment; None for a name that isn't known."""
    if name == DEPLOYMENT:
        secret = state_secret()
        return Access(Signer(DEPLOYMENT, derive_key(secret, DEPLOYMENT)), None) if secret else None
    connection = find_connection(name)
    if connection is None:
        return None
    account = connection.settings.account
    signer = Signer(name, derive_key(connection.settings.api_key, account))
    return Access(signer, frozenset({account, connection.settings.site, cursors_key(connection)}))


class Gate:
    """Verifies who sends requests; safe to use from many threads, one per process.

    :param find: returns what a name may use
    :param now: seconds since 1970
    """

    def __init__(self, find: Callable[[str], Access | None], now: Callable[[], float]) -> None:
        self._now = now
        self._find = find
        self._cache = ConnectionCache(self._find_with_former)
        self._keys: dict[str, frozenset[str]] = {}
        # Verified with when there is no key, so that the response time reveals nothing.
        self._decoy = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._nonces: tuple[set[str], set[str]] = (set(), set())
        self._nonces_since = now()

    def recognize(self, proof: Proof) -> Access | None:
        """Return what the sender of a request may use, None without a lookup where one is needed."""
        access = self._cache.known(proof.name)
        return access if access is not None and proof.verify(access.signer.key) else None

    def look_up(self, proof: Proof) -> Access | None:
        """Return what the sender of a request may use; None for everything without a proof. May take a while."""
        for oldest_seconds in (CACHE_SECONDS, RENEW_SECONDS):
            access = self._cache.get(proof.name, oldest_seconds)
            if proof.verify(self._decoy if access is None else access.signer.key):
                return access
        return None

    def _find_with_former(self, name: str) -> Access | None:
        """Return what a name may use; a connection whose API key was changed also what it could use before."""
        access = self._find(name)
        if access is None or access.keys is None:
            return access
        self._keys[name] = access.keys | self._keys.get(name, frozenset())
        return replace(access, keys=self._keys[name])

    def is_fresh(self, proof: Proof) -> bool:
        """Whether a genuine request is recent and new; remembers it."""
        now = self._now()
        if not proof.is_recent(now):
            return False
        with self._lock:
            present, earlier = self._nonces
            if proof.nonce in present or proof.nonce in earlier:
                return False
            present.add(proof.nonce)
            # Each is remembered for longer than its time is accepted, which may lie in the future.
            if now - self._nonces_since > 2 * TOLERANCE_SECONDS:
                self._nonces, self._nonces_since = (set(), present), now
        return True
