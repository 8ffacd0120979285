"""The store in Redis or Valkey: one server, one that Sentinels watch, or a cluster; timed by the server's clock.

A reservation in a rate budget runs as a script (`gcra.lua`) on the server, so that callers that never wait can't shut
each other out. The server's clock can be set: when it steps back, or ahead of what a caller's own clock proves, a
budget moves along with it, and slots that were held are void. The redis package is imported with the first operation.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import random
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any, NamedTuple, TypeVar, cast

from techflow_provider.state.budget_state import BUDGET_TTL_SECONDS, Reserve, change_to_dict, read_result
from techflow_provider.state.optimistic import (
    CLOCK_TOLERANCE_SECONDS,
    LostReplyError,
    OptimisticStore,
    Reply,
    Row,
    UnreachableError,
)
from techflow_provider.state.redis_url import CLUSTER, RedisUrl
from techflow_provider.state.store import Change, Entry, StoreError

T = TypeVar("T")

# Each is called with the namespace's entries and when each expires as KEYS, and with the entry's name as ARGV[1].
FETCH = "return {redis.call('HGET', KEYS[1], ARGV[1]), redis.call('TIME')}"
LIST = "return {redis.call('HGETALL', KEYS[1]), redis.call('TIME')}"
# Further arguments: its text as it was found ('' for none), the text to write ('' to delete it), the clock that the
# decision is based on and how far it may be from the server's, when the entry expires, and its time to live in
# milliseconds. Returns 1, or what FETCH does.
SWAP = """
local function drop(name)
  redis.call('HDEL', KEYS[1], name)
  redis.call('ZREM', KEYS[2], name)
end
local name, found, time, ttl = ARGV[1], redis.call('HGET', KEYS[1], ARGV[1]), redis.call('TIME'), tonumber(ARGV[7])
local late = math.abs(tonumber(time[1]) + tonumber(time[2]) / 1000000 - tonumber(ARGV[4]))
if (found or '') ~= ARGV[2] or late > tonumber(ARGV[5]) then return {found, time} end
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[4], 'LIMIT', 0, 100)) do drop(old) end
if ARGV[3] == '' then
  drop(name)
  return 1
end
redis.call('HSET', KEYS[1], name, ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[6], name)
for index = 1, 2 do
  if redis.call('PTTL', KEYS[index]) < ttl then redis.call('PEXPIRE', KEYS[index], ttl) end
