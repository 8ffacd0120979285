"""What people and templates pass in, checked and normalised: ids, payloads, status words, choices; no I/O.

The same functions check a plain value when a DAG is parsed, and a rendered one when its task runs.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time
from functools import partial
from numbers import Integral
from typing import Any, TypeAlias, TypeVar

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.models import (
    COMPLETED_WORDS,
    FAILED_WORDS,
    RUNNING_WORDS,
    ExecutionState,
    StatusWords,
    status_word,
)
from techflow_provider.client.parsing import Json, quote, shorten

T = TypeVar("T")
# A template that is rendered natively makes the id "12346" an integer.
Id: TypeAlias = str | int
# What becomes a JSON object (see `as_payload`).
Payload: TypeAlias = Mapping[Any, Any] | str

SURROGATE = re.compile("[\ud800-\udfff]")
FINAL_WORDS = COMPLETED_WORDS | FAILED_WORDS
# The reference shows only the first.
WORKFLOW_WORDS = ("active", "inactive", "enabled", "disabled", "draft", "published", "archived")
EXPECTED_TRIGGERS = 'a list such as ["manual"]'
EXPECTED_IDS = "a list of ids such as ['exec_123']"
EXPECTED_TIME = "an ISO 8601 time with a time zone"
EXPECTED_PAYLOAD = "a dict, or text that contains a JSON object, such as {{ dag_run.conf | tojson }}"


def suggestion(word: str, words: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ` (did you mean …?)` with the nearest of some words, or nothing when none is near."""
    from difflib import get_close_matches

    return "".join(f" (did you mean {each}?)" for each in get_close_matches(word, sorted(words), 1, cutoff))


def as_choice(parameter: str, value: Any, choices: Sequence[str]) -> str:
    """Return one of some words.

    :raises InvalidParameterError: it is another one; the message names the nearest
    """
    if isinstance(value, str) and value in choices:
        return value
    received = quote(value) + (suggestion(value, choices) if isinstance(value, str) else "")
    raise InvalidParameterError(parameter, received, f"{', '.join(choices[:-1])} or {choices[-1]}")


def as_flag(parameter: str, value: Any) -> bool:
    """Return True or False.

    :raises InvalidParameterError: it is neither, such as the text "False", which would count as true
    """
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise InvalidParameterError(parameter, quote(value), "True or False")


def as_count(parameter: str, value: Any) -> int:
    """Return a whole number above 0.

    :raises InvalidParameterError: it isn't one
    """
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise InvalidParameterError(parameter, quote(value), "a whole number above 0")


def as_instant(parameter: str, value: Any) -> datetime | None:
    """Return a datetime with a time zone, or None; a template renders it as text, in one of several spellings.

    :raises InvalidParameterError: it isn't a time, or has no time zone
    """
    text = value.strip() if isinstance(value, str) else value
    try:
        instant = text if isinstance(text, datetime) else datetime.fromisoformat(text) if text else None
    except (TypeError, ValueError) as error:
        raise InvalidParameterError(parameter, quote(value), EXPECTED_TIME) from error
    if instant is not None and instant.tzinfo is None:
        raise InvalidParameterError(parameter, quote(value), EXPECTED_TIME)
    return instant


def as_text(parameter: str, value: Any, expected: str = "text that is not empty") -> str:
    """Return text that isn't blank; a whole number is accepted, which a template may have made of it.

    :raises InvalidParameterError: it is anything else
    """
    text = str(int(value)) if isinstance(value, Integral) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not text.strip():
        raise InvalidParameterError(parameter, quote(value), expected)
    return text


def as_id(parameter: str, value: Any) -> str:
    """Return an id, without the space around it that a template may leave.

    :raises InvalidParameterError: it is neither text nor a whole number, or is empty, `.` or `..`, which would name
        another resource in a URL
    """
    expected = "an id such as 'wf_123'" if "workflow" in parameter else "an id such as 'exec_123'"
    text = as_text(parameter, value, expected).strip()
    if text in (".", ".."):
        raise InvalidParameterError(parameter, quote(value), expected)
    if SURROGATE.search(text):
        raise InvalidParameterError(parameter, ascii(value), "text that UTF-8 can encode")
    return text


def as_ids(parameter: str, value: Any) -> list[str]:
    """Return ids, each of them once, from a list, or from text that contains one.

    :raises InvalidParameterError: it is anything else, or an item can't be an id
    """
    return list(dict.fromkeys(as_id(parameter, each) for each in _as_list(parameter, value, EXPECTED_IDS)))


def _as_list(parameter: str, value: Any, expected: str) -> list[Any]:
    source = parse_literal(parameter, value, expected) if isinstance(value, str) else value
    if isinstance(source, str | bytes | Mapping) or not isinstance(source, Iterable):
        raise InvalidParameterError(parameter, quote(value), expected)
    return list(source)


