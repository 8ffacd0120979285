"""The store for several hosts: Redis or Valkey, one script per operation, timed by the server's clock.

That clock can be set: when it steps back, or ahead of what a caller's own clock proves, an account moves along with it
and slots that were held are void. The redis package is imported with the first operation, not before.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from techflow_provider.state import scripts
from techflow_provider.state.gcra import GcraState, Policy, Reason, RequestClass, Reservation, ReservationRequest
from techflow_provider.state.store import (
    HISTORY_SECONDS,
    STORE_TIMEOUT_SECONDS,
    BudgetState,
    Change,
    Entry,
    Grant,
    StateUrlError,
    StoreError,
)

if TYPE_CHECKING:
    from redis import Redis
    from redis.commands.core import Script

T = TypeVar("T")

# An account that nobody used for so long begins anew, empty, which costs the next request one interval.
ACCOUNT_TTL_SECONDS = 7 * 24 * 3600
FIELDS = tuple(GcraState.__dataclass_fields__)
LONGEST_WAIT_SECONDS = 1e12


class RedisStore:
    """What processes on several hosts share.

    :param url: `redis://`, `rediss://` (TLS) or `unix://`, with options of the redis package as its query
    :param clock: seconds to use in place of the server's clock, for tests
    :raises StateUrlError: the URL can't be read
    """

    def __init__(self, url: str, clock: Callable[[], float] | None = None) -> None:
        self.location = _shown(url)
        self._url = url
        self._clock = clock
        self._connection: _Connection | None = None

    def take(self, key: str, policy: Policy, wish: ReservationRequest) -> Reservation:
        """Answer a wish to send."""
        earlier = wish.earlier
        held: tuple[str, ...] = ("", "", "")
        if earlier is not None and earlier.held and earlier.granted:
            held = (_text(earlier.due), _text(earlier.delay), _text(earlier.epoch))
        arguments = (
            *self._terms(policy),
            _text(HISTORY_SECONDS),
            wish.request_class.value,
            _text(min(wish.within_seconds, LONGEST_WAIT_SECONDS)),
            str(int(wish.drain)),
            "" if wish.expected is None else _text(wish.expected),
            *held,
        )
        wait, granted, due, kept, probe, reason, at, delay, epoch = self._run(
            scripts.TAKE, (_key(key, "account"), _key(key, "grants")), arguments
        )
        return Reservation(
            wait_seconds=float(wait),
            granted=bool(granted),
            due=float(due),
            held=bool(kept),
            probe=bool(probe),
            reason=Reason(reason),
            at=float(at),
            delay=float(delay),
            epoch=float(epoch),
        )

    def _terms(self, policy: Policy) -> tuple[str, ...]:
        numbers = (
            policy.rate.interval_seconds,
            policy.rate.burst,
            policy.poll_share,
            policy.late_seconds,
            policy.first_pause_seconds,
            policy.longest_pause_seconds,
            policy.shortest_pause_seconds,
            policy.probe_seconds,
            ACCOUNT_TTL_SECONDS,
        )
        return (self._now(), *map(_text, numbers))

    def _now(self) -> str:
        return "" if self._clock is None else _text(self._clock())

    def cool(self, key: str, policy: Policy, seconds: float | None, epoch: float) -> float:
        """Begin or lengthen a pause, and return the seconds that are left of it."""
        arguments = (*self._terms(policy), "" if seconds is None else _text(seconds), _text(epoch))
        return float(self._run(scripts.COOL, (_key(key, "account"),), arguments))

    def settle(self, key: str, epoch: float) -> None:
        """End the time of probing."""
        self._run(scripts.SETTLE, (_key(key, "account"),), (_text(epoch),))

    def read_budget(self, key: str) -> BudgetState:
        """Return what is known of a key's budget."""
        keys = (_key(key, "account"), _key(key, "grants"))
        now, fields, grants = self._run(scripts.LOOK, keys, (self._now(), *FIELDS))
        account = None if fields[0] is None else GcraState(*map(float, fields))
        read = (Grant(float(at), RequestClass(name)) for at, name in map(str.split, grants))
        return BudgetState(
            float(now), account, tuple(grant for grant in read if grant.at >= float(now) - HISTORY_SECONDS)
        )

    def get(self, namespace: str, name: str) -> Entry | None:
        """Return a record."""
        found = self._run(scripts.GET, _record_keys(namespace), (self._now(), name))
        return None if found is None else Entry(name, found[0], float(found[1]))

    def put(self, namespace: str, name: str, value: str, ttl_seconds: float) -> None:
        """Write a record."""
        self._run(scripts.PUT, _record_keys(namespace), (self._now(), name, value, _text(ttl_seconds)))

    def swap(
        self, namespace: str, name: str, expected: str | None, value: str | None, ttl_seconds: float
    ) -> str | None:
        """Write a record where the present one is as expected, and return the one found."""
        arguments = (self._now(), name, _text(ttl_seconds), *_option(expected), *_option(value))
        found: str | None = self._run(scripts.SWAP, _record_keys(namespace), arguments)
        return found

    def update(self, namespace: str, name: str, change: Change[T]) -> T:
        """Read an entry, decide and write it in one atomic step, and return the change's result."""
        while True:
            entry = self.get(namespace, name)
            write, result = change(entry, float(self._run("return redis.call('TIME')[1]", (), ())))
            expected = None if entry is None else entry.value
            if write is None or self.swap(namespace, name, expected, write.value, write.ttl_seconds) == expected:
                return result

    def drop(self, namespace: str, name: str) -> None:
        """Delete a record."""
        self._run(scripts.DROP, _record_keys(namespace), (name,))

    def entries(self, namespace: str, prefix: str = "") -> list[Entry]:
        """Return the records whose names begin with a prefix, by name."""
        rows = self._run(scripts.ENTRIES, _record_keys(namespace), (self._now(), prefix))
        return sorted((Entry(name, value, float(age)) for name, value, age in rows), key=lambda entry: entry.name)

    def ring(self, namespace: str) -> int:
        """Count a bell one up."""
        return int(self._run(scripts.RING, (_key(namespace, "bell"),), (str(ACCOUNT_TTL_SECONDS),)))

    def bell(self, namespace: str) -> int:
        """Return the count of a bell."""
        return int(self._run("return redis.call('GET', KEYS[1])", (_key(namespace, "bell"),), ()) or 0)

    def close(self) -> None:
        """Close the connections of this process."""
        connection, self._connection = self._connection, None
        if connection is not None and connection.process_id == os.getpid():
            connection.client.close()

    def _run(self, script: str, keys: tuple[str, ...], arguments: tuple[str, ...]) -> Any:
        """Run a script by its hash, or by its text where the server does not know it yet."""
        import redis

        try:
            return self._connected().script(script)(keys=keys, args=arguments)
        except (redis.RedisError, OSError, ValueError, TypeError) as error:
            # The words are the server's or the socket's; those of a bad option may quote the URL.
            words = (
                str(error) if isinstance(error, redis.RedisError | OSError) else "an option in its URL can't be used"
            )
            raise StoreError(f"{self.location}: {type(error).__name__}: {words}") from error

    def _connected(self) -> _Connection:
        connection = self._connection
        if connection is None or connection.process_id != os.getpid():
            connection = self._connection = _Connection(self._url)
        return connection


