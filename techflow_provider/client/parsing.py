"""Parse JSON of uncertain shape: get a value under one of several names, and quote what was received instead.

TechFlow's reference shows one response and names none of the fields of an execution, so every reader is tolerant of
names and strict about meaning: a value of an implausible type is rejected, never guessed at.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeAlias

import httpx

from techflow_provider.client.text import printable

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
# Usual names of fields, each with a TechFlow's own, in which dots lead to nested objects.
Names: TypeAlias = tuple[tuple[str, str], ...]

LONGEST_QUOTE = 200
OTHER_NAMES = "(if this TechFlow has other names, doctor --learn shows what to set in the connection's extra)"
# Shorter durations are shown with a fraction.
SHORTEST_WHOLE_SECONDS = 10
# Seconds since 1970 reach this number in the year 5138; a larger one counts milliseconds, micro- or nanoseconds.
LARGEST_EPOCH_SECONDS = 100_000_000_000
# A time outside of these years stands for none: the zero of a date type, or the largest value of one.
PLAUSIBLE_YEARS = range(1971, 2200)
LONGEST_TIME = 64
# Bounds on what a body unpacks to in memory; a history of 100,000 rows with 20 fields stays below them.
MAX_VALUES = 3_000_000
MAX_DEPTH = 100
COUNTED_BYTES = 256 * 1024
CHARSET = re.compile(r"""charset\s*=\s*["']?([\w.:+-]{1,40})""", re.ASCII | re.IGNORECASE)
# Python has codecs that aren't charsets, some of which are slow or raise anything.
CHARSETS = re.compile(r"(ascii|utf-(8|16|32)|iso8859-|cp\d|mac-|koi8|gb|big5|euc_|shift_jis|iso2022)")
# "UTC" or "GMT" after a time, and space before its offset.
ZONE_NAME = re.compile(r"\s*\[?(?:UTC|GMT)\]?$")
OFFSET_SPACE = re.compile(r"\s+(?=(?:Z|[+-]\d\d:?\d\d)$)")
# The zero of a date type in an HTTP date, which would be read as 2001.
ZERO_YEAR = " 0001 "
# All that reading a time can raise.
TIME_ERRORS = (IndexError, OSError, OverflowError, TypeError, ValueError)


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
    """Return text on one line, printable, cut to a length fit for a message."""
    line = printable(" ".join(text[: longest * 4].split()))
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
    try:
        written = json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, TypeError, ValueError):
        value = None
    return name if value is None else f"{name}: {shorten(written)}"


def parse_json(content: bytes, content_type: str = "") -> Json:
    """Return the JSON value that the bytes contain.

    :param content_type: names the charset of bytes that aren't Unicode
    :raises DecodeError: they are not JSON, or unpack to too much
    """
    return decode(content, content_type, lambda text: check_depth(json.loads(text)))


def decode(content: bytes, content_type: str, read: Callable[[str], Json]) -> Json:
    """Return what a function reads from the text of bytes that should be JSON.

    :raises DecodeError: they are not JSON, or unpack to too much
    """
    try:
        return read(json_text(content, content_type))
    except DecodeError:
        raise
    except (ValueError, RecursionError) as error:
        text = content[: LONGEST_QUOTE * 4].decode("utf-8", errors="replace")
        received = f"{len(content)} bytes that begin {shorten(text)!r}" if content.strip() else "an empty body"
        raise DecodeError("JSON", f"{received} ({shorten(str(error), 80)})") from error


def json_of(response: httpx.Response) -> Json:
    """Return the JSON value of a response.

    :raises DecodeError: its body is not JSON, or unpacks to too much
    """
    return parse_json(response.content, response.headers.get("content-type", ""))


def json_text(content: bytes, content_type: str = "") -> str:
    """Return the text of bytes that should be JSON: Unicode as JSON requires, else in the charset that is named.

    :raises DecodeError: it would unpack to too much
    :raises ValueError: the bytes aren't text
    """
    values = 0
    for start in range(0, len(content), COUNTED_BYTES):
        # Each value is preceded by one of these, and some appear in text as well.
        piece = content[start : start + COUNTED_BYTES]
        values += piece.count(b",") + piece.count(b"[") + piece.count(b"{")
        if values > MAX_VALUES:
            raise DecodeError(f"JSON with at most {MAX_VALUES} values", f"{len(content)} bytes with more of them")
    try:
        return content.decode(json.detect_encoding(content), "surrogatepass")
    except UnicodeDecodeError:
        charset = charset_of(content_type)
        if charset is None:
            raise
        return content.decode(charset)


