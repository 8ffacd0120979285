"""What the readers of one API key's history share: who polls, what the last poll showed, and what each one wants; pure.

There is one entry for the shared poll, and one for each reader that doesn't poll itself, with the rows that it wants.
Times are kept as ages, since a store has a clock of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
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
# So many readers whose rows changed last are remembered.
MOST_CHANGED = 64
# A poll may take this long, or twice as long as the last one, before another reader polls.
SHORTEST_LEASE_SECONDS = 4.0
LONGEST_LEASE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Board:
    """The shared poll of one API key.

    :param holder: the reader that polls, or polled last
    :param lease: seconds for which nobody else polls
    :param is_polling: whether the holder has not reported its last attempt
    :param lasting: whether the holder will poll again
    :param interval: the time between two polls
    :param attempt: seconds since the last attempt began
    :param number: counts the polls that succeeded
    :param began: seconds since the last one of them began
    :param seconds: how long it took
    :param at: the server's clock then
    :param error: class and arguments of the server's error since then
    :param following: URL of the page at which the next poll continues
    :param changed: the readers whose rows changed, each with the number of the poll
    """

    holder: str = ""
    lease: float = 0.0
    is_polling: bool = False
    lasting: bool = False
    interval: float = 0.0
    attempt: float = math.inf
    number: int = 0
    began: float = math.inf
    seconds: float = 0.0
    at: str = ""
    error: tuple[str, list[Any]] | None = None
    following: str | None = None
    changed: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, entry: Entry | None) -> Board:
        """Return the board as it is now; an entry that can't be read counts as none."""
        if entry is None:
            return cls()
        try:
            kept = cls(**json.loads(entry.value))
            age = entry.age_seconds
            lease = max(0.0, kept.lease - age)
            return replace(kept, lease=lease, attempt=kept.attempt + age, began=kept.began + age)
        except (TypeError, ValueError):
            return cls()

    def write(self) -> Write:
        """Return what stores the board."""
        return Write(json.dumps(asdict(self)), BOARD_TTL_SECONDS)

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
        begins = 0.0 if self.lease > 0 else max(0.0, self.interval - self.attempt)
        return begins + max(0.0, self.seconds - (self.attempt if self.lease > 0 else 0.0))

    def has_changed(self, reader: str, since: int) -> bool:
        """Whether the rows of a reader may have changed since a poll."""
        is_complete = len(self.changed) < MOST_CHANGED or min(self.changed.values()) <= since
        return self.changed.get(reader, 0) > since or not is_complete


def begin(reader: str, interval_seconds: float, *, lasting: bool) -> Change[tuple[bool, Board]]:
    """Return the change with which a reader begins to poll, if it may; its result is whether it may, and the board."""

    def change(entry: Entry | None, _: float) -> tuple[Write | None, tuple[bool, Board]]:
        board = Board.of(entry)
        if not board.may_poll(reader, interval_seconds):
            return None, (False, board)
        lease = min(max(SHORTEST_LEASE_SECONDS, 2 * board.seconds), LONGEST_LEASE_SECONDS)
        taken = replace(
            board,
            holder=reader,
            lease=lease,
            is_polling=True,
            lasting=lasting,
            interval=interval_seconds,
            attempt=0.0,
        )
        return taken.write(), (True, taken)

    return change


def finish(reader: str, age_seconds: float, result: Mapping[str, Any], changed: Collection[str]) -> Change[Board]:
    """Return the change with which a reader reports its poll; its result is the board.

    :param age_seconds: since the poll began
    :param result: the fields that the poll sets
    :param changed: the readers whose rows it changed
    """

    def change(entry: Entry | None, _: float) -> tuple[Write | None, Board]:
        board = Board.of(entry)
        if board.began <= age_seconds:
            return None, board
        is_own = board.holder == reader
        lease = 0.0 if is_own else board.lease
        number = board.number + ("began" in result)
        marks = {
            **{each: at for each, at in board.changed.items() if each not in changed},
            **dict.fromkeys(changed, number),
        }
        marks = dict(sorted(marks.items(), key=lambda mark: mark[1])[-MOST_CHANGED:])
        is_polling = board.is_polling and not is_own
        done = replace(board, lease=lease, is_polling=is_polling, number=number, changed=marks, **result)
        return done.write(), done

    return change


