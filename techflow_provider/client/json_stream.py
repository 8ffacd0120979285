"""Decode a long JSON list item by item, so that other threads can run and unwanted items are dropped at once.

`json.loads` blocks every other thread until it has decoded the whole text; item by item takes no longer in total.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from json import JSONDecodeError

from techflow_provider.client.parsing import DecodeError, Json, json_text, not_json

# Reading so many rows takes seconds.
MAX_ITEMS = 500_000
_decode = json.JSONDecoder().raw_decode
_space = re.compile(r"[ \t\n\r]*").match


def keep_all(_: Json) -> bool:
    """Skip nothing."""
    return False


def parse_list(content: bytes, skips: Callable[[Json], bool] = keep_all, content_type: str = "") -> Json:
    """Return the JSON value that the bytes contain, as `parse_json` does, without the skipped items.

    Items are skipped in a list that is the value itself, or a member of the object that is.

    :param skips: whether an item is left out
    :param content_type: as in `parse_json`
    :raises DecodeError: they are not JSON, or unpack to too much
    """
    try:
        text = json_text(content, content_type)
        value, at = _value(text, _after_space(text, 0), skips)
        if at != len(text) and _after_space(text, at) != len(text):
            raise JSONDecodeError("Extra data", text, at)
    except DecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise not_json(content, error) from error
    return value


def _after_space(text: str, at: int) -> int:
    match = _space(text, at)
    return match.end() if match else at


def _value(text: str, at: int, skips: Callable[[Json], bool]) -> tuple[Json, int]:
    if text[at : at + 1] == "[":
        return _list(text, at, skips)
    if text[at : at + 1] == "{":
        return _object(text, at, skips)
    value: tuple[Json, int] = _decode(text, at)
    return value


def _list(text: str, at: int, skips: Callable[[Json], bool]) -> tuple[list[Json], int]:
    kept: list[Json] = []
    at = _after_space(text, at + 1)
    if text[at : at + 1] == "]":
        return kept, at + 1
    for _ in range(MAX_ITEMS):
        item, at = _decode(text, at)
        if not skips(item):
            kept.append(item)
        if text.startswith((", {", ",{"), at):
            # What nearly always separates two items.
            at = text.index("{", at)
            continue
        ended, at = _next(text, at, "]")
        if ended:
            return kept, at
    raise DecodeError(f"a list of at most {MAX_ITEMS} items", "more of them")


def _object(text: str, at: int, skips: Callable[[Json], bool]) -> tuple[dict[str, Json], int]:
    members: dict[str, Json] = {}
    at = _after_space(text, at + 1)
    if text[at : at + 1] == "}":
        return members, at + 1
    while True:
        if text[at : at + 1] != '"':
            raise JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
        name, at = _decode(text, at)
        at = _after_space(text, at)
        if text[at : at + 1] != ":":
            raise JSONDecodeError("Expecting ':' delimiter", text, at)
        at = _after_space(text, at + 1)
        members[name], at = _list(text, at, skips) if text[at : at + 1] == "[" else _decode(text, at)
        ended, at = _next(text, at, "}")
        if ended:
            return members, at


def _next(text: str, at: int, closing: str) -> tuple[bool, int]:
    """Return whether the list or object is complete, and where its next item, or what follows it, begins."""
    at = _after_space(text, at)
    if text[at : at + 1] == closing:
        return True, at + 1
    if text[at : at + 1] != ",":
        raise JSONDecodeError("Expecting ',' delimiter", text, at)
    return False, _after_space(text, at + 1)
