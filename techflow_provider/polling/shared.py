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
from datetime import datetime
from functools import partial
from typing import TypeVar
from uuid import uuid4

from techflow_provider.client.errors import BudgetTimeoutError, ResponseError, TechFlowError, rebuild_error
from techflow_provider.client.flow import FlowContext
from techflow_provider.client.history import History, HistoryFilter
from techflow_provider.client.models import Execution, read_executions
from techflow_provider.client.reading import SHORTEST_INTERVAL_SECONDS, PollMemory, ReadTerms, poll_history
from techflow_provider.client.text import get_logger
from techflow_provider.polling.board import MOST_IDS, Board, Registration, Want, begin, deliver, finish, register
from techflow_provider.state.budget import RequestClass
from techflow_provider.state.records import WAITS
from techflow_provider.state.store import Change, Store, StoreError, read_only

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
# What isn't listed any more is missing in a stream, so its reader reads the history itself after this time.
FULL_READ_SECONDS = 600.0
# A process may wait for many executions, one after the other.
MOST_KEPT = 100
# Wants that include nothing, and the status of an execution that no poll has shown.
NOTHING = Want()
NO_STATUS = object()


@dataclass(slots=True)
class _Kept:
    """A registration as this process read it last.

    :param registration: with the rows that were received
    :param at: when it was read, on the client's clock
    :param number: the last poll whose rows it has
    :param read_at: when the process has read all of a stream itself
    """

    registration: Registration
    at: float
    number: int
    read_at: float = -math.inf

    def has_all(self, now: float) -> None:
        """Record that the reader has read all that it wants itself."""
        self.registration, self.read_at = replace(self.registration, overflow=False), now


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
        self.kept: dict[str, _Kept] = {}
        self.failed_at: float = -math.inf
        self.wakeups = wakeups
        self._memory: PollMemory | None = None
        # What was read in the last poll of this process: for whom, its number, and the statuses that streams know.
        self._served: dict[str, Want] = {}
        self._number = -1
        self._statuses: dict[str, str | None] = {}
        self._warned = False

    async def read(self, context: FlowContext, history_filter: HistoryFilter, terms: ReadTerms) -> History:
        """Return what a poll shows of what is wanted, this process's own or another's.

        :raises TechFlowError: `BudgetTimeoutError` when there was none in time, or what reading the history raises
        """
        try:
            history = await _ReadCall(self, context, history_filter, terms).run()
        except StoreError as error:
            if not self._warned:
                log.warning("The shared state can't be used (%s), so this process polls for itself", error)
            self._warned = True
            self.memory(context).forget()
            return await poll_history(context, history_filter, terms.within_seconds, self.memory(context))
        self._warned = False
        return history

    @property
    def holder(self) -> str:
        """Identifies this process, also after a fork."""
        return f"{self._id}/{os.getpid()}"

    def memory(self, context: FlowContext) -> PollMemory:
        """Return what this process remembers of its polls."""
        self._memory = self._memory or PollMemory(context.clock)
        return self._memory

    async def sleep(self, context: FlowContext, seconds: float) -> bool:
        """Sleep, and return at once with True when a webhook arrives."""
        end, step = context.clock() + seconds, min(max(seconds / 5, SHORTEST_CHECK_SECONDS), LONGEST_CHECK_SECONDS)
        wakeups = self.wakeups
        try:
            count = None if wakeups is None else await context.io.use_state(wakeups)
            while wakeups is not None and (left := end - context.clock()) > 0:
                await context.io.sleep(min(step, left))
                if await context.io.use_state(wakeups) != count:
                    return True
        except StoreError as error:
            log.debug("The wake-up counter can't be read: %s", error)
        if end > context.clock():
            await context.io.sleep(end - context.clock())
        return False

    def board(self) -> Board:
        """Return the state of the shared poll."""
        return Board.of(self.store.update(self.polls, BOARD_NAME, read_only)[0])

    def registrations(self) -> dict[str, Registration]:
        """Return what the other readers want."""
        found = {entry.name: Registration.of(entry) for entry in self.store.entries(self.waits)}
        return {name: each for name, each in found.items() if each is not None and name != self.name}

    def combined(self, history_filter: HistoryFilter, registrations: Mapping[str, Registration]) -> HistoryFilter:
        """Return a filter for what this process and the others want."""
        wants = {name: each.want for name, each in registrations.items()}
        wants[""] = Want.of(history_filter)
        has_new = any(not self._served.get(name, NOTHING).includes(want) for name, want in wants.items())
        both = replace(
            history_filter,
            known_statuses=dict(history_filter.known_statuses),
            workflow_ids=dict(history_filter.workflow_ids),
            # A reader without a name may be another one the next time, and needs what hasn't changed.
            has_new=history_filter.has_new or has_new or self.name is None,
        )
        for each in registrations.values():
            each.want.add_to(both, each.rows)
        self._served = wants
        return both

    def publish(
        self, context: FlowContext, history: History, registrations: Mapping[str, Registration], board: Board
    ) -> bool:
        """Write what a poll has shown, unless a later poll has been published; return whether it was written."""

        def age() -> float:
            return context.clock() - history.began

        def has_changed(execution_id: str) -> bool:
            return statuses[execution_id] != self._statuses.get(execution_id, NO_STATUS)

        if age() > board.lease and self.board().began <= age():
            return False
        is_next, statuses = self._number == board.number, {}
        if any(each.want.stream for each in registrations.values()):
            statuses = {**self._statuses, **{each.id: each.status for each in history}}
        changed = []
        for name, each in registrations.items():
            rows = each.changes(history)
            if each.want.stream:
                rows = {key: row for key, row in rows.items() if key in each.want.ids or has_changed(key)}
            overflow = (each.want.stream and not is_next) or context.settings.holds_key(json.dumps(rows).encode())
            if (rows or overflow) and self.store.update(self.waits, name, deliver(rows, overflow=overflow)):
                changed.append(name)
        self._statuses = statuses
        shown = {"at": history.at.isoformat(), "error": None, "following": self.memory(context).following}
        report = finish(self.holder, age(), {"began": age(), "seconds": age(), **shown}, changed)
        self._number = self.store.update(self.polls, BOARD_NAME, report).number
        return True


