"""HTTP requests and responses without a transport, and the strict validation of a request's body."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, unquote

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Object: TypeAlias = "dict[str, Json]"

PREFIX = "/v2"
CHUNK_BYTES = 65536
# Python copies and writes nested values by recursion, whose own limit is higher.
MAX_NESTING = 100


@dataclass(frozen=True)
class Request:
    """A request as it arrived.

    :param method: HTTP method
    :param target: path and query, still percent-encoded
    :param headers: header fields by their names in any case
    :param body: the body's bytes
    :param local: whether it came from this machine
    """

    method: str
    target: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)
    local: bool = True

    @cached_property
    def path(self) -> str:
        """The path below the base URL, percent-encoded, without the query; other paths unchanged."""
        path = self.target.partition("?")[0]
        return path.removeprefix(PREFIX) if path.startswith(f"{PREFIX}/") else path

    @cached_property
    def segments(self) -> tuple[str, ...] | None:
        """The decoded parts of the path below the base URL, or None for another path."""
        if not self.target.startswith(f"{PREFIX}/"):
            return None
        return tuple(unquote(part) for part in self.path[1:].split("/"))

    @property
    def query(self) -> dict[str, str]:
        """The query parameters; a repeated one has its last value."""
        return dict(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))


@lru_cache(maxsize=256)
def path_pattern(glob: str) -> re.Pattern[str]:
    """Return a glob over paths as a regular expression: `*` matches one part of a path, `**` any number."""
    parts = (".*" if part == "**" else "[^/]*" if part == "*" else re.escape(part) for part in re.split(r"(\*+)", glob))
    return re.compile("".join(parts), re.DOTALL)


def matches(method: str | None, glob: str | None, request_method: str, request_path: str) -> bool:
    """Whether a request has the method and a path that matches the glob; None matches everything."""
    same_method = method is None or method.upper() == request_method
    return same_method and (glob is None or path_pattern(glob).fullmatch(request_path) is not None)


@dataclass(frozen=True, slots=True)
class Response:
    """A response and how it is sent.

    :param status: HTTP status code; None if there is no response
    :param body: the body's bytes
    :param headers: header fields
    :param broken: how the connection breaks without a response: `reset`, `drop` (it is closed) or `garbage` (bytes
        that aren't HTTP)
    :param drip_seconds: time over which the body is spread, byte by byte
    :param missing_bytes: bytes that Content-Length announces and that are never sent
    :param padding_bytes: white space after the body
    """

    status: int | None
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    broken: str = ""
    drip_seconds: float = 0.0
    missing_bytes: int = 0
    padding_bytes: int = 0

    @property
    def length(self) -> int:
        """The announced length of the body."""
        return len(self.body) + self.missing_bytes + self.padding_bytes

    @property
    def drip_interval_seconds(self) -> float:
        """The seconds between two chunks of the body."""
        return self.drip_seconds / max(len(self.body), 1)

    def chunks(self) -> Iterator[bytes]:
        """Yield the body in chunks: single bytes if it drips."""
        size = 1 if self.drip_seconds else CHUNK_BYTES
        for start in range(0, len(self.body), size):
            yield self.body[start : start + size]
        for start in range(0, self.padding_bytes, CHUNK_BYTES):
            yield b" " * min(CHUNK_BYTES, self.padding_bytes - start)


@dataclass(eq=False)
class ApiError(Exception):
    """A request that is rejected.

    :param status: HTTP status code
    :param message: the reason
    :param headers: additional header fields
    """

    status: int
    message: str
    headers: Mapping[str, str] | None = None

    def response(self) -> Response:
        """Return the error as a JSON response."""
        return json_response({"error": {"status": self.status, "message": self.message}}, self.status, self.headers)


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with a JSON body, which may contain dataclasses and times."""
    body = json.dumps(value, default=_plain).encode()
    return Response(status, body, {"content-type": "application/json", **(headers or {})})


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else asdict(value)


def read_body(request: Request) -> Object | None:
    """Return the request's JSON object, or None if it has no body.

    :raises ApiError: the body has another content type, isn't valid JSON, or isn't an object
    """
    if not request.body:
        return None
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise ApiError(400, f"the body must be application/json, not {content_type or 'of unknown type'}")
    try:
        value: Json = json.loads(request.body.decode("utf-8"))
        # Python also reads NaN and numbers that become infinite.
        json.dumps(value, allow_nan=False)
        depth = _depth(value)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body isn't valid JSON: {error}") from error
    if not isinstance(value, dict) or depth > MAX_NESTING:
        raise ApiError(400, f"the body must be a JSON object, nested at most {MAX_NESTING} levels deep")
    return value


def _depth(value: Json) -> int:
    """Return the number of nested levels."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)