def charset_of(content_type: str) -> str | None:
    """Return the charset that a Content-Type names, or None when it names none that is known."""
    named = CHARSET.search(content_type)
    try:
        charset = codecs.lookup(named[1]).name if named else ""
    except LookupError:
        return None
    return charset if CHARSETS.match(charset) else None


def check_depth(value: Json) -> Json:
    """Return the value, unless it is too deep for what it may be passed to.

    :raises DecodeError: it is
    """
    if _is_deep(value, MAX_DEPTH):
        raise DecodeError(f"at most {MAX_DEPTH} levels of lists and objects", "more of them")
    return value


def _is_deep(value: Json, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deep(each, levels - 1) for each in inner if isinstance(each, dict | list))


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as `1 workflow`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def in_seconds(seconds: float) -> str:
    """Return a duration for a message: a short one with a fraction, such as `0.5 s`, a long one without."""
    return f"{seconds:.0f} s" if seconds >= SHORTEST_WHOLE_SECONDS else f"{round(seconds, 2):g} s"


def get_first(source: Mapping[str, Json], *names: str) -> Json:
    """Return the first value that is not null under one of the names, in `snake_case` or `camelCase`.

    :param names: with a dot for a field of a nested object
    """
    for name in names:
        outer, dot, inner = name.partition(".")
        value = source.get(outer)
        if dot:
            value = get_first(value, inner) if isinstance(value, dict) else None
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


def add_usual_names(source: dict[str, Json], names: Names) -> dict[str, Json]:
    """Return an object in which what has a TechFlow's own names has the usual ones, too."""
    if not names:
        return source
    found = {usual: value for usual, own in names if (value := get_first(source, own)) is not None}
    return {**source, **found}


def set_fields(source: Mapping[str, Json], fields: Mapping[str, Json], names: Names) -> dict[str, Json]:
    """Return an object with fields set, which are given by their usual names, under a TechFlow's own names."""
    changed, own_names = dict(source), dict(names)
    for usual, value in fields.items():
        outer, dot, inner = own_names.get(usual, usual).partition(".")
        nested = changed.get(outer)
        rest = nested if isinstance(nested, dict) else {}
        changed[outer] = set_fields(rest, {inner: value}, ()) if dot else value
    return changed


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
        raise DecodeError(f"{expected} with {' or '.join(names)} {OTHER_NAMES}", quote(dict(source)))
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
    """Return an instant in UTC from ISO 8601 text or a number of seconds since 1970.

    None stands for a time that isn't given, can't be read or isn't plausible: a row without a time is of use, too.
    """
    value = get_first(source, *names)
    try:
        if isinstance(value, str):
            return _plausible(_from_text(value))
        if isinstance(value, int | float) and not isinstance(value, bool):
            return _plausible(_from_epoch(value))
    except TIME_ERRORS:
        pass
    return None


def _plausible(instant: datetime) -> datetime | None:
    aware = instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant
    return aware.astimezone(UTC) if aware.year in PLAUSIBLE_YEARS else None


def _from_epoch(value: float) -> datetime:
    for _ in ("milli", "micro", "nano"):
        value = value / 1000 if value > LARGEST_EPOCH_SECONDS else value
    return datetime.fromtimestamp(value, tz=UTC)


def _from_text(value: str) -> datetime:
    if value.isdecimal() and len("20201101") < len(value) <= LONGEST_TIME:
        return _from_epoch(int(value))
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        text = OFFSET_SPACE.sub("", ZONE_NAME.sub("", value[:LONGEST_TIME].strip().upper()))
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return _from_http(value)


def _from_http(value: str) -> datetime:
    if len(value) > LONGEST_TIME or ZERO_YEAR in value:
        raise ValueError(value)
    return parsedate_to_datetime(value)


def http_date(value: str) -> datetime | None:
    """Return the instant of an HTTP date in UTC, or None when it isn't a plausible one."""
    try:
        return _plausible(_from_http(value))
    except TIME_ERRORS:
        return None
