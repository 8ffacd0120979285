"""Decode a long JSON list item by item, so that other threads can run and unwanted items are dropped at once.

`json.loads` blocks every other thread until it has decoded the whole text; item by item takes no longer in total.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable
from functools import partial
from json import JSONDecodeError
from typing import TypeAlias

from techflow_provider.client.parsing import DecodeError, Json, json_text, not_json

# A row is compared with so many of the last time.
ROWS_AHEAD = 3
# Reading so many rows takes seconds.
MAX_ITEMS = 500_000
_ListReader: TypeAlias = Callable[[str, int], tuple[list[Json], int]]
_decode = json.JSONDecoder().raw_decode
_space = re.compile(r"[ \t\n\r]*").match


def keep_all(_: Json) -> bool:
    """Skip nothing."""
    return False


def no_subject(_: Json) -> int:
    """Record nothing."""
    return 0


class RowMemory:
    """The rows of a list as they were read last, so that those that haven't changed aren't decoded again.

    Rows usually keep their order while some are added, changed or removed, so each is compared with the next few. A row
    is remembered with what separates it from the next one.

    :param subjects: what the rows are about, as far as they are about something
    :param matched: how many haven't changed
    """

    def __init__(self) -> None:
        self.subjects: set[int] = set()
        self.matched: int = 0
        self._position = 0
        self._known = self._read = (array("q"), array("q"), array("q"))

    def begin(self) -> None:
        """Read the list again."""
        self._known, self._read = self._read, (array("q"), array("q"), array("q"))
        self.subjects = set()
        self._position = self.matched = 0

    def skip(self, text: str, at: int) -> int:
        """Return where the next row begins that has changed, or the last one ends."""
        lengths, hashes, subjects = self._known
        ahead = range(self._position, min(self._position + ROWS_AHEAD, len(lengths)))
        same = (each for each in ahead if hash(text[at : at + lengths[each]]) == hashes[each])
        number = first = next(same, len(lengths))
        while number < len(lengths) and hash(text[at : at + lengths[number]]) == hashes[number]:
            at += lengths[number]
            number += 1
        if number > first:
            self._position = number
            self.matched += number - first
            self.subjects.update(subjects[first:number])
            for read, known in zip(self._read, self._known, strict=True):
                read.extend(known[first:number])
        return at

    def end(self) -> set[int]:
        """Return what the rows are about, and keep no more than the next reading needs."""
        subjects, self.subjects, self._known = self.subjects, set(), (array("q"), array("q"), array("q"))
        return subjects

    def add(self, text: str, at: int, end: int, subject: int) -> None:
        """Remember a row that was decoded.

        :param end: where the next one begins
        :param subject: what it is about; 0 for nothing
        """
        for read, value in zip(self._read, (end - at, hash(text[at:end]), subject), strict=True):
            read.append(value)
        self.subjects.add(subject)


def parse_list(
    content: bytes,
    skips: Callable[[Json], bool] = keep_all,
    content_type: str = "",
    memory: RowMemory | None = None,
    subject_of: Callable[[Json], int] = no_subject,
) -> Json:
    """Return the JSON value that the bytes contain, as `parse_json` does, without the skipped items.

    Items are skipped in a list that is the value itself, or a member of the object that is.

    :param skips: whether an item is left out
    :param memory: of the items that were read last; those that haven't changed are left out, too
    :param subject_of: returns what the memory records of an item
    :param content_type: as in `parse_json`
    :raises DecodeError: they are not JSON, or unpack to too much
    """
    try:
        text = json_text(content, content_type)
        if memory is not None:
            memory.begin()
        value, at = _value(text, _after_space(text, 0), partial(_list, skips, memory, subject_of))
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


def _value(text: str, at: int, read: _ListReader) -> tuple[Json, int]:
    if text[at : at + 1] == "[":
        return read(text, at)
    if text[at : at + 1] == "{":
        return _object(text, at, read)
    value: tuple[Json, int] = _decode(text, at)
    return value


def _list(
    skips: Callable[[Json], bool], memory: RowMemory | None, subject_of: Callable[[Json], int], text: str, at: int
) -> tuple[list[Json], int]:
    kept: list[Json] = []
    at = _after_space(text, at + 1)
    if text[at : at + 1] == "]":
        return kept, at + 1
    for _ in range(MAX_ITEMS):
        begin = at if memory is None else memory.skip(text, at)
        if begin > at and text[begin - 1] == "]":
            # What follows the last row is remembered with it.
            return kept, begin
        item, at = _decode(text, begin)
        ended, at = (False, text.index("{", at)) if text.startswith((", {", ",{"), at) else _next(text, at, "]")
        if memory is not None:
            memory.add(text, begin, at, subject_of(item))
        if not skips(item):
            kept.append(item)
        if ended:
            return kept, at
    raise DecodeError(f"a list of at most {MAX_ITEMS} items", "more of them")


def _object(text: str, at: int, read: _ListReader) -> tuple[dict[str, Json], int]:
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
        members[name], at = read(text, at) if text[at : at + 1] == "[" else _decode(text, at)
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
