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

from techflow_provider.client.parsing import DecodeError, Json, check_depth, decode

# With how many rows of the last time each row is compared.
ROWS_AHEAD = 3
# Reading more rows would take seconds.
MAX_ITEMS = 500_000
_decode = json.JSONDecoder().raw_decode
_space = re.compile(r"[ \t\n\r]*")
# What precedes a member's name or value. Its syntax is checked when the text around the list is decoded.
_gap = re.compile(r"[ \t\n\r,:]*")
_objects = re.compile(r"\[[ \t\n\r]*\{").match
_separator = re.compile(r"[ \t\n\r]*(?:(\])|,[ \t\n\r]*)").match


def need_all(_: Json) -> tuple[bool, int]:
    """Need every row, whatever it is about."""
    return True, 0


class RowMemory:
    """The rows of a list as they were read last, so that those that haven't changed aren't decoded again.

    Rows usually keep their order while some are added, changed or removed, so each is compared with the next few. A row
    is remembered with what separates it from the next one.

    :param select: returns whether a row is needed, and a number for what it is about, 0 for nothing
    :param subjects: what the rows are about
    :param has_repeats: whether several are about the same
    :param left_out: how many haven't changed or aren't needed
    :param rest: the value without its rows
    """

    def __init__(self, select: Callable[[Json], tuple[bool, int]] = need_all) -> None:
        self.select: Callable[[Json], tuple[bool, int]] = select
        self.subjects: set[int] = set()
        self.has_repeats: bool = False
        self.left_out: int = 0
        self.rest: Json = None
        self._digest: int | None = None
        self._position = 0
        self._known = self._read = (array("q"), array("q"), array("q"))

    def begin(self, digest: int) -> bool:
        """Read the list again, and return whether it has changed.

        :param digest: hash of all that was received
        """
        if digest == self._digest and self.rest is not None:
            self.has_repeats, self.left_out = False, len(self._read[0])
            return False
        self.rest, self._digest = None, digest
        self._known, self._read = self._read, (array("q"), array("q"), array("q"))
        self.subjects, self.has_repeats = set(), False
        self._position = self.left_out = 0
        return True

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
            self.left_out += number - first
            self.subjects.update(subjects[first:number])
            for read, known in zip(self._read, self._known, strict=True):
                read.extend(known[first:number])
        return at

    def needs(self, row: Json, text: str, at: int, end: int) -> bool:
        """Remember a row that was decoded, and return whether it is needed.

        :param end: where the next one begins
        """
        needed, subject = self.select(row)
        for read, value in zip(self._read, (end - at, hash(text[at:end]), subject), strict=True):
            read.append(value)
        self.has_repeats |= subject != 0 and subject in self.subjects
        self.subjects.add(subject)
        self.left_out += not needed
        return needed


def parse_list(content: bytes, content_type: str = "", memory: RowMemory | None = None) -> Json:
    """Return the JSON value that the bytes contain, as `parse_json` does, without rows that aren't needed.

    The rows are those of a list that is the value itself, or of the first list of objects in the object that is.

    :param memory: of the rows that were read last; those that haven't changed are left out, too
    :param content_type: as in `parse_json`
    :raises DecodeError: they are not JSON, or unpack to too much
    """
    memory = memory or RowMemory()
    if not memory.begin(hash((content, content_type))):
        return memory.rest
    return decode(content, content_type, partial(_read_list, memory))


def _read_list(memory: RowMemory, text: str) -> Json:
    name, begin = _find_list(text)
    if begin < 0:
        return check_depth(json.loads(text))
    rows, end = _read_rows(text, begin + 1, memory)
    value: Json = json.loads(f"{text[: begin + 1]}{text[end - 1 :]}")
    memory.rest = {**value, name: []} if isinstance(value, dict) else []
    return {**value, name: rows} if isinstance(value, dict) else rows


def _find_list(text: str) -> tuple[str, int]:
    """Return the name of the member that has the rows, or no name for the value itself, and where their list begins.

    The position is -1 when there is no such list.
    """
    at = _after(_space, text, 0)
    if not text.startswith("{", at):
        return "", at if text.startswith("[", at) else -1
    at += 1
    while text.startswith('"', at := _after(_gap, text, at)):
        name, at = _decode(text, at)
        at = _after(_gap, text, at)
        if _objects(text, at):
            return name, at
        _, at = _decode(text, at)
    return "", -1


def _after(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _read_rows(text: str, at: int, memory: RowMemory) -> tuple[list[Json], int]:
    """Return the rows that are needed, and where the list ends."""
    rows: list[Json] = []
    at = _after(_space, text, at)
    if text.startswith("]", at):
        return rows, at + 1
    for _ in range(MAX_ITEMS):
        begin = memory.skip(text, at)
        if begin > at and text[begin - 1] == "]":
            # What follows the last row is remembered with it.
            return rows, begin
        row, at = _decode(text, begin)
        separator = _separator(text, at)
        if separator is None:
            raise JSONDecodeError("Expecting ',' delimiter", text, at)
        at = separator.end()
        if memory.needs(row, text, begin, at):
            rows.append(row)
        if separator[1]:
            return rows, at
    raise DecodeError(f"a list of at most {MAX_ITEMS} items", "more of them")
