"""One poll for all processes that use an API key: one of them polls, and the others read what concerns them.

A reader registers what it wants in the shared state and reads the board once per interval. The first one to find the
next poll due gets a lease, polls for all that is registered, and writes each reader's rows that changed. A holder that
dies or is slow loses the lease. While the store can't be used, each reader polls for itself.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

from techflow_provider.client.errors import BudgetTimeoutError, ResponseError, TechFlowError, rebuild_error
from techflow_provider.client.flow import FlowContext
from techflow_provider.client.history import History, HistoryFilter
from techflow_provider.client.models import Execution, read_executions
from techflow_provider.client.parsing import Json
from techflow_provider.client.reading import (
    SHORTEST_INTERVAL_SECONDS,
    WOKEN_INTERVAL_SECONDS,
    PollMemory,
    ReadTerms,
    poll_history,
)
from techflow_provider.client.settings import Settings
from techflow_provider.client.text import get_logger
from techflow_provider.polling.board import Board, Registration, Want, begin, deliver, finish, register
from techflow_provider.state.budget import RequestClass
from techflow_provider.state.records import WAITS
from techflow_provider.state.store import Store, StoreError, Update, read_only

log: logging.Logger = get_logger(__name__)

T = TypeVar("T")

BOARD_NAME = "board"
# Time between two reads of the board while a result is expected.
SHORTEST_WAIT_SECONDS = 0.25
# A reader that polls for all has at least this time.
SHORTEST_POLL_SECONDS = 5.0
# A process whose own poll failed leaves the next ones to others for this time.
FAILED_SECONDS = 60.0
# Time between two reads of the wake-up counter.
SHORTEST_CHECK_SECONDS = 0.5
LONGEST_CHECK_SECONDS = 5.0
# What isn't listed any more is not among the rows that change, so who wants everything reads it after this time.
FULL_READ_SECONDS = 600.0
# The status of an execution that no poll has shown.
NO_STATUS = object()
UNUSABLE = "The shared state can't be used (%s), so this process polls for itself"
UNCOUNTED = "Polling continues without webhooks: the wake-up counter can't be read (%s)"


class SharedReader:
    """Reads the execution history for one process, together with the others that use the same API key.

    :param store: where they share what they read
    :param account: the API key's name there
    :param name: identifies a reader that polls all the time for waits that change; one without is named after what it
        wants, so that a task that comes back finds what others have read for it
    :param wakeups: returns the wake-up counter, which each webhook increments; None where no webhook can arrive
    """

    def __init__(
        self, store: Store, account: str, name: str | None = None, wakeups: Callable[[], int] | None = None
    ) -> None:
        self.store = store
        self.polls: str = f"{account}/polls"
        self.waits: str = f"{account}/{WAITS}"
        self.name = name
        self._id = uuid4().hex
        self.failed_at: float = -math.inf
        self._wakeups = wakeups
        self._wakeup_count: int | None = None
        # Whether a webhook says that there may be something that no poll has shown.
        self.woken: bool = False
        self.memory: PollMemory = PollMemory()
        # What was read in the last poll of this process: for whom, and the statuses of all executions.
        self._served: dict[str, Want] = {}
        self._statuses: dict[str, str | None] = {}
        # Of everything: the rows that were received and not returned yet, None where some are missing, and when all of
        # them were read last.
        self.received: dict[str, Json] | None = None
        self.read_at: float = -math.inf
        self._reported: set[str] = set()

    async def read(self, context: FlowContext, history_filter: HistoryFilter, terms: ReadTerms) -> History:
        """Return what a poll shows of what is wanted, this process's own or another's.

        :raises TechFlowError: `BudgetTimeoutError` when there was none in time, or what reading the history raises
        """
        try:
            if self.woken:
                terms = replace(terms, interval_seconds=WOKEN_INTERVAL_SECONDS, max_age_seconds=0.0)
                self.woken = False
            history = await _ReadCall(self, context, history_filter, terms, context.clock()).run()
        except StoreError as error:
            self._report(UNUSABLE, error)
            self.memory.forget()
            self._statuses.clear()
            return await poll_history(context, history_filter, terms.within_seconds, self.memory)
        self._report(UNUSABLE, None)
        return history

    def _report(self, message: str, error: StoreError | None) -> None:
        """Log once that something can't be used, until it can be used again."""
        if error is not None and message not in self._reported:
            log.warning(message, error)
        (self._reported.discard if error is None else self._reported.add)(message)

    @property
    def holder(self) -> str:
        """Identifies this process, also after a fork."""
        return f"{self._id}/{os.getpid()}"

    async def is_woken(self, context: FlowContext) -> bool:
        """Whether a webhook has arrived since the last call."""
        if self._wakeups is None:
            return False
        try:
            count = await context.io.use_state(self._wakeups)
        except StoreError as error:
            self._report(UNCOUNTED, error)
            return False
        self._report(UNCOUNTED, None)
        woken, self._wakeup_count = self._wakeup_count not in (None, count), count
        self.woken |= woken
        return woken

    async def sleep(self, context: FlowContext, seconds: float) -> bool:
        """Sleep, and return at once with True when a webhook arrives."""
        end, step = context.clock() + seconds, min(max(seconds / 5, SHORTEST_CHECK_SECONDS), LONGEST_CHECK_SECONDS)
        while not await self.is_woken(context):
            left = end - context.clock()
            if left <= 0:
                return False
            await context.io.sleep(min(step, left))
        return True

    def has_read(self, now: float) -> None:
        """Record that this process has read all that it wants itself."""
        self.received, self.read_at = {}, now

    def board(self) -> Board:
        """Return the state of the shared poll."""
        return Board.of(self.store.update(self.polls, BOARD_NAME, read_only)[0])

    def read_shared(self, want: Want, keep_seconds: float, now: float) -> tuple[Board, Registration]:
        """Say what is wanted, and return the state of the shared poll and what the polls have shown so far."""
        change = register(want, keep_seconds)
        updates = [(self.polls, BOARD_NAME, read_only), (self.waits, self.name or want.name, change)]
        (entry, _), registration = self.store.update_many(updates)
        if want.everything:
            if registration.rows is None or now > self.read_at + FULL_READ_SECONDS:
                self.received = None
            elif self.received is not None:
                self.received |= registration.rows
            registration = replace(registration, rows=self.received)
        return Board.of(entry), registration

    def registrations(self) -> dict[str, Registration]:
        """Return what the other readers want."""
        found = {entry.name: Registration.of(entry) for entry in self.store.entries(self.waits)}
        return {name: each for name, each in found.items() if each is not None and name != self.name}

    def combined(
        self, history_filter: HistoryFilter, want: Want, registrations: Mapping[str, Registration]
    ) -> HistoryFilter:
        """Return a filter for what this process and the others want."""
        wanted = {"": want} | {name: each.want for name, each in registrations.items()}
        # Copied only where something is added, since a process may have many waits.
        both = history_filter
        if registrations:
            known, workflows = dict(history_filter.known_statuses), dict(history_filter.workflow_ids)
            both = replace(history_filter, known_statuses=known, workflow_ids=workflows)
        for each in registrations.values():
            each.want.add_to(both)
        # A reader without a name may be another one the next time, and needs what hasn't changed.
        is_served = all(self._served.get(name, Want()).includes(each) for name, each in wanted.items())
        both.has_new |= self.name is None or not is_served
        self._served = wanted
        return both

    def deliveries(
        self, settings: Settings, history: History, registrations: Mapping[str, Registration], *, is_next: bool
    ) -> list[Update]:
        """Return the updates that hand what a poll has shown to whom it concerns.

        :param is_next: whether the poll before was this process's, too, so that it knows what has changed since
        """
        changed = {each.id for each in history if each.status != self._statuses.get(each.id, NO_STATUS)}
        updates: list[Update] = []
        for name, each in registrations.items():
            rows: dict[str, Json] | None = each.changes(history)
            if each.want.everything and rows:
                rows = {key: row for key, row in rows.items() if key in changed or key in each.want.ids}
            if (each.want.everything and not is_next) or settings.holds_key(json.dumps(rows).encode()):
                rows = None
            if rows != {}:
                updates.append((self.waits, name, deliver(rows)))
        if any(each.want.everything for each in registrations.values()):
            self._statuses.update((each.id, each.status) for each in history)
        else:
            self._statuses.clear()
        return updates


