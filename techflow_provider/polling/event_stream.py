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
from uuid import uuid4

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
# A trigger that has pending events and hasn't stored anything for this time is dead.
TAKEOVER_SECONDS = 20.0
# So that nobody takes it for dead, a trigger with pending events stores its cursor again after this time.
HEARTBEAT_SECONDS = 10.0
# One without stores an unchanged cursor again, since only writing renews a record's time to live.
RENEW_SECONDS = 24 * 3600.0
# Time between two attempts to use a store that can't be used; no event is emitted meanwhile.
RETRY_SECONDS = 5.0


class EventStream:
    """An observer of the poller that stores what is new, and emits one event at a time.

    Triggers with the same name share one stored cursor. One of them owns its pending events and emits them; when it is
    gone, another takes them over.

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
        self._owner = uuid4().hex
        self._words = USUAL_WORDS
        self._context = contextvars.copy_context()
        self._now = asyncio.get_running_loop().time
        # The cursor as it was stored last, and when.
        self._cursor = EventCursor()
        self._text = ""
        self._written_at = -math.inf
        # What the polls have shown since, and when the pending events were emitted.
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
        return [each for each in self._cursor.pending if self._is_own and each not in self._emitted]

    @property
    def _is_own(self) -> bool:
        return self._cursor.owner in ("", self._owner)

    @property
    def _fresh_seconds(self) -> float:
        """How long the cursor needn't be stored or read again, unless something changes."""
        if not self._cursor.pending:
            return RENEW_SECONDS
        return HEARTBEAT_SECONDS if self._is_own else TAKEOVER_SECONDS

    async def _wait_until_due(self) -> None:
        times = [self._written_at + self._fresh_seconds, *(at + CONFIRM_SECONDS for at in self._emitted.values())]
        if self._waiting():
            times.append(self._emitted_at + self._spacing_seconds)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), max(0.0, min(times) - self._now()))
        self._changed.clear()
        if self._error is not None:
            raise self._error

    async def _store(self) -> None:
        """Store what is new and what has arrived, unless another trigger emits the pending events."""
        new, now = self._new, self._now()
        arrived = {number for number, at in self._emitted.items() if now >= at + CONFIRM_SECONDS}

        def following(cursor: EventCursor, age_seconds: float) -> EventCursor:
            if cursor.owner not in ("", self._owner) and age_seconds < TAKEOVER_SECONDS:
                # The same one: it isn't this trigger's to store.
                return cursor
            after = cursor if new is None else cursor.after(new, self._filter, self._words)
            return after.emitted_by(self._owner, arrived)

        def change(entry: Entry | None, _: float) -> tuple[Write | None, tuple[EventCursor, str, float]]:
            text, age_seconds = ("", math.inf) if entry is None else (entry.value, entry.age_seconds)
            present = self._cursor if text == self._text else _read(text)
            cursor = following(present, age_seconds)
            if cursor is present or (cursor == present and age_seconds < HEARTBEAT_SECONDS):
                return None, (cursor, text, age_seconds)
            return Write(cursor.to_text(), CURSOR_TTL_SECONDS), (cursor, cursor.to_text(), 0.0)

        age_seconds = now - self._written_at
        if following(self._cursor, age_seconds) != self._cursor or age_seconds >= self._fresh_seconds:
            found = await self._use_records(partial(self._records.update_cursor, self._name, change))
            self._cursor, self._text, age_seconds = found
            self._written_at = self._now() - age_seconds
        if self._is_own:
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
        return EventCursor.read(text) if text else EventCursor()
    except ValueError:
        log.exception("The stored cursor can't be read; events since the last poll are lost")
        return EventCursor()