end
return 1
"""


class RedisStore(OptimisticStore):
    """What processes on several hosts share in Redis.

    :param url: what `RedisUrl` reads, with options of the redis package or of Celery as its query
    :param clock: seconds to use in place of the server's clock, for tests
    :raises StateUrlError: the URL can't be read
    """

    def __init__(self, url: str, clock: Callable[[], float] | None = None) -> None:
        self._url = RedisUrl.read(url)
        super().__init__(self._url.location, clock)
        self._connection: _Connection | None = None

    def update(self, namespace: str, name: str, change: Change[T]) -> T:
        """Read an entry, decide and write it in one atomic step, and return the change's result."""
        if not isinstance(change, Reserve):
            return super().update(namespace, name, change)
        now = json.dumps(None if self._clock is None else self._clock())
        settings = (name, now, str(BUDGET_TTL_SECONDS), json.dumps(change_to_dict(change)))
        return cast("T", read_result(change, json.loads(self._run(_gcra_script(), namespace, *settings))))

    def fetch(self, namespace: str, name: str) -> Reply:
        """Return what the server holds under a name."""
        return self._reply(*self._run(FETCH, namespace, name))

    def swap(self, namespace: str, name: str, found: Row | None, following: Row | None, now: float) -> Reply:
        """Write a row if the server still holds what was found."""
        tolerance = CLOCK_TOLERANCE_SECONDS if self._clock is None else math.inf
        expires = 0.0 if following is None else following.expires
        ttl = 0 if following is None else math.ceil((expires - following.written) * 1000)
        texts = (_text(found), _text(following))
        reply = self._run(
            SWAP, namespace, name, *texts, repr(now), str(tolerance), repr(expires), str(ttl), writes=True
        )
        return Reply(None, now, done=True) if reply == 1 else self._reply(*reply)

    def make_row(self, value: str, written: float, expires: float) -> Row:
        """Return a row to write; it has its times in its text, which a fraction of a millisecond makes unique."""
        expires -= random.random() / 1000  # noqa: S311 - see above
        return Row(value, f"{written!r} {expires!r} {value}", written, expires)

    def entries(self, namespace: str, prefix: str = "") -> list[Entry]:
        """Return the entries whose names begin with a prefix, by name."""
        flat, time = self._run(LIST, namespace, "")
        texts = sorted(zip(flat[::2], flat[1::2], strict=True))
        replies = ((name, self._reply(text, time)) for name, text in texts if name.startswith(prefix))
        found = (reply.row.entry(name, reply.now) for name, reply in replies if reply.row is not None)
        return [entry for entry in found if entry is not None]

    def warnings(self) -> list[str]:
        """Return what about the server endangers what it holds."""
        found = self._on_server(
            lambda client: [each for node in _nodes(client) for each in _warnings(node)], writes=False
        )
        return list(dict.fromkeys(found))

    def release(self) -> None:
        """Close the connections that are idle."""
        connection = self._connection
        if connection is not None and connection.process_id == os.getpid():
            for node in _nodes(connection.client):
                node.connection_pool.disconnect(inuse_connections=False)

    def close(self) -> None:
        """Close the connections of this process."""
        connection, self._connection = self._connection, None
        if connection is not None and connection.process_id == os.getpid():
            connection.client.close()

    def _reply(self, text: str | None, time: tuple[str, str]) -> Reply:
        """Read what the server holds: when it was written, when it expires, and its text."""
        now = int(time[0]) + int(time[1]) / 1e6 if self._clock is None else self._clock()
        if not text:
            return Reply(None, now)
        with contextlib.suppress(ValueError):
            written, expires, value = text.split(" ", 2)
            row = Row(value, text, float(written), float(expires))
            if math.isfinite(row.written) and math.isfinite(row.expires):
                return Reply(row, now)
        raise StoreError(f"{self.location}: expected an entry with its times, got {text[:200]!r}")

    def _run(self, script: str, namespace: str, *arguments: str, writes: bool = False) -> Any:
        """Run a script by its hash, or by its text where the server doesn't know it yet."""
        keys = _keys(namespace, is_cluster=self._url.mode == CLUSTER)
        return self._on_server(lambda client: _eval(client, script, keys, arguments), writes=writes)

    def _on_server(self, act: Callable[[Any], T], *, writes: bool) -> T:
        import redis

        try:
            try:
                return act(self._connected())
            except redis.ReadOnlyError:
                # The address has passed to another server.
                self.close()
                return act(self._connected())
        except (redis.RedisError, OSError, ValueError, TypeError) as error:
            raise self._error(error, writes=writes) from error

    def _error(self, error: Exception, *, writes: bool) -> StoreError:
        import redis

        # These messages are the server's or the socket's; those about a bad option may quote the URL.
        is_safe = isinstance(error, redis.RedisError | OSError)
        message = str(error) if is_safe else "an option in its URL can't be used"
        if isinstance(error, redis.exceptions.MovedError):
            message = "the server belongs to a cluster: use redis+cluster://"
        kind = StoreError
        if isinstance(error, redis.ConnectionError | redis.TimeoutError):
            kind = LostReplyError if writes else UnreachableError
        return kind(f"{self.location}: {type(error).__name__}: {message}")

    def _connected(self) -> Any:
        self.touch()
        connection = self._connection
        # A connection is never shared with a child.
        if connection is None or connection.process_id != os.getpid():
            connection = self._connection = _Connection(os.getpid(), self._url.connect())
        return connection.client


class _Connection(NamedTuple):
    process_id: int
    client: Any


def _eval(client: Any, script: str, keys: tuple[str, str], arguments: tuple[str, ...]) -> Any:
    import redis

    try:
        return client.evalsha(_digest(script), len(keys), *keys, *arguments)
    except redis.exceptions.NoScriptError:
        return client.eval(script, len(keys), *keys, *arguments)


@functools.cache
def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


@functools.cache
def _gcra_script() -> str:
    return (files("techflow_provider.state") / "gcra.lua").read_text(encoding="utf-8")


def _nodes(client: Any) -> list[Any]:
    """Return the clients of a cluster's nodes, or the only one."""
    if not hasattr(client, "get_nodes"):
        return [client]
    return [node.redis_connection for node in client.get_nodes() if node.redis_connection is not None]


def _warnings(client: Any) -> Iterator[str]:
    import redis

    server = client.info()
    policy, evicted = server.get("maxmemory_policy", ""), server.get("evicted_keys", 0)
    if evicted:
        yield f"it has evicted {evicted} keys to free memory, perhaps records of starts"
    if server.get("maxmemory") and policy != "noeviction":
        yield f"its maxmemory-policy is {policy}: with its memory full, it deletes records of starts silently"
    # Hosted servers don't show their configuration.
    with contextlib.suppress(redis.RedisError):
        if not server.get("aof_enabled") and not client.config_get("save").get("save"):
            yield "it saves nothing (appendonly no, save ''): when it restarts, no start and no wait is known any more"


def _text(row: Row | None) -> str:
    """Return a row as the server holds it; an API server passes on rows with versions of its clients."""
    if row is None:
        return ""
    return row.version if row.version.endswith(f" {row.value}") else f"{row.written!r} {row.expires!r} {row.value}"


def _keys(namespace: str, *, is_cluster: bool) -> tuple[str, str]:
    """Return where a namespace's entries are, and when each expires.

    A cluster places a key by the part in braces. All that belongs to one account lies together there.
    """
    account, slash, rest = namespace.partition("/") if is_cluster else (namespace, "", "")
    return tuple(f"techflow:{{{account}}}{slash}{rest}:{part}" for part in ("records", "ends"))  # type: ignore[return-value]