@dataclass(slots=True)
class _ReadCall:
    """One call of a reader.

    :param reader: the reader
    :param context: what it runs with
    :param filter: what is wanted
    :param terms: what is expected of the poll
    :param asked: when the call began
    """

    reader: SharedReader
    context: FlowContext
    filter: HistoryFilter
    terms: ReadTerms
    asked: float

    async def run(self) -> History:
        """Return what is wanted once there is a poll that may show it."""
        context, reader, want = self.context, self.reader, Want.of(self.filter)
        deadline = self.asked + self.terms.within_seconds
        while True:
            if self.terms.keep_seconds > 0:
                board, registration = await self._use(
                    reader.read_shared, want, self.terms.keep_seconds, context.clock()
                )
            else:
                board, registration = await self._use(reader.board), None
            may_poll = board.may_poll(reader.holder, self._interval(board))
            # A reader that lasts needs what others have read only while they poll.
            if registration is not None and not (may_poll and reader.name):
                rows = registration.rows
                if rows is not None and (self._is_fresh(board, registration) or self._is_over(want, rows)):
                    return self._received(board, rows)
                if rows is None and not may_poll:
                    return await self._read_alone(deadline)
            slot_seconds = 0.0
            if may_poll:
                slot_seconds = (await self._use(context.budget.snapshot)).next_slot_seconds[RequestClass.POLL]
                # A budget that nobody has used yet has its first slot a moment away, until somebody reserves it.
                history = await self._poll(board, want, deadline) if slot_seconds <= SHORTEST_WAIT_SECONDS else None
                if history is not None:
                    return history
            self._raise_error(board)
            wait_seconds = max(slot_seconds, self._wait_seconds(board))
            if context.clock() + wait_seconds > deadline:
                raise BudgetTimeoutError("GET /executions", wait_seconds, max(0.0, deadline - context.clock()))
            await context.io.sleep(wait_seconds)

    async def _use(self, act: Callable[..., T], *args: Any) -> T:
        return await self.context.io.use_state(partial(act, *args))

    async def _read_alone(self, deadline: float) -> History:
        """Read the history for this reader alone, where the rows that were read for it are incomplete."""
        self.filter.has_new = True
        history = await poll_history(self.context, self.filter, deadline - self.context.clock(), PollMemory())
        self.reader.has_read(self.context.clock())
        return history

    def _since(self, moment: float) -> float:
        return self.context.clock() - moment

    def _is_fresh(self, board: Board, registration: Registration) -> bool:
        """Whether the last poll was for this reader, and is recent enough."""
        return board.began < min(registration.since, self._since(self.asked) + self.terms.max_age_seconds)

    def _is_over(self, want: Want, rows: Mapping[str, Json]) -> bool:
        """Whether everything that is wanted has a final status, which stays."""
        if want.everything or want.workflows or any(rows.get(each) is None for each in want.ids):
            return False
        return all(each.ended for each in self._executions(rows))

    def _executions(self, rows: Mapping[str, Json]) -> tuple[Execution, ...]:
        listed: Json = [row for row in rows.values() if row is not None]
        return read_executions(listed, self.context.settings.status_words).items

    def _received(self, board: Board, rows: Mapping[str, Json]) -> History:
        """Return what others have read for this reader."""
        history = History(
            self._executions(rows),
            at=datetime.fromisoformat(board.at) if board.at else datetime.now(UTC),
            began=self._since(board.began),
            unlisted=frozenset(each for each, row in rows.items() if row is None),
            unreadable=board.unreadable,
        )
        history.next_seconds = board.next_seconds() + SHORTEST_WAIT_SECONDS
        self.reader.received = {}
        return history

    def _interval(self, board: Board) -> float:
        # Only those that poll all the time count how often webhooks wake them.
        shortest = SHORTEST_INTERVAL_SECONDS if self.reader.name is None else 0.0
        has_failed = self._since(self.reader.failed_at) < FAILED_SECONDS and board.holder != self.reader.holder
        return max(self.terms.interval_seconds, shortest) * (2 if has_failed else 1)

    async def _poll(self, board: Board, want: Want, deadline: float) -> History | None:
        """Poll for all readers; None when another one was faster, or has polled since."""
        reader, context, began = self.reader, self.context, self.context.clock()
        start = begin(reader.holder, self._interval(board), lasting=reader.name is not None)
        before = await self._use(reader.store.update, reader.polls, BOARD_NAME, start)
        if before is None:
            return None
        registrations = await self._use(reader.registrations)
        wanted = reader.combined(self.filter, want, registrations)
        if reader.memory.following is None and before.following is not None:
            reader.memory.following, reader.memory.wanted = before.following, frozenset()
        within_seconds = max(deadline - context.clock(), SHORTEST_POLL_SECONDS)
        try:
            history = await poll_history(context, wanted, within_seconds, reader.memory)
        except TechFlowError as error:
            reader.failed_at = context.clock()
            refused = (type(error).__name__, list(error.args)) if isinstance(error, ResponseError) else None
            failed = finish(reader.holder, self._since(began), {"error": refused})
            await self._use(reader.store.update, reader.polls, BOARD_NAME, failed)
            raise
        reader.failed_at = -math.inf
        if (await self._use(reader.board)).began <= self._since(began):
            reader.memory.forget()
            return None
        is_next = before.holder == reader.holder
        updates = reader.deliveries(context.settings, history, registrations, is_next=is_next)
        following = reader.memory.following
        unreadable = history.unreadable + (history.failure is not None) + (following is not None)
        shown = {"at": history.at.isoformat(), "error": None, "following": following, "unreadable": unreadable}
        age = self._since(began)
        report = finish(reader.holder, age, {"began": age, "seconds": age, **shown})
        await self._use(reader.store.update_many, [*updates, (reader.polls, BOARD_NAME, report)])
        reader.has_read(context.clock())
        return history

    def _raise_error(self, board: Board) -> None:
        """Raise the server's error that another reader has received meanwhile."""
        is_new = board.attempt <= self._since(self.asked) + self.terms.max_age_seconds
        if board.error is not None and is_new and board.holder != self.reader.holder:
            with suppress(TypeError):
                error = rebuild_error(*board.error)
                raise error

    def _wait_seconds(self, board: Board) -> float:
        """Return when to read the board again: when a result is expected, or when this reader may poll."""
        due = max(0.0, board.due(self.reader.holder, self._interval(board)) - board.attempt)
        expected = board.next_seconds() if board.lease > 0 or board.attempt < board.interval else due
        overdue = board.attempt / 3 if board.lease > 0 else 0.0
        return max(SHORTEST_WAIT_SECONDS, min(max(expected, overdue), max(due, board.lease)))
