"""The URL of a Redis or Valkey: one server, one that Sentinels watch, or a cluster; and how it is connected to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from techflow_provider.state.store import StateUrlError

# A slow network is not one that is gone.
DEFAULTS: Mapping[str, Any] = {"decode_responses": True, "socket_timeout": 10.0, "socket_connect_timeout": 10.0}
DEFAULT_PORT, SENTINEL_PORT = 6379, 26379
SENTINEL, CLUSTER = "sentinel", "cluster"
SCHEMES = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}
UNREADABLE = (
    "a Redis URL that can't be read",
    "redis://user:password@host:port/number, with %23, %2F, %3F and %40 for #, /, ? and @ in the password",
)
# Options of Celery's brokers that mean nothing here, and those of Sentinels.
IGNORED_OPTIONS = frozenset(
    {"visibility_timeout", "fanout_prefix", "fanout_patterns", "global_keyprefix", "master_name"}
)
SENTINEL_OPTIONS = {"sentinel_username": "username", "sentinel_password": "password"}


@dataclass(frozen=True, slots=True, repr=False)
class RedisUrl:
    """What a URL says.

    :param location: the URL without user information and options
    :param mode: `sentinel`, `cluster` or empty
    :param hosts: names and ports
    :param service: the name under which Sentinels know the server
    :param plain: the URL of one server, from which the redis package reads the options
    :param sentinel_options: the user and password of the Sentinels
    """

    location: str
    mode: str
    hosts: tuple[tuple[str, int], ...]
    service: str
    plain: str
    sentinel_options: Mapping[str, str]

    @classmethod
    def read(cls, url: str) -> RedisUrl:
        """Read a URL.

        :raises StateUrlError: it can't be read
        """
        scheme, _, rest = url.partition("://")
        place, _, query = rest.partition("?")
        options = dict(parse_qsl(query))
        master, database = options.get("master_name", ""), options.pop("db", options.pop("virtual_host", ""))
        sentinel = {to: options.pop(name) for name, to in SENTINEL_OPTIONS.items() if name in options}
        if "ssl_cert_reqs" in options:
            # Celery writes CERT_NONE for none.
            options["ssl_cert_reqs"] = options["ssl_cert_reqs"].lower().removeprefix("cert_")
        kept = urlencode({name: value for name, value in options.items() if name not in IGNORED_OPTIONS})
        if "#" in place:
            raise StateUrlError(*UNREADABLE)
        if scheme == "unix":
            _check(database, "", "", 1)
            plain = f"unix://{place}?db={database or 0}&{kept}"
            return cls(f"unix://{place.rpartition('@')[2]}", "", (), "", plain, sentinel)
        base, _, mode = scheme.partition("+")
        netloc, _, path = place.partition("/")
        service, _, number = path.partition("/") if mode == SENTINEL and not master else (master, "", path)
        number = database or number
        if "@" in path:
            # Of the password, which must not be shown.
            raise StateUrlError(*UNREADABLE)
        user, at, hosts = netloc.rpartition("@")
        places = [_place(each, SENTINEL_PORT if mode == SENTINEL else DEFAULT_PORT) for each in hosts.split(",")]
        _check(number, service, mode, len(places))
        plain = f"{SCHEMES[base]}://{user}{at}{places[0]}/{number}?{kept}"
        location = "/".join((f"{scheme}://{','.join(places)}", *filter(None, (service, number))))
        addresses = tuple((urlsplit(f"//{each}").hostname or "", urlsplit(f"//{each}").port or 0) for each in places)
        return cls(location, mode, addresses, service, plain, sentinel)

    def connect(self) -> Any:
        """Return a client, which connects with its first command."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        # A connection that the server has closed is opened anew; an update notices what it has written already.
        retry: dict[str, Any] = {"retry": Retry(NoBackoff(), 1), "retry_on_error": [redis.ConnectionError]}
        if not self.mode:
            return redis.Redis.from_url(self.plain, **DEFAULTS, **retry)
        if self.mode == CLUSTER:
            node: Any = redis.cluster.ClusterNode
            nodes = [node(*host) for host in self.hosts]
            return redis.RedisCluster(startup_nodes=nodes, **self._options("host", "port", "db"))
        options: Any = self._options("host", "port")
        timeouts = {name: options[name] for name in ("socket_timeout", "socket_connect_timeout")}
        sentinels: Any = redis.sentinel.Sentinel
        watching = sentinels(self.hosts, sentinel_kwargs={**timeouts, **self.sentinel_options})
        return watching.master_for(self.service, **options, **retry)

    def _options(self, *without: str) -> dict[str, Any]:
        """Return the options as the redis package reads them from the URL of one server."""
        import redis

        parse: Any = redis.connection.parse_url
        options: dict[str, Any] = {**DEFAULTS, **parse(self.plain)}
        # Of TLS.
        if options.pop("connection_class", None) is not None:
            options["ssl"] = True
        return {name: value for name, value in options.items() if name not in without}


def _place(text: str, default_port: int) -> str:
    """Return a host and its port, as a URL has them."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname or "localhost", parts.port or default_port
    except ValueError:
        raise StateUrlError(*UNREADABLE) from None
    if not re.fullmatch(r"[\w.:%-]+", host):
        raise StateUrlError(f"a Redis URL with the host {host!r}")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check(number: str, service: str, mode: str, hosts: int) -> None:
    if number and not number.isdecimal():
        raise StateUrlError(f"a Redis URL with {number!r} in place of a database's number")
    if mode == CLUSTER and number not in ("", "0"):
        raise StateUrlError(f"redis+cluster://… with database {number}", "no number, since a cluster has one database")
    if mode == SENTINEL and (not service or service.isdecimal()):
        raise StateUrlError(
            "redis+sentinel://… without a service", "redis+sentinel://host:port,host:port/service/number"
        )
    if not mode and hosts > 1:
        raise StateUrlError("redis://… with several hosts", "redis+sentinel://… or redis+cluster://…")
