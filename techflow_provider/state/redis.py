"""The store for several hosts: Redis or Valkey, timed by the server's clock.

An update is a compare-and-set that is retried when another process was faster. The changes to a rate budget run as
a script (`gcra.lua`) on the server instead, so that callers that never wait can't shut each other out. The server's
clock can be set: when it steps back, or ahead of what a caller's own clock proves, a budget moves along with it, and
slots that were held are void. The redis package is imported with the first operation, not before.
"""

from __future__ import annotations

import functools
import json
import math
import os
import random
import time
from collections.abc import Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

from techflow_provider.state.budget_state import BUDGET_TTL_SECONDS, BudgetChange, change_to_dict, read_result
from techflow_provider.state.store import STORE_TIMEOUT_SECONDS, Change, Entry, StateUrlError, StoreError, Write

if TYPE_CHECKING:
    from redis import Redis
    from redis.commands.core import Script

T = TypeVar("T")

# Each attempt of an update fails only where another one succeeded meanwhile.
MAX_UPDATE_ATTEMPTS = 100
LONGEST_JITTER_SECONDS = 0.02

# KEYS: the namespace's entries, and when each expires. ARGV: the entry's name, its text as it was read ('' for none),
# the text to write ('' to delete it), the server's time, when the entry expires, and its time to live in milliseconds.
COMPARE_AND_SET = """
local function drop(name)
  redis.call('HDEL', KEYS[1], name)
  redis.call('ZREM', KEYS[2], name)
end
local name, ttl = ARGV[1], tonumber(ARGV[6])
if (redis.call('HGET', KEYS[1], name) or '') ~= ARGV[2] then return 0 end
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[4], 'LIMIT', 0, 100)) do drop(old) end
if ARGV[3] == '' then
  drop(name)
  return 1
end
redis.call('HSET', KEYS[1], name, ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[5], name)
for index = 1, 2 do
  if redis.call('PTTL', KEYS[index]) < ttl then redis.call('PEXPIRE', KEYS[index], ttl) end
end
return 1
"""