@dataclass(frozen=True, slots=True)
class Want:
    """What a reader wants to know.

    :param ids: executions; beside a stream, those that haven't been seen
    :param workflows: workflows, each with the time from which its executions are wanted; empty for all
    :param stream: whether it wants every row that changes, from now on
    """

    ids: frozenset[str] = frozenset()
    workflows: Mapping[str, str] = field(default_factory=dict)
    stream: bool = False

    @classmethod
    def of(cls, history_filter: HistoryFilter) -> Want:
        """Return what a filter lets through."""
        if history_filter.everything or len(history_filter.known_statuses) > MOST_IDS:
            unseen = (each for each, status in history_filter.known_statuses.items() if status is None)
            return cls(frozenset(unseen), stream=True)
        since = {each: at.isoformat() if at else "" for each, at in history_filter.workflow_ids.items()}
        return cls(frozenset(history_filter.known_statuses), since)

    def add_to(self, history_filter: HistoryFilter, rows: Mapping[str, Json]) -> None:
        """Add what is wanted to a filter.

        :param rows: what the reader has received
        """
        history_filter.everything |= self.stream
        for execution_id in self.ids:
            row = rows.get(execution_id)
            status = row.get("status") if isinstance(row, dict) else None
            history_filter.add_execution(execution_id, status if isinstance(status, str) else None)
        for workflow_id, since in self.workflows.items():
            history_filter.add_workflow(workflow_id, datetime.fromisoformat(since) if since else None)

    @property
    def name(self) -> str:
        """The same for all readers that want the same."""
        text = json.dumps([sorted(self.ids), sorted(self.workflows.items()), self.stream])
        return blake2b(text.encode(), digest_size=12).hexdigest()

    def has(self, other: Want) -> bool:
        """Whether a registration for this serves another reader as well, or the same one later."""
        return self == other if self.stream else self.includes(other)

    def includes(self, other: Want) -> bool:
        """Whether everything that another reader wants is wanted."""
        workflows = other.workflows.items() <= self.workflows.items()
        return self.stream == other.stream and other.ids <= self.ids and workflows

    def rows(self, history: History) -> dict[str, Json]:
        """Return the wanted rows that a poll shows; None for an execution that isn't listed."""
        found = [] if not self.stream else list(history)
        found += [execution for each in self.ids if (execution := history.get(each)) is not None]
        for workflow_id, since in self.workflows.items():
            found += history.possible(workflow_id, datetime.fromisoformat(since) if since else None)
        return {each.id: dict(each.raw) for each in found} | dict.fromkeys(self.ids & history.unlisted)


@dataclass(frozen=True, slots=True)
class Registration:
    """What a reader that doesn't poll itself wants, and what the polls have shown it.

    :param want: what it wants
    :param keep: how long it is polled for
    :param age: seconds since it said so last
    :param since: seconds since it has wanted exactly this
    :param rows: the executions as received; None for one that isn't listed
    :param overflow: whether rows are missing, so that it has to poll itself
    """

    want: Want
    keep: float
    age: float = 0.0
    since: float = 0.0
    rows: dict[str, Json] = field(default_factory=dict)
    overflow: bool = False

    @classmethod
    def of(cls, entry: Entry | None) -> Registration | None:
        """Return a registration as it is now; one that can't be read counts as none."""
        try:
            fields = json.loads(entry.value) if entry is not None else {}
            ids, workflows, stream = fields.pop("want")
            kept = cls(Want(frozenset(ids), dict(workflows), bool(stream)), **fields)
            past = entry.age_seconds if entry is not None else 0.0
            return replace(kept, age=kept.age + past, since=kept.since + past)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    def write(self) -> Write:
        """Return what stores the registration."""
        want = [sorted(self.want.ids), dict(self.want.workflows), self.want.stream]
        fields = {name: getattr(self, name) for name in ("keep", "age", "since", "rows", "overflow")}
        return Write(json.dumps({"want": want, **fields}), max(1.0, self.keep - self.age))

    def changes(self, history: History) -> dict[str, Json]:
        """Return what a poll shows that the reader hasn't received yet."""
        rows = self.want.rows(history)
        return {each: row for each, row in rows.items() if each not in self.rows or self.rows[each] != row}

    def with_rows(self, rows: Mapping[str, Json]) -> Registration:
        """Add what a poll has shown."""
        merged = {**self.rows, **rows}
        if len(json.dumps(merged)) > LARGEST_ROWS:
            return replace(self, rows={}, overflow=True)
        return replace(self, rows=merged)


def register(want: Want, keep_seconds: float) -> Change[Registration]:
    """Return the change with which a reader says what it wants; its result has what the polls have shown so far."""

    def change(entry: Entry | None, _: float) -> tuple[Write, Registration]:
        kept = Registration.of(entry)
        if kept is None or kept.want.stream != want.stream:
            new = Registration(want, keep_seconds)
            # A stream begins with what its reader reads itself.
            return new.write(), replace(new, overflow=want.stream)
        is_same = kept.want.includes(want)
        rows = {each: row for each, row in kept.rows.items() if want.workflows or want.stream or each in want.ids}
        since = kept.since if is_same else 0.0
        renewed = replace(kept, want=want, keep=keep_seconds, age=0.0, since=since, rows=rows, overflow=False)
        # The rows of a stream are received once.
        return (replace(renewed, rows={}) if want.stream else renewed).write(), replace(renewed, overflow=kept.overflow)

    return change


def deliver(rows: Mapping[str, Json], *, overflow: bool) -> Change[bool]:
    """Return the change with which a poll's rows reach a reader; its result is whether it is still there."""

    def change(entry: Entry | None, _: float) -> tuple[Write | None, bool]:
        kept = Registration.of(entry)
        if kept is None:
            return None, False
        return (replace(kept, rows={}, overflow=True) if overflow else kept.with_rows(rows)).write(), True

    return change
