"""What `doctor --learn` says: which shapes and words a page of the history has, and what they are taken for; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from techflow_provider.client.models import EXECUTION_NAMES, Execution, StatusWords
from techflow_provider.client.parsing import DecodeError, Json, get_first, items, parse_json, quote, shorten
from techflow_provider.client.settings import Settings

UNKNOWN_WORD = "running, since the word is not known: name it in completed_statuses or failed_statuses if it is an end"
MEANINGS = {
    "id": "the execution's id",
    "workflow_id": "its workflow",
    "status": "its status",
    "started_at": "when it started",
    "finished_at": "when it ended",
    "error": "why it failed",
}


@dataclass(frozen=True, slots=True)
class Inference:
    """Something that was met.

    :param what: a part of the answer
    :param met: what is there
    :param taken_for: what it is taken for
    """

    what: str
    met: str
    taken_for: str


def learn(response: httpx.Response, settings: Settings) -> list[Inference]:
    """Return what a page of the execution history teaches."""
    if settings.holds_key(response.content):
        return [Inference("answer", "words that repeat the API key and are not shown", "nothing")]
    try:
        value = parse_json(response.content)
        found = list(items(value, "a list of executions", "executions"))
    except DecodeError as error:
        return [Inference("answer", error.received, f"nothing: expected {error.expected}")]
    objects = [each for each in found if isinstance(each, dict)]
    return [
        Inference("answer", _shape(value), f"a list of {len(found)} executions"),
        Inference("next page", *_next_page(value, response)),
        *(_field(name, objects) for name in EXECUTION_NAMES),
        *_further(objects),
        *_status_words(objects, settings.status_words),
        *_unreadable(found),
    ]


def _shape(value: Json) -> str:
    return f"an object with {', '.join(map(shorten, value))}" if isinstance(value, dict) else "a bare list"


def _next_page(value: Json, response: httpx.Response) -> tuple[str, str]:
    linked = response.links.get("next", {}).get("url")
    url = linked or (value.get("next") if isinstance(value, dict) else None)
    return (shorten(str(url)), "the next page, when it lies on the same origin") if url else ("none", "the only page")


def _field(name: str, objects: Sequence[dict[str, Json]]) -> Inference:
    keys = Counter(key for each in objects if (key := _key(each, EXECUTION_NAMES[name])) is not None)
    met = ", ".join(f"{shorten(key)} in {count} of {len(objects)}" for key, count in keys.most_common(3))
    example = next(
        (get_first(each, *EXECUTION_NAMES[name]) for each in objects if get_first(each, *EXECUTION_NAMES[name])), None
    )
    return Inference(name, f"{met}, such as {quote(example)}" if met else "nothing", MEANINGS[name])


def _key(item: dict[str, Json], names: Sequence[str]) -> str | None:
    """Return under which key an item has what the readers would find."""
    value = get_first(item, *names)
    return None if value is None else next(key for key, each in item.items() if each is value)


def _further(objects: Sequence[dict[str, Json]]) -> list[Inference]:
    used = {_key(each, names) for each in objects for names in EXECUTION_NAMES.values()}
    known = {*used, *(name for names in EXECUTION_NAMES.values() for name in names)}
    others = dict.fromkeys(key for each in objects for key in each if key not in known)
    names = ", ".join(shorten(key, 40) for key in list(others)[:20])
    return [Inference("further fields", names, "kept as they are, and not used")] if others else []


def _status_words(objects: Sequence[dict[str, Json]], words: StatusWords) -> list[Inference]:
    found = (get_first(each, *EXECUTION_NAMES["status"]) for each in objects)
    counts = Counter(each for each in found if isinstance(each, str))
    return [
        Inference(
            f"status {shorten(word)!r}",
            f"in {count} of {len(objects)}",
            words.state(word) if words.knows(word) else UNKNOWN_WORD,
        )
        for word, count in counts.most_common()
    ]


def _unreadable(found: Sequence[Json]) -> list[Inference]:
    reasons: list[str] = []
    for each in found:
        try:
            Execution.read(each)
        except DecodeError as error:
            reasons.append(str(error))
    if not reasons:
        return []
    return [Inference("unreadable", f"{len(reasons)} of {len(found)}", f"an error, which ends the call: {reasons[0]}")]
