"""What the readers of one API key's history share: who polls, what the last poll showed, and what each one wants; pure.

There is one entry for the shared poll, and one for each reader that doesn't poll itself, with the rows that it wants.
Times are kept as ages, since a store has a clock of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from hashlib import blake2b
from typing import Any

from techflow_provider.client.history import History, HistoryFilter
from techflow_provider.client.parsing import Json
from techflow_provider.state.store import Change, Entry, Write

BOARD_TTL_SECONDS = 24 * 3600.0
# A reader that wants more executions than this gets every row that changes.
MOST_IDS = 200
# The rows of one reader fill no more than this; beyond, it polls itself.
LARGEST_ROWS = 64 * 1024
# A poll may take this long, or twice as long as the last one, before another reader polls.
SHORTEST_LEASE_SECONDS = 4.0
LONGEST_LEASE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Board:
    """The shared poll of one API key.

    :param holder: the reader that polls, or polled last
    :param is_polling: whether the holder has not reported its last attempt
    :param lasting: whether the holder will poll again
    :param interval: the time between two polls
    :param attempt: seconds since the last attempt began
    :param began: seconds since the last one that succeeded began
    :param seconds: how long it took
    :param at: the server's clock then
    :param unreadable: how many of the rows and pages can't be read, or aren't read yet
    :param error: class and arguments of the server's error since then
    :param following: URL of the page at which the next poll continues
    """

    holder: str = ""
    is_polling: bool = False
    lasting: bool = False
    interval: float = 0.0
    attempt: float = math.inf
    began: float = math.inf
    seconds: float = 0.0
    at: str = ""
    unreadable: int = 0
    error: tuple[str, list[Any]] | None = None
    following: str | None = None

    @classmethod
    def of(cls, entry: Entry | None) -> Board:
        """Return the board as it is now; an entry that can't be read counts as none."""
        if entry is None:
            return cls()
        try:
            kept = cls(**json.loads(entry.value))
            return replace(kept, attempt=kept.attempt + entry.age_seconds, began=kept.began + entry.age_seconds)
        except (TypeError, ValueError):
            return cls()

    def write(self) -> Write:
        """Return what stores the board."""
        return Write(json.dumps(asdict(self)), BOARD_TTL_SECONDS)

    @property
    def lease(self) -> float:
        """Seconds for which nobody else polls."""
        longest = min(max(SHORTEST_LEASE_SECONDS, 2 * self.seconds), LONGEST_LEASE_SECONDS)
        return max(0.0, longest - self.attempt) if self.is_polling else 0.0

    def may_poll(self, reader: str, interval_seconds: float) -> bool:
        """Whether a reader may poll now: it is due, and nobody else does."""
        return (self.lease <= 0 or self.holder == reader) and self.attempt >= self.due(reader, interval_seconds)

    def due(self, reader: str, interval_seconds: float) -> float:
        """Return the age of the last attempt at which a reader may poll, later if the holder is expected to."""
        # A little less than an interval, so that it isn't missed by a hair; still less when the lease ends without a
        # result.
        if self.holder == reader or not (self.lasting or self.is_polling):
            return interval_seconds * 0.95
        return interval_seconds * (0.75 if self.is_polling else 1.5)

    def next_seconds(self) -> float:
        """Return when the result of the holder's poll is expected."""
        return max(0.0, (0.0 if self.lease > 0 else self.interval) + self.seconds - self.attempt)


def begin(reader: str, interval_seconds: float, *, lasting: bool) -> Change[Board | None]:
    """Return the change with which a reader begins to poll; its result is the board before, None if it may not."""

    def change(entry: Entry | None, _: float) -> tuple[Write | None, Board | None]:
        board = Board.of(entry)
        if not board.may_poll(reader, interval_seconds):
            return None, None
        taken = replace(board, holder=reader, is_polling=True, lasting=lasting, interval=interval_seconds, attempt=0.0)
        return taken.write(), board

    return change


def finish(reader: str, age_seconds: float, result: Mapping[str, Any]) -> Change[None]:
    """Return the change with which a reader reports its poll, unless a later one has been reported.

    :param age_seconds: since the poll began
    :param result: the fields that the poll sets
    """

    def change(entry: Entry | None, _: float) -> tuple[Write | None, None]:
        board = Board.of(entry)
        if board.began <= age_seconds:
            return None, None
        is_polling = board.is_polling and board.holder != reader
        return replace(board, is_polling=is_polling, **result).write(), None

    return change


