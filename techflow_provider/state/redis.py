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
import re
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from typing import Any, TypeVar, cast

from techflow_provider.state.budget_state import BUDGET_TTL_SECONDS, Reserve, change_to_dict
from techflow_provider.state.optimistic import (
    CLOCK_TOLERANCE_SECONDS,
    LostReplyError,
    Operation,
    OptimisticStore,
    Reply,
    Row,
    UnreachableError,
)
from techflow_provider.state.redis_url import CLUSTER, RedisUrl
from techflow_provider.state.store import Change, Entry, StoreError
from techflow_provider.state.wire import build

T = TypeVar("T")

# Each is called with the namespace's entries, and when each expires, as KEYS.
LIST = "return {redis.call('HGETALL', KEYS[1]), redis.call('TIME')}"
# ARGV[1]: the operations as JSON, each with two of the keys; ARGV[2]: how far the clock that a decision is based on may
# be from the server's. An operation has the entry's name, its text as it was found, the text to write (both '' for
# none), that clock (null only reads), when the entry expires, and its time to live in milliseconds. Returns the time,
# and for each operation 1 where it has written, or else the text that is there.
EXCHANGE = """
local time, replies = redis.call('TIME'), {}
local function drop(records, ends, name)
  redis.call('HDEL', records, name)
  redis.call('ZREM', ends, name)
end
for index, operation in ipairs(cjson.decode(ARGV[1])) do
  local name, expected, text, now, expires, ttl = unpack(operation)
  local records, ends = KEYS[2 * index - 1], KEYS[2 * index]
  local found = redis.call('HGET', records, name)
  local clock = tonumber(time[1]) + tonumber(time[2]) / 1000000
  replies[index] = found
  if now ~= cjson.null and (found or '') == expected and math.abs(clock - now) <= tonumber(ARGV[2]) then
    local expired = redis.call('ZRANGEBYSCORE', ends, '-inf', now, 'LIMIT', 0, 100)
    for _, old in ipairs(expired) do drop(records, ends, old) end
    if text == '' then
      drop(records, ends, name)
    else
      redis.call('HSET', records, name, text)
      redis.call('ZADD', ends, expires, name)
      for _, key in ipairs({records, ends}) do
        if redis.call('PTTL', key) < ttl then redis.call('PEXPIRE', key, ttl) end
      end
    end
    replies[index] = 1
  end
end
return {time, replies}
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

    def update(self, namespace: str, name: str, change: Change[T]) -> T:
        """Read an entry, decide and write it in one atomic step, and return the change's result."""
        if not isinstance(change, Reserve):
            return super().update(namespace, name, change)
        now = json.dumps(None if self._clock is None else self._clock())
        settings = (name, now, str(BUDGET_TTL_SECONDS), json.dumps(change_to_dict(change)))
        return cast("T", build(change.result, json.loads(self._run(_gcra_script(), [namespace], *settings))))

    def exchange(self, operations: Sequence[Operation]) -> list[Reply]:
        """Carry out operations, in a cluster those of each namespace for itself."""
        writes = any(each.now is not None for each in operations)
        if self._url.mode == CLUSTER:
            return [reply for each in operations for reply in self._exchange([each], writes=writes)]
        return self._exchange(operations, writes=writes)

    def _exchange(self, operations: Sequence[Operation], *, writes: bool) -> list[Reply]:
        tolerance = CLOCK_TOLERANCE_SECONDS if self._clock is None else 1e18
        text = json.dumps([_arguments(each) for each in operations])
        namespaces, sent_at = [each.namespace for each in operations], time.monotonic()
        clock, found = self._run(EXCHANGE, namespaces, text, str(tolerance), writes=writes)
        now = self._now(clock)
        self.set_clock(now, sent_at)
        return [Reply(None, now, done=True) if each == 1 else Reply(self._row(each), now) for each in found]

    def make_row(self, value: str, written: float, expires: float) -> Row:
        """Return a row to write; it has its times in its text, which a fraction of a millisecond makes unique."""
        expires -= random.random() / 1000  # noqa: S311 - see above
        return Row(value, f"{written!r} {expires!r} {value}", written, expires)

    def entries(self, namespace: str, prefix: str = "") -> list[Entry]:
        """Return the entries whose names begin with a prefix, by name."""
        flat, clock = self._run(LIST, [namespace])
        texts = sorted(zip(flat[::2], flat[1::2], strict=True))
        rows = ((name, self._row(text)) for name, text in texts if name.startswith(prefix))
        found = (row.entry(name, self._now(clock)) for name, row in rows if row is not None)
        return [entry for entry in found if entry is not None]

    def warnings(self) -> list[str]:
        """Return what about the server endangers what it holds."""
        found = self._on_server(
            lambda client: [each for node in _nodes(client) for each in _warnings(node)], writes=False
        )
        return list(dict.fromkeys(found))

    def connect(self) -> Any:
        """Return a client, which connects when it is used."""
        return self._url.connect()

    def release(self) -> None:
        """Close the connections that are idle."""
        for node in _nodes(self._clients[os.getpid()]) if os.getpid() in self._clients else ():
            node.connection_pool.disconnect(inuse_connections=False)

    def _now(self, time: tuple[str, str]) -> float:
        return int(time[0]) + int(time[1]) / 1e6 if self._clock is None else self._clock()

    def _row(self, text: str | None) -> Row | None:
        """Read what the server holds: when it was written, when it expires, and its text."""
        if not text:
            return None
        with contextlib.suppress(ValueError):
            written, expires, value = text.split(" ", 2)
            row = Row(value, text, float(written), float(expires))
            if math.isfinite(row.written) and math.isfinite(row.expires):
                return row
        raise StoreError(f"{self.location}: expected an entry with its times, got {text[:200]!r}")

    def _run(self, script: str, namespaces: Sequence[str], *arguments: str, writes: bool = False) -> Any:
        """Run a script by its hash, or by its text where the server doesn't know it yet."""
        keys = [key for each in namespaces for key in _keys(each, is_cluster=self._url.mode == CLUSTER)]
        return self._on_server(lambda client: _eval(client, script, keys, arguments), writes=writes)

    def _on_server(self, act: Callable[[Any], T], *, writes: bool) -> T:
        import redis

        try:
            try:
                return act(self.client())
            except redis.ReadOnlyError:
                # The address has passed to another server.
                self.close()
                return act(self.client())
        except (redis.RedisError, redis.exceptions.RedisClusterException, OSError, ValueError, TypeError) as error:
            raise self._error(error, writes=writes) from error

    def _error(self, error: Exception, *, writes: bool) -> StoreError:
        import redis

        # Those about a bad option may quote the URL, and a Sentinel's ends with all options.
        message = str(error).partition(" : <")[0]
        if not isinstance(error, redis.RedisError | redis.exceptions.RedisClusterException | OSError):
            named = [
                each for each in re.findall(r"[?&](\w+)=", self._url.plain) if re.search(rf"\b{each}\b", str(error))
            ]
            message = " ".join(("an option in its URL can't be used:", *named)).rstrip(":")
        if isinstance(error, redis.exceptions.MovedError):
            message = "the server belongs to a cluster: use redis+cluster://"
        kind = StoreError
        if isinstance(error, redis.ConnectionError | redis.TimeoutError | redis.exceptions.RedisClusterException):
            kind = LostReplyError if writes else UnreachableError
        return kind(f"{self.location}: {type(error).__name__}: {message}")


def _eval(client: Any, script: str, keys: Sequence[str], arguments: tuple[str, ...]) -> Any:
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


def _arguments(operation: Operation) -> list[object]:
    following = operation.following or Row("", "", 0.0, 0.0)
    ttl = math.ceil((following.expires - following.written) * 1000)
    texts = (_text(operation.found), _text(operation.following))
    return [operation.name, *texts, operation.now, repr(following.expires), ttl]


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