class RedisStore:
    """What processes on several hosts share.

    :param url: `redis://`, `rediss://` (TLS) or `unix://`, with options of the redis package as its query
    :param clock: seconds to use in place of the server's clock, for tests
    :raises StateUrlError: the URL can't be read
    """

    def __init__(self, url: str, clock: Callable[[], float] | None = None) -> None:
        self.location: str = _location(url)
        self._url = url
        self._clock = clock
        self._connection: _Connection | None = None

    def update(self, namespace: str, name: str, change: Change[T]) -> T:
        """Read an entry, decide and write it in one atomic step, and return the change's result."""
        if isinstance(change, BudgetChange):
            settings = (name, json.dumps(self._now()), str(BUDGET_TTL_SECONDS), json.dumps(change_to_dict(change)))
            return cast("T", read_result(change, json.loads(self._run(_gcra_script(), namespace, *settings))))
        for _ in range(MAX_UPDATE_ATTEMPTS):
            text, now = self._read(lambda pipeline: pipeline.hget(_keys(namespace)[0], name))
            entry = None if text is None else self._entry(name, text, now)
            write, result = change(entry, now)
            if write is None or self._write(namespace, name, text or "", write, now):
                return result
            time.sleep(random.uniform(0, LONGEST_JITTER_SECONDS))  # noqa: S311 - jitter
        raise StoreError(f"{self.location}: {name} changed during each of {MAX_UPDATE_ATTEMPTS} attempts to update it")

    def _write(self, namespace: str, name: str, found: str, write: Write, now: float) -> bool:
        expires, ttl = now + write.ttl_seconds, math.ceil(write.ttl_seconds * 1000)
        text = "" if write.value is None else f"{now!r} {expires!r} {write.value}"
        return bool(self._run(COMPARE_AND_SET, namespace, name, found, text, repr(now), repr(expires), str(ttl)))

    def entries(self, namespace: str, prefix: str = "") -> list[Entry]:
        """Return the entries whose names begin with a prefix, by name."""
        texts, now = self._read(lambda pipeline: pipeline.hgetall(_keys(namespace)[0]))
        found = (self._entry(name, text, now) for name, text in sorted(texts.items()) if name.startswith(prefix))
        return [entry for entry in found if entry is not None]

    def close(self) -> None:
        """Close the connections of this process."""
        connection, self._connection = self._connection, None
        if connection is not None and connection.process_id == os.getpid():
            connection.client.close()

    def _now(self) -> float | None:
        return None if self._clock is None else self._clock()

    def _entry(self, name: str, text: str, now: float) -> Entry | None:
        """Read an entry as Redis holds it: when it was written, when it expires, and its text."""
        try:
            written, expires, value = text.split(" ", 2)
            return Entry(name, value, now - float(written)) if float(expires) > now else None
        except ValueError:
            raise StoreError(f"{self.location}: expected an entry with its times, got {text[:200]!r}") from None

    def _read(self, command: Callable[[Any], object]) -> tuple[Any, float]:
        """Send a command and return its reply and the server's time."""

        def act(connection: _Connection) -> tuple[Any, float]:
            pipeline = connection.client.pipeline(transaction=False)
            command(pipeline)
            pipeline.time()
            reply, (seconds, microseconds) = pipeline.execute()
            now = self._now()
            return reply, seconds + microseconds / 1e6 if now is None else now

        return self._on_server(act)

    def _run(self, script: str, namespace: str, *arguments: str) -> Any:
        """Run a script by its hash, or by its text where the server doesn't know it yet."""
        return self._on_server(lambda connection: connection.scripts[script](keys=_keys(namespace), args=arguments))

    def _on_server(self, act: Callable[[_Connection], T]) -> T:
        import redis

        try:
            return act(self._connected())
        except (redis.RedisError, OSError, ValueError, TypeError) as error:
            # These messages are the server's or the socket's; those about a bad option may quote the URL.
            is_safe = isinstance(error, redis.RedisError | OSError)
            message = str(error) if is_safe else "an option in its URL can't be used"
            raise StoreError(f"{self.location}: {type(error).__name__}: {message}") from error

    def _connected(self) -> _Connection:
        connection = self._connection
        # A connection is never shared with a child.
        if connection is None or connection.process_id != os.getpid():
            client = _connect(self._url)
            scripts = {text: client.register_script(text) for text in (COMPARE_AND_SET, _gcra_script())}
            connection = self._connection = _Connection(os.getpid(), client, scripts)
        return connection


class _Connection(NamedTuple):
    process_id: int
    client: Redis
    scripts: dict[str, Script]


def _connect(url: str) -> Redis:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=STORE_TIMEOUT_SECONDS,
        socket_connect_timeout=STORE_TIMEOUT_SECONDS,
        # A connection that the server has closed is opened anew; a slot that was taken twice merely stays unused.
        retry=Retry(NoBackoff(), 1),
        retry_on_error=[redis.ConnectionError],
    )


@functools.cache
def _gcra_script() -> str:
    return (files("techflow_provider.state") / "gcra.lua").read_text(encoding="utf-8")


def _location(url: str) -> str:
    """Return a URL without user information and options."""
    try:
        parts = urlsplit(url)
        place = parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}"
    except ValueError:
        raise StateUrlError("a Redis URL that can't be read") from None
    number = "" if parts.scheme == "unix" else parts.path.removeprefix("/")
    if parts.scheme != "unix" and number and not number.isdecimal():
        raise StateUrlError(f"a Redis URL with {number!r} in place of a database's number")
    return f"{parts.scheme}://{place}" + (f"/{number}" if number else "")


def _keys(namespace: str) -> tuple[str, str]:
    # A cluster places a key by the part in braces, so the keys of one operation lie together.
    return f"techflow:{{{namespace}}}:records", f"techflow:{{{namespace}}}:ends"