@dataclass(frozen=True, slots=True)
class Want:
    """What a reader wants to know.

    :param ids: executions; beside everything, those that haven't been seen
    :param workflows: workflows, each with the time from which its executions are wanted; empty for all
    :param everything: whether it wants every row that changes, from now on
    """

    ids: frozenset[str] = frozenset()
    workflows: frozenset[tuple[str, str]] = frozenset()
    everything: bool = False

    @classmethod
    def of(cls, history_filter: HistoryFilter) -> Want:
        """Return what a filter lets through."""
        known = history_filter.known_statuses
        if history_filter.everything or len(known) > MOST_IDS:
            return cls(frozenset(each for each, status in known.items() if status is None), everything=True)
        since = {(each, at.isoformat() if at else "") for each, at in history_filter.workflow_ids.items()}
        return cls(frozenset(known), frozenset(since))

    def add_to(self, history_filter: HistoryFilter) -> None:
        """Add what is wanted to a filter."""
        history_filter.everything |= self.everything
        for execution_id in self.ids:
            history_filter.add_execution(execution_id)
        for workflow_id, since in self.workflows:
            history_filter.add_workflow(workflow_id, _instant(since))

    @property
    def name(self) -> str:
        """The same for all readers that want the same."""
        return blake2b(json.dumps(self.to_json()).encode(), digest_size=12).hexdigest()

    def to_json(self) -> list[Any]:
        """Return the stored form."""
        return [sorted(self.ids), sorted(self.workflows), self.everything]

    def includes(self, other: Want) -> bool:
        """Whether everything that another reader wants is wanted."""
        return other.ids <= self.ids and other.workflows <= self.workflows and other.everything <= self.everything

    def rows(self, history: History) -> dict[str, Json]:
        """Return the wanted rows that a poll shows; None for an execution that isn't listed."""
        listed = history if self.everything or history.repeats_ids else filter(None, map(history.get, self.ids))
        found = [each for each in listed if self.everything or each.id in self.ids]
        for workflow_id, since in self.workflows:
            found += history.possible(workflow_id, _instant(since))
        rows: dict[str, Json] = dict.fromkeys(self.ids & history.unlisted)
        for each in found:
            # Ids may count per workflow.
            key = each.id if history.get(each.id) is each else f"{each.workflow_id}/{each.id}"
            rows[key] = dict(each.raw)
        return rows


def _instant(text: str) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


@dataclass(frozen=True, slots=True)
class Registration:
    """What a reader that doesn't poll itself wants, and what the polls have shown it.

    :param want: what it wants
    :param keep: how long it is polled for
    :param age: seconds since it said so last
    :param since: seconds since it has wanted exactly this
    :param rows: the executions as received, None for one that isn't listed; None where some are missing, so that the
        reader has to poll itself
    """

    want: Want
    keep: float
    age: float = 0.0
    since: float = 0.0
    rows: dict[str, Json] | None = field(default_factory=dict)

    @classmethod
    def of(cls, entry: Entry) -> Registration | None:
        """Return a registration as it is now; one that can't be read counts as none."""
        try:
            fields = json.loads(entry.value)
            ids, workflows, everything = fields.pop("want")
            kept = cls(Want(frozenset(ids), frozenset(map(tuple, workflows)), bool(everything)), **fields)
            return replace(kept, age=kept.age + entry.age_seconds, since=kept.since + entry.age_seconds)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    def write(self) -> Write:
        """Return what stores the registration."""
        return Write(json.dumps({**asdict(self), "want": self.want.to_json()}), max(1.0, self.keep - self.age))

    def changes(self, history: History) -> dict[str, Json]:
        """Return what a poll shows that the reader hasn't received yet."""
        known = self.rows or {}
        rows = self.want.rows(history)
        return {each: row for each, row in rows.items() if each not in known or known[each] != row}


def register(want: Want, keep_seconds: float) -> Change[Registration]:
    """Return the change with which a reader says what it wants; its result has what the polls have shown so far.

    Where everything is wanted, each row is received once. Rows that are missing are missing from the result alone.
    """

    def change(entry: Entry | None, _: float) -> tuple[Write | None, Registration]:
        kept = Registration.of(entry) if entry is not None else None
        if kept is None or kept.want.everything != want.everything:
            # The reader begins with all that it reads itself.
            new = Registration(want, keep_seconds)
            return new.write(), replace(new, rows=None if want.everything else {})
        is_same, rows = kept.want.includes(want), kept.rows
        is_taken = rows is None or (want.everything and rows)
        # A registration for many that have been seen since takes long to read.
        is_lean = len(kept.want.ids) <= MOST_IDS + len(want.ids)
        if is_same and is_lean and not is_taken and kept.age < keep_seconds / 2:
            return None, kept
        left = {} if rows is None or want.everything else rows
        left = {each: row for each, row in left.items() if want.workflows or each in want.ids}
        renewed = Registration(want, keep_seconds, since=kept.since if is_same else 0.0, rows=left)
        return renewed.write(), replace(renewed, rows=rows)

    return change


def deliver(rows: Mapping[str, Json] | None) -> Change[None]:
    """Return the change with which a poll's rows reach a reader.

    :param rows: None where they can't be delivered
    """

    def change(entry: Entry | None, _: float) -> tuple[Write | None, None]:
        kept = Registration.of(entry) if entry is not None else None
        if kept is None:
            return None, None
        merged = None if rows is None or kept.rows is None else {**kept.rows, **rows}
        fits = merged is not None and len(json.dumps(merged)) <= LARGEST_ROWS
        return replace(kept, rows=merged if fits else None).write(), None

    return change