class _Connection:
    """A client, which is never shared with a child, and the scripts that it has registered."""

    def __init__(self, url: str) -> None:
        self.process_id = os.getpid()
        self.client = _connect(url)
        self._scripts: dict[str, Script] = {}

    def script(self, text: str) -> Script:
        """Return what runs a script."""
        found = self._scripts.get(text)
        if found is None:
            found = self._scripts[text] = self.client.register_script(text)
        return found


def _connect(url: str) -> Redis:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=STORE_TIMEOUT_SECONDS,
        socket_connect_timeout=STORE_TIMEOUT_SECONDS,
        # A connection that the server closed since is made anew; a slot that was taken twice just passes.
        retry=Retry(NoBackoff(), 1),
        retry_on_error=[redis.ConnectionError],
    )


def _shown(url: str) -> str:
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


def _text(number: float) -> str:
    return f"{number:.17g}"


def _option(value: str | None) -> tuple[str, str]:
    return ("0", "") if value is None else ("1", value)


def _key(name: str, part: str) -> str:
    # What stands in braces decides about the place in a cluster, so all keys of one operation lie together.
    return f"techflow:{{{name}}}:{part}"


def _record_keys(namespace: str) -> tuple[str, str]:
    return _key(namespace, "records"), _key(namespace, "ends")
