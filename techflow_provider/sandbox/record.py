"""What arrived at a sandbox. Neither keys nor header fields nor bodies are kept."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache

# About 20 MB; the counters know of all requests.
KEPT_RECORDS = 100_000


@dataclass(frozen=True, slots=True)
class Record:
    """One request that arrived.

    :param at: when it arrived
    :param method: HTTP method
    :param path: path below the base URL, percent-encoded, without the query
    :param key_accepted: whether its key is one of the sandbox's
    :param status: the status code it was answered with; None while it is open and when it got no answer
    """

    at: datetime
    method: str
    path: str
    key_accepted: bool
    status: int | None = None


@lru_cache(maxsize=256)
def path_pattern(glob: str) -> re.Pattern[str]:
    """Return a glob over paths as a regular expression: `*` stands for one part of a path, `**` for any number."""
    parts = (".*" if part == "**" else "[^/]*" if part == "*" else re.escape(part) for part in re.split(r"(\*+)", glob))
    return re.compile("".join(parts), re.DOTALL)


def matches(method: str | None, glob: str | None, request_method: str, request_path: str) -> bool:
    """Whether a request has a method, when one is given, and a path, when a glob is given."""
    right_method = method is None or method.upper() == request_method
    return right_method and (glob is None or path_pattern(glob).fullmatch(request_path) is not None)


class Ledger:
    """The requests that arrived, the latest of them one by one and all of them counted. Not thread-safe by itself."""

    def __init__(self) -> None:
        self._records: OrderedDict[int, Record] = OrderedDict()
        self._counts: Counter[tuple[str, str, int | None]] = Counter()
        self._arrived = 0

    def arrive(self, record: Record) -> int:
        """Note a request and return its number."""
        self._arrived += 1
        self._records[self._arrived] = record
        self._counts[record.method, record.path, None] += 1
        if len(self._records) > KEPT_RECORDS:
            self._records.popitem(last=False)
        return self._arrived

    def settle(self, number: int, record: Record) -> None:
        """Put the final record of a request in the place of its first one."""
        if number in self._records:
            self._records[number] = record
        self._counts[record.method, record.path, None] -= 1
        self._counts[record.method, record.path, record.status] += 1

    def records(self) -> tuple[Record, ...]:
        """Return the latest records, oldest first."""
        return tuple(self._records.values())

    def counts(self) -> Iterator[tuple[str, str, int | None, int]]:
        """Yield method, path, status and number of the requests of each kind."""
        return ((*kind, number) for kind, number in sorted(self._counts.items(), key=str) if number)

    def count(self, method: str | None, glob: str | None, status: int | None) -> int:
        """Return how many requests have a method, a path and a status, each when given."""
        return sum(
            number
            for (its_method, path, its_status), number in self._counts.items()
            if (status is None or status == its_status) and matches(method, glob, its_method, path)
        )


def settled(record: Record, status: int | None) -> Record:
    """Return the record with the status its request was answered with."""
    return replace(record, status=status)
