"""Requests and answers apart from any transport, and the strict reading of a request's parts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NoReturn, TypeAlias
from urllib.parse import parse_qs, unquote

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Object: TypeAlias = "dict[str, Json]"

PREFIX = "/v2"
PIECE_BYTES = 65536
# Python copies and writes nested values by recursion, which has its own limit further up.
DEEPEST_NESTING = 100


@dataclass(frozen=True)
class Request:
    """A request as it arrived.

    :param method: HTTP method
    :param target: path and query, still percent-encoded
    :param headers: header fields with lower-case names
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
        """The path below the base URL, percent-encoded, without the query; other paths as they are."""
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
        """The query's parameters, the last value of each."""
        pairs = parse_qs(self.target.partition("?")[2], keep_blank_values=True)
        return {name: values[-1] for name, values in pairs.items()}


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer.

    :param status: HTTP status code
    :param body: the body's bytes
    :param headers: header fields
    """

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pause:
    """Time that passes before a request is acted upon, or before it is answered; infinite means for ever."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Delivery:
    """An answer and the way in which it is delivered.

    :param answer: what is sent, or None when there is no answer
    :param broken: how the connection ends without an answer: by a reset, by a close, or by bytes that are no HTTP
    :param drip_seconds: time over which the body is spread, piece by piece
    :param missing_bytes: bytes that Content-Length announces and that never come
    :param padding_bytes: white space after the body
    """

    answer: Answer | None = None
    broken: str = ""
    drip_seconds: float = 0.0
    missing_bytes: int = 0
    padding_bytes: int = 0

    @property
    def status(self) -> int | None:
        """The status code that is sent, or None."""
        return self.answer.status if self.answer else None

    @property
    def length(self) -> int:
        """The body's length as it is announced."""
        return len(self.answer.body if self.answer else b"") + self.missing_bytes + self.padding_bytes

    @property
    def pauses(self) -> float:
        """The seconds between two pieces of the body."""
        return self.drip_seconds / max(len(self.answer.body if self.answer else b""), 1)

    def pieces(self) -> Iterator[bytes]:
        """Yield the body in pieces: single bytes when it drips."""
        body = self.answer.body if self.answer else b""
        size = 1 if self.drip_seconds else PIECE_BYTES
        for start in range(0, len(body), size):
            yield body[start : start + size]
        for start in range(0, self.padding_bytes, PIECE_BYTES):
            yield b" " * min(PIECE_BYTES, self.padding_bytes - start)


class ApiError(Exception):
    """A request that is refused.

    :param status: HTTP status code
    :param message: why, in words
    :param headers: further header fields
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.headers = headers or {}

    def answer(self) -> Answer:
        """Return the refusal as JSON."""
        return json_answer({"error": {"status": self.status, "message": self.message}}, self.status, self.headers)


def json_answer(value: Json, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Return an answer with a JSON body."""
    return Answer(status, json.dumps(value).encode(), {"content-type": "application/json", **(headers or {})})


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text} is too large")
    return value


def read_body(request: Request) -> Object | None:
    """Return the request's JSON object, or None when it has no body.

    :raises ApiError: the body is of another content type, is no JSON, or is no object
    """
    if not request.body:
        return None
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise ApiError(400, f"the body must be application/json, not {content_type or 'of unknown type'}")
    try:
        value: Json = json.loads(request.body.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object")
    if _depth(value) > DEEPEST_NESTING:
        raise ApiError(400, f"the body is nested deeper than {DEEPEST_NESTING}")
    return value


def _depth(value: Json) -> int:
    """Return how deep a value is nested."""
    depth = 0
    level: list[Json] = [value]
    while level:
        depth += 1
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [each for values in inner for each in values]
    return depth