class _ReadCall:
    """One call of a reader.

    :param reader: the reader
    :param context: what it runs with
    :param history_filter: what is wanted
    :param terms: what is expected of the poll
    """

    def __init__(
        self, reader: SharedReader, context: FlowContext, history_filter: HistoryFilter, terms: ReadTerms
    ) -> None:
        self._reader = reader
        self._context = context
        self._use = context.io.use_state
        self._filter = history_filter
        self._terms = terms
        self._want = Want.of(history_filter)
        self._name = reader.name or self._want.name
        self._asked = context.clock()

    async def run(self) -> History:
        """Return what is wanted once there is a poll that may show it."""
        context = self._context
        deadline = self._asked + self._terms.within_seconds
        while True:
            board = await self._use(self._reader.board)
            # A lasting reader needs what others have read only while they poll.
            leads = self._reader.name is not None and self._may_poll(board)
            kept = None if leads else await self._registered(board)
            lacks_rows = kept is not None and kept.registration.overflow
            if kept is not None and not lacks_rows and (self._is_fresh(board, kept) or self._is_over(kept)):
                return self._received(board, kept)
            slot_seconds = 0.0
            if self._may_poll(board):
                slot_seconds = (await self._use(context.budget.snapshot)).next_slot_seconds[RequestClass.POLL]
                # A budget that nobody has used yet has its first slot a moment away, until somebody reserves it.
                history = await self._poll(deadline) if slot_seconds <= SHORTEST_WAIT_SECONDS else None
                if history is not None:
                    return history
            if kept is not None and lacks_rows:
                self._filter.has_new = True
                history = await poll_history(
                    context, self._filter, deadline - context.clock(), PollMemory(context.clock)
                )
                kept.has_all(context.clock())
                return history
            self._raise_error(board)
            wait_seconds = max(slot_seconds, self._wait_seconds(board))
            if context.clock() + wait_seconds > deadline:
                raise BudgetTimeoutError("GET /executions", wait_seconds, max(0.0, deadline - context.clock()))
            await context.io.sleep(wait_seconds)

    async def _registered(self, board: Board) -> _Kept | None:
        """Return what the polls have shown so far, for a reader that others poll for, too."""
        if self._terms.keep_seconds <= 0:
            return None
        kept = self._reader.kept.get(self._name)
        if kept is None or not kept.registration.want.has(self._want) or self._is_old(kept):
            kept = await self._register(board, kept)
        elif board.has_changed(self._name, kept.number):
            kept = await self._reread(board, kept)
        if len(self._reader.kept) >= MOST_KEPT:
            self._reader.kept.clear()
        self._reader.kept[self._name] = kept
        return kept

    def _is_old(self, kept: _Kept) -> bool:
        return kept.registration.age + self._since(kept.at) > self._terms.keep_seconds / 2

    async def _register(self, board: Board, kept: _Kept | None) -> _Kept:
        now = self._context.clock()
        registration = await self._update(register(self._want, self._terms.keep_seconds))
        if kept is None or not self._want.stream:
            return _Kept(registration, now, board.number)
        # With what was received and not returned yet. What streams don't say is read from time to time.
        overflow = registration.overflow or len(self._want.ids) > MOST_IDS or now > kept.read_at + FULL_READ_SECONDS
        rows = {**kept.registration.rows, **registration.rows}
        return _Kept(replace(registration, rows=rows, overflow=overflow), now, board.number, kept.read_at)

    async def _reread(self, board: Board, kept: _Kept) -> _Kept:
        if self._want.stream:
            return await self._register(board, kept)
        registration = Registration.of((await self._update(read_only))[0])
        if registration is None or registration.overflow:
            return await self._register(board, None)
        return _Kept(registration, self._context.clock(), board.number)

    async def _update(self, change: Change[T]) -> T:
        return await self._use(partial(self._reader.store.update, self._reader.waits, self._name, change))

    def _since(self, moment: float) -> float:
        return self._context.clock() - moment

    def _is_fresh(self, board: Board, kept: _Kept) -> bool:
        """Whether the last poll was for this reader, and is recent enough."""
        registered = kept.registration.since + self._since(kept.at)
        return board.began < registered and board.began <= self._since(self._asked) + self._terms.max_age_seconds

    def _is_over(self, kept: _Kept) -> bool:
        """Whether everything that is wanted has a final status, which stays."""
        want, rows = self._want, kept.registration.rows
        if want.stream or want.workflows or not want.ids <= rows.keys():
            return False
        return all(each.ended for each in self._executions(kept)) and all(rows[each] is not None for each in want.ids)

    def _executions(self, kept: _Kept) -> list[Execution]:
        words = self._context.settings.status_words
        rows = kept.registration.rows.values()
        return list(read_executions([row for row in rows if row is not None], words).items)

    def _received(self, board: Board, kept: _Kept) -> History:
        """Return what others have read for this reader."""
        executions, rows = self._executions(kept), kept.registration.rows
        if self._want.stream:
            kept.registration = replace(kept.registration, rows={})
        history = History(
            executions,
            at=datetime.fromisoformat(board.at) if board.at else None,
            began=self._context.clock() - board.began,
            unlisted=frozenset(each for each, row in rows.items() if row is None),
        )
        history.next_seconds = board.next_seconds() + SHORTEST_WAIT_SECONDS
        return history

    def _may_poll(self, board: Board) -> bool:
        return board.may_poll(self._reader.holder, self._interval_seconds)

    @property
    def _interval_seconds(self) -> float:
        # Only those that poll all the time count how often webhooks wake them.
        shortest = SHORTEST_INTERVAL_SECONDS if self._reader.name is None else 0.0
        has_failed = self._since(self._reader.failed_at) < FAILED_SECONDS
        return max(self._terms.interval_seconds, shortest) * (2 if has_failed else 1)

    async def _poll(self, deadline: float) -> History | None:
        """Poll for all readers; None when another one was faster, or has polled since."""
        reader, context = self._reader, self._context
        start = begin(reader.holder, self._interval_seconds, lasting=reader.name is not None)
        may_poll, board = await self._use(partial(reader.store.update, reader.polls, BOARD_NAME, start))
        if not may_poll:
            return None
        registrations = await self._use(reader.registrations)
        wanted, memory = reader.combined(self._filter, registrations), reader.memory(context)
        if memory.following is None and board.following is not None:
            memory.following, memory.wanted = board.following, frozenset()
        within_seconds = max(deadline - context.clock(), SHORTEST_POLL_SECONDS)
        began = context.clock()
        try:
            history = await poll_history(context, wanted, within_seconds, memory)
        except TechFlowError as error:
            reader.failed_at = context.clock()
            shown = (type(error).__name__, list(error.args)) if isinstance(error, ResponseError) else None
            failed = finish(reader.holder, context.clock() - began, {"error": shown}, ())
            await self._use(partial(reader.store.update, reader.polls, BOARD_NAME, failed))
            raise
        reader.failed_at = -math.inf
        is_published = await self._use(partial(reader.publish, context, history, registrations, board))
        if not is_published:
            memory.forget()
        return history if is_published else None

    def _raise_error(self, board: Board) -> None:
        """Raise the server's error that another reader has received meanwhile."""
        if board.error is not None and board.attempt <= self._since(self._asked) + self._terms.max_age_seconds:
            with suppress(TypeError):
                error = rebuild_error(*board.error)
                raise error

    def _wait_seconds(self, board: Board) -> float:
        """Return when to read the board again: when a result is expected, or when this reader may poll."""
        due = max(0.0, board.due(self._reader.holder, self._interval_seconds) - board.attempt)
        expected = board.next_seconds() if board.lease > 0 or board.attempt < board.interval else due
        overdue = board.attempt / 3 if board.lease > 0 else 0.0
        return max(SHORTEST_WAIT_SECONDS, min(max(expected, overdue), max(due, board.lease)))