def optional(check: Callable[[str, Any], T], *, blank: bool = True) -> Callable[[str, Any], T | None]:
    """Return a check that lets None pass.

    :param blank: whether blank text, which a template may render, counts as None
    """

    def check_optional(parameter: str, value: Any) -> T | None:
        is_blank = blank and isinstance(value, str) and not value.strip()
        return None if value is None or is_blank else check(parameter, value)

    return check_optional


def rendered(check: Callable[[str, Any], T]) -> Callable[[str, Any], T]:
    """Return a check that also takes the text that a template renders in place of a flag or a number."""

    def check_rendered(parameter: str, value: Any) -> T:
        try:
            parsed = parse_literal(parameter, value, "") if isinstance(value, str) else value
        except InvalidParameterError:
            parsed = value
        return check(parameter, parsed)

    return check_rendered


def as_statuses(parameter: str, value: Any) -> tuple[str, ...]:
    """Return final status words; one alone counts as a list of one.

    :raises InvalidParameterError: there is none, or one that can't be the final status of any TechFlow: it means that
        an execution is running, or is a misspelt word
    """
    words = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else ()
    expected = "final status words such as completed or failed"
    if not words or not all(isinstance(word, str) and status_word(word) for word in words):
        raise InvalidParameterError(parameter, quote(value), expected)
    for word in words:
        spelt = status_word(word)
        is_own = spelt not in RUNNING_WORDS and any(known in spelt for known in FINAL_WORDS)
        nearest = "" if is_own else suggestion(spelt, FINAL_WORDS, 0.8)
        if spelt in RUNNING_WORDS or nearest:
            raise InvalidParameterError(parameter, quote(word) + nearest, expected)
    return words


def check_final(parameter: str, statuses: Iterable[str], words: StatusWords) -> None:
    """Check that status words are final ones of a connection; an execution with any other counts as running for ever.

    :raises InvalidParameterError: one isn't
    """
    for word in statuses:
        if words.state(word) is ExecutionState.RUNNING:
            known = sorted(FINAL_WORDS | words.completed | words.failed)
            expected = f"one of {', '.join(known)}, or another after adding it to the connection's completed_statuses"
            raise InvalidParameterError(parameter, quote(word) + suggestion(word, known), expected)


def as_payload(parameter: str, value: Any) -> dict[str, Json] | None:
    """Return a payload as a JSON object.

    :param value: a mapping, or text: JSON, or the dict that a template such as `{{ dag_run.conf }}` renders; None and
        blank text mean that there isn't one
    :raises InvalidParameterError: it is anything else, or contains a value that JSON can't represent
    """
    source = value
    if isinstance(value, str):
        source = parse_literal(parameter, value, EXPECTED_PAYLOAD) if value.strip() else None
    if source is None:
        return None
    if not isinstance(source, Mapping):
        raise InvalidParameterError(parameter, quote(value), EXPECTED_PAYLOAD)
    payload: dict[str, Json] = as_json(parameter, source)
    return payload


def parse_literal(parameter: str, text: str, expected: str) -> Any:
    """Return the value that JSON text or a Python literal contains.

    :raises InvalidParameterError: it contains none
    """
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    raise InvalidParameterError(parameter, quote(text), expected)


def as_description(parameter: str, value: Any) -> str | None:
    """Return text, which may be empty, or None; a whole number is accepted.

    :raises InvalidParameterError: it is anything else
    """
    return value if value is None or value == "" else as_text(parameter, value, "text or None")


def as_triggers(parameter: str, value: Any) -> list[Json]:
    """Return the triggers of a workflow: texts and objects, from a list, or from text that contains one.

    :raises InvalidParameterError: it is anything else
    """
    triggers: list[Json] = as_json(parameter, _as_list(parameter, value, EXPECTED_TRIGGERS))
    for each in triggers:
        if not isinstance(each, str | dict):
            raise InvalidParameterError(parameter, f"an item that is {quote(each)}", "texts or dicts")
    return triggers


def as_json(parameter: str, value: Any) -> Any:
    """Return a value as JSON: lazy sequences, tuples and sets as lists, times in ISO 8601, keys as JSON writes them.

    :raises InvalidParameterError: JSON can't represent it
    """
    try:
        content = json.dumps(value, default=_plain, allow_nan=False, ensure_ascii=False).encode()
        return json.loads(content, object_pairs_hook=_object)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidParameterError(parameter, shorten(str(error)), "a value that JSON can represent") from error


def _plain(value: Any) -> Any:
    """Return what the `json` module can write in place of a value that it can't."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, AbstractSet):
        # A set has no order, but a retry must send the same.
        return sorted(value, key=partial(json.dumps, default=_plain))
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return list(value)
    raise TypeError(quote(value))


def _object(members: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(members)
    if len(found) < len(members):
        raise ValueError(f"two keys that JSON writes alike, among {quote(list(found))}")
    return found
