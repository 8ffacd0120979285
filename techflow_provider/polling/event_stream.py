"""The events of one trigger: what the shared poller finds is stored first, and then emitted, each event once."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TypeVar

from techflow_provider.client import TechFlowError
from techflow_provider.client.history import History, HistoryFilter
from techflow_provider.client.models import USUAL_WORDS, StatusWords
from techflow_provider.client.parsing import Json
from techflow_provider.client.text import get_logger
from techflow_provider.polling.events import EventCursor, EventFilter
from techflow_provider.polling.poller import Poller
from techflow_provider.state.records import CURSOR_TTL_SECONDS, Records
from techflow_provider.state.store import Entry, StoreError, Write

T = TypeVar("T")

log: logging.Logger = get_logger(__name__)

# A triggerer hands events over about once a second; after this time, one is in Airflow's database.
CONFIRM_SECONDS = 5.0
# An event that another running trigger has found and not emitted after this time is emitted by this one.
TAKEOVER_SECONDS = 600.0
# An unchanged cursor is stored again after this time, since only writing renews a record's time to live.
RENEW_SECONDS = 24 * 3600.0
# Time between two attempts to use a store that can't be used; no event is emitted meanwhile.
RETRY_SECONDS = 5.0


class EventStream:
    """An observer of the poller that stores what is new, and emits one event at a time.

    Triggers with the same name share one stored cursor, which changes in one atomic step. The one that stores an event
    emits it; what is pending when a trigger begins was left by one that is gone, and it emits that, too.

    :param event_filter: the events that are wanted
    :param records: where the cursor is stored
    :param name: the name of that record, the same in every process
    :param interval_seconds: time between two polls while no webhook arrives
    :param spacing_seconds: time between two events, so that each gets a DAG run of its own
    """

    def __init__(
        self, event_filter: EventFilter, records: Records, name: str, interval_seconds: float, spacing_seconds: float
    ) -> None:
        self.interval_seconds = interval_seconds
        self._filter = event_filter
        self._records = records
        self._name = name
        self._spacing_seconds = spacing_seconds
        self._words = USUAL_WORDS
        self._context = contextvars.copy_context()
        self._now = asyncio.get_running_loop().time
        # The cursor as it was stored last, and when; and when each of its events may be emitted here.
        self._cursor = EventCursor()
        self._text: str | None = None
        self._stored_at = -math.inf
        self._due: dict[int, float] = {}
        # What the polls have shown since, and when events were emitted.
        self._new: History | None = None
        self._emitted: dict[int, float] = {}
        self._emitted_at = -math.inf
        self._error: TechFlowError | None = None
        self._changed = asyncio.Event()

    async def events(self, connect: Callable[[], Awaitable[tuple[Poller, StatusWords]]]) -> AsyncIterator[Json]:
        """Yield the payload of each event.

        :param connect: returns the poller, and what status words mean
        :raises TechFlowError: no further poll can succeed
        """
        poller, self._words = await connect()
        with poller.observed_by(self):
            while True:
                await self._store()
                number = next(iter(self._waiting()), None)
                if number is None or self._now() < self._emitted_at + self._spacing_seconds:
                    await self._wait_until_due()
                    continue
                self._emitted[number] = self._emitted_at = self._now()
                yield self._cursor.pending[number]

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
        """Keep the result of a poll until it is stored, and return whether anything has changed."""
        known = () if self._new is None else self._new
        self._new = History((*known, *history), history.workflows, at=history.at)
        self._changed.set()
        return len(history) > 0

    def report(self, error: TechFlowError) -> None:
        """Log a poll that failed and will be retried."""
        self._context.run(log.warning, "A poll for TechFlow's events failed and will be retried: %s", error)

    def fail(self, error: TechFlowError) -> None:
        """End the stream with its reason."""
        self._error = error
        self._changed.set()

    def _waiting(self) -> list[int]:
        """Return the numbers of the events that this trigger has still to emit."""
        return [each for each, due in self._due.items() if due <= self._stored_at and each not in self._emitted]

    async def _wait_until_due(self) -> None:
        times = [self._stored_at + RENEW_SECONDS, *(at + CONFIRM_SECONDS for at in self._emitted.values())]
        times += [due for due in self._due.values() if due > self._stored_at]
        if self._waiting():
            times.append(self._emitted_at + self._spacing_seconds)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), max(0.0, min(times) - self._now()))
        self._changed.clear()
        if self._error is not None:
            raise self._error

    async def _store(self) -> None:
        """Store what is new and what has arrived, and learn what other triggers have stored."""
        new, now = self._new, self._now()
        arrived = {number for number, at in self._emitted.items() if now >= at + CONFIRM_SECONDS}

        def following(cursor: EventCursor) -> EventCursor:
            return (cursor if new is None else cursor.after(new, self._filter, self._words)).without(arrived)

        def change(entry: Entry | None, _: float) -> tuple[Write, tuple[EventCursor, EventCursor, str]]:
            is_known = entry is None or entry.value == self._text
            present = self._cursor if entry is None or is_known else _read(entry.value)
            cursor = following(present)
            text = cursor.to_text()
            return Write(text, CURSOR_TTL_SECONDS), (present, cursor, text)

        is_due = any(self._stored_at < due <= now for due in (*self._due.values(), self._stored_at + RENEW_SECONDS))
        if is_due or self._text is None or following(self._cursor) != self._cursor:
            is_first = self._text is None
            found = await self._use_records(partial(self._records.update_cursor, self._name, change))
            before, self._cursor, self._text = found
            self._stored_at = self._now()
            # Another trigger's events are its own for a while.
            foreign = dict.fromkeys(before.pending, 0.0 if is_first else self._stored_at + TAKEOVER_SECONDS)
            self._due = {each: self._due.get(each, foreign.get(each, 0.0)) for each in self._cursor.pending}
        self._emitted = {number: at for number, at in self._emitted.items() if number not in arrived}
        self._new = None if self._new is new else self._new

    async def _use_records(self, act: Callable[[], T]) -> T:
        while True:
            try:
                return await asyncio.to_thread(act)
            except StoreError as error:
                log.warning("Events are held back until they can be stored; retrying in %g s: %s", RETRY_SECONDS, error)
                await asyncio.sleep(RETRY_SECONDS)


def _read(text: str) -> EventCursor:
    try:
        return EventCursor.read(text)
    except ValueError:
        log.exception("The stored cursor can't be read; events since the last poll are lost")
        return EventCursor()
