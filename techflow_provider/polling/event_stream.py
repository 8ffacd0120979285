"""The events of one trigger: what the shared poller finds is stored first, and then emitted, each event once."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import reduce
from typing import TypeVar
from uuid import uuid4

from techflow_provider.client import TechFlowError
from techflow_provider.client.history import History, HistoryFilter
from techflow_provider.client.models import USUAL_WORDS, StatusWords
from techflow_provider.client.parsing import Json
from techflow_provider.client.text import get_logger
from techflow_provider.polling.event_cursor import EventCursor, EventEmitter
from techflow_provider.polling.events import EventFilter
from techflow_provider.polling.poller import Poller
from techflow_provider.state.records import Records
from techflow_provider.state.store import StoreError

T = TypeVar("T")

log: logging.Logger = get_logger(__name__)

# A triggerer hands events over about once a second; after this time, one is in Airflow's database.
CONFIRM_SECONDS = 5.0
# A trigger that has pending events and hasn't stored anything for this time is dead.
TAKEOVER_SECONDS = 10.0
# Time between two attempts to use a store that can't be used; no event is emitted meanwhile.
RETRY_SECONDS = 5.0
# An unchanged cursor is stored again after this time, since only writing renews a record's time to live.
RENEW_SECONDS = 24 * 3600.0


class EventStream:
    """An observer of the poller that stores what is new, and emits one event at a time.

    Triggers with the same name share one stored cursor, which they change by compare-and-set, so that one of them
    emits an event. When that one is gone, another takes its pending events over.

    :param event_filter: the events that are wanted
    :param records: where the cursor is stored
    :param name: the name of that record, the same in every process
    :param interval_seconds: time between two polls while no webhook arrives
    :param spacing_seconds: time between two events
    """

    def __init__(
        self, event_filter: EventFilter, records: Records, name: str, interval_seconds: float, spacing_seconds: float
    ) -> None:
        self.interval_seconds = interval_seconds
        self._filter = event_filter
        self._records = records
        self._name = name
        self._owner = uuid4().hex
        self._words = USUAL_WORDS
        self._emitter = EventEmitter(self._owner, spacing_seconds, CONFIRM_SECONDS)
        self._context = contextvars.copy_context()
        self._now = asyncio.get_running_loop().time
        self._cursor = self._ahead = EventCursor()
        self._stored: str | None = None
        self._stored_at = self._foreign_write_at = 0.0
        self._unstored: list[History] = []
        self._error: TechFlowError | None = None
        self._changed = asyncio.Event()

    async def events(self, connect: Callable[[], Awaitable[tuple[Poller, StatusWords]]]) -> AsyncIterator[Json]:
        """Yield the payload of each event.

        :param connect: returns the poller, and what status words mean
        :raises TechFlowError: no further poll can succeed
        """
        await self._read()
        self._ahead = self._cursor
        poller, self._words = await connect()
        with poller.observed_by(self):
            while True:
                await self._store()
                pending = self._emitter.next(self._cursor, self._now())
                if pending is None:
                    await self._wait_until_due()
                else:
                    yield pending.payload

    def add_to(self, history_filter: HistoryFilter) -> None:
        """Add all from which the wanted events follow."""
        history_filter.wants_workflows |= self._filter.is_about("workflow")
        if not self._filter.is_about("execution"):
            return
        if self._filter.workflow_id is None:
            history_filter.everything = True
        else:
            history_filter.add_workflow(self._filter.workflow_id)

    def update(self, history: History, now: float) -> bool:  # noqa: ARG002  # the interface of an observer
        """Keep the result of a poll until it is stored, and return whether it shows a wanted event."""
        before, self._ahead = self._ahead, self._after(self._ahead, history)
        if self._ahead != before:
            self._unstored.append(history)
            self._changed.set()
        return self._ahead.count > before.count

    def _after(self, cursor: EventCursor, history: History) -> EventCursor:
        return cursor.after(history, self._filter, self._owner, self._words)

    def report(self, error: TechFlowError) -> None:
        """Log a poll that failed and will be retried."""
        self._context.run(log.warning, "A poll for TechFlow's events failed and will be retried: %s", error)

    def fail(self, error: TechFlowError) -> None:
        """End the stream with its reason."""
        self._error = error
        self._changed.set()

    async def _wait_until_due(self) -> None:
        due = self._emitter.due(self._cursor)
        if self._cursor.has_foreign(self._owner):
            due = min(due, self._foreign_write_at + TAKEOVER_SECONDS)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), max(0.0, min(due - self._now(), RENEW_SECONDS)))
        self._changed.clear()
        if self._error is not None:
            raise self._error

    async def _store(self) -> None:
        """Store what is new and what has arrived, and take over the events of a dead trigger."""
        histories, arrived = tuple(self._unstored), self._emitter.arrived(self._now())
        await self._change(lambda cursor: reduce(self._after, histories, cursor).without(arrived))
        del self._unstored[: len(histories)]
        self._emitter.forget(arrived)
        if self._cursor.has_foreign(self._owner) and self._now() >= self._foreign_write_at + TAKEOVER_SECONDS:
            await self._take_over()
        self._ahead = reduce(self._after, self._unstored, self._cursor)

    async def _take_over(self) -> None:
        # Another trigger that has written meanwhile isn't dead.
        if not await self._replace(self._cursor.taken_over(self._owner)):
            await self._read()

    async def _change(self, change: Callable[[EventCursor], EventCursor]) -> None:
        """Change the stored cursor; once more where another process was faster."""
        while True:
            changed = change(self._cursor)
            is_fresh = self._now() - self._stored_at < RENEW_SECONDS
            if (changed == self._cursor and is_fresh) or await self._replace(changed):
                return
            await self._read()

    async def _read(self) -> None:
        entry = await self._use_records(lambda: self._records.cursor(self._name))
        age_seconds = 0.0 if entry is None else entry.age_seconds
        self._stored = None if entry is None else entry.value
        self._stored_at = self._foreign_write_at = self._now() - age_seconds
        try:
            self._cursor = EventCursor() if entry is None else EventCursor.read(entry.value)
        except ValueError:
            log.exception("The stored cursor can't be read; events since the last poll are lost")
            self._cursor = EventCursor()

    async def _replace(self, cursor: EventCursor) -> bool:
        expected, text = self._stored, cursor.to_text()
        if not await self._use_records(lambda: self._records.replace_cursor(self._name, expected, text)):
            return False
        self._cursor, self._stored, self._stored_at = cursor, text, self._now()
        return True

    async def _use_records(self, act: Callable[[], T]) -> T:
        while True:
            try:
                return await asyncio.to_thread(act)
            except StoreError as error:
                log.warning("Events are held back until they can be stored; retrying in %g s: %s", RETRY_SECONDS, error)
                await asyncio.sleep(RETRY_SECONDS)
