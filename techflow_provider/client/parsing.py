"""Parse JSON of uncertain shape: get a value under one of several names, and quote what was received instead.

TechFlow's reference shows one response and names none of the fields of an execution, so every reader is tolerant of
names and strict about meaning: a value of an implausible type is rejected, never guessed at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

LONGEST_QUOTE = 200
# Shorter durations are shown with a fraction.
SHORTEST_WHOLE_SECONDS = 10
# Seconds since 1970 reach this number in the year 5138; a larger one counts milliseconds.
LARGEST_EPOCH_SECONDS = 100_000_000_000


@dataclass(eq=False)
class DecodeError(ValueError):
    """A value does not have the expected shape.

    :param expected: what was expected, human-readable
    :param received: what was received, shortened
    """

    expected: str
    received: str

    def __str__(self) -> str:
        return f"expected {self.expected}, got {self.received}"


def shorten(text: str, longest: int = LONGEST_QUOTE) -> str:
    """Return text on one line, without control characters, cut to a length fit for a message."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: longest * 4]).split())
    return line if len(line) <= longest else f"{line[:longest]}…"


def quote(value: object) -> str:
    """Return a value from JSON as it would be written there, with its type's name, shortened for a message."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    name = names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
    # Only the beginning is written, so that quoting a large value stays cheap.
    if isinstance(value, dict):
        value = dict(list(value.items())[:20])
    elif isinstance(value, str | list):
        value = value[:1000] if isinstance(value, str) else value[:5]
    return name if value is None else f"{name}: {shorten(json.dumps(value, ensure_ascii=False, default=str))}"


def parse_json(content: bytes) -> Json:
    """Return the JSON value that the bytes contain.

    :raises DecodeError: they are not JSON
    """
    try:
        value: Json = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise not_json(content, error) from error
    return value


def not_json(content: bytes, error: Exception) -> DecodeError:
    """Return the error for bytes that are not JSON."""
    text = content[: LONGEST_QUOTE * 4].decode("utf-8", errors="replace")
    received = f"{len(content)} bytes that begin {shorten(text)!r}" if content.strip() else "an empty body"
    return DecodeError("JSON", f"{received} ({shorten(str(error), 80)})")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as `1 workflow`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def in_seconds(seconds: float) -> str:
    """Return a duration for a message: a short one with a fraction, such as `0.5 s`, a long one without."""
    return f"{seconds:.0f} s" if seconds >= SHORTEST_WHOLE_SECONDS else f"{round(seconds, 2):g} s"


def get_first(source: Mapping[str, Json], *names: str) -> Json:
    """Return the first value that is not null under one of the names, in `snake_case` or `camelCase`."""
    for name in names:
        value = source.get(name)
        if value is not None:
            return value
    folded: dict[str, Json] = {}
    for key, value in source.items():
        if value is not None:
            folded[key.replace("_", "").replace("-", "").lower()] = value
    for name in names:
        value = folded.get(name.replace("_", ""))
        if value is not None:
            return value
    return None


def read_object(value: Json, expected: str) -> dict[str, Json]:
    """Return the value when it is an object.

    :raises DecodeError: it is anything else
    """
    if not isinstance(value, dict):
        raise DecodeError(expected, quote(value))
    return value


def unwrap(value: Json, expected: str, wrapper: str, *id_names: str) -> dict[str, Json]:
    """Return an object that has an id, or the one inside it under its own name or `data`.

    :raises DecodeError: there is no object, or both `data` and the object around it have an id
    """
    outer = read_object(value, expected)
    for name in (wrapper, "data"):
        inner = outer.get(name)
        if not isinstance(inner, dict) or get_first(inner, *id_names) is None:
            continue
        if name == "data" and get_first(outer, *id_names) is not None:
            raise DecodeError("one object with an id, not one inside another", quote(value))
        return inner
    return outer


def items(value: Json, expected: str, *wrappers: str) -> Iterator[Json]:
    """Return the items of a bare list, or of a list under one of the wrappers' names.

    :raises DecodeError: there is no list
    """
    if isinstance(value, dict):
        lists = [value[name] for name in (*wrappers, "data", "items", "results") if name in value]
        value = lists[0] if lists else value
    if not isinstance(value, list):
        raise DecodeError(expected, quote(value))
    return iter(value)


def read_id(source: Mapping[str, Json], expected: str, *names: str) -> str:
    """Return an identifier as text; whole numbers are accepted.

    :raises DecodeError: it is missing, empty or of another type
    """
    value = get_first(source, *names)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise DecodeError(f"{expected} with {' or '.join(names)}", quote(dict(source)))
    return value


def read_text(source: Mapping[str, Json], *names: str) -> str | None:
    """Return a text, or None when none is given.

    :raises DecodeError: it is of another type
    """
    value = get_first(source, *names)
    if value is not None and not isinstance(value, str):
        raise DecodeError(f"text as {names[0]}", quote(value))
    return value


def read_time(source: Mapping[str, Json], *names: str) -> datetime | None:
    """Return an instant in UTC from ISO 8601 text or a number of seconds since 1970, or None when none is given.

    :raises DecodeError: it is neither
    """
    value = get_first(source, *names)
    if value is None or value == "":
        return None
    try:
        if isinstance(value, str):
            return _from_text(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return _from_epoch(value)
    except (ValueError, OverflowError, OSError):
        pass
    raise DecodeError(f"an ISO 8601 time or a number of seconds since 1970 as {names[0]}", quote(value))


def _from_epoch(value: float) -> datetime:
    return datetime.fromtimestamp(value / 1000 if value > LARGEST_EPOCH_SECONDS else value, tz=UTC)


def _from_text(value: str) -> datetime:
    if value.isdigit() and len(value) > len("20201101"):
        return _from_epoch(int(value))
    try:
        instant = datetime.fromisoformat(value)
    except ValueError:
        instant = _from_unusual_text(value)
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


def _from_unusual_text(value: str) -> datetime:
    # Pendulum reads the rarer forms of ISO 8601; the standard library reads the usual ones twenty times faster.
    import pendulum

    instant = pendulum.parse(value, exact=True)
    if not isinstance(instant, datetime):
        raise ValueError(value)
    return instant


def http_date(value: str) -> datetime | None:
    """Return the instant of an HTTP date in UTC, or None when it isn't one."""
    try:
        moment = parsedate_to_datetime(value)
    except (TypeError, ValueError, IndexError):
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
