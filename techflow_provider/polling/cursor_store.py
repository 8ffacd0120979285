"""Where an event trigger writes down what it knows: a record in the shared state that one trigger at a time changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from techflow_provider.polling.event_cursor import EventCursor
from techflow_provider.state.records import Records
from techflow_provider.state.store import StoreError

T = TypeVar("T")

log = logging.getLogger(__name__)

# The state may be away for a while; nothing is told until it is back.
RETRY_SECONDS = 5.0
# A record's time to live begins anew with each time it is written.
RENEW_SECONDS = 24 * 3600.0


class CursorStore:
    """What one watcher knows, as it is written down.

    :param records: where
    :param name: the watcher's name, the same in every process
    """

    def __init__(self, records: Records, name: str) -> None:
        self.cursor = EventCursor()
        self._records = records
        self._name = name
        self._text: str | None = None
        self._written = 0.0
        self._others_wrote = 0.0

    @property
    def left_alone_seconds(self) -> float:
        """How long no other process has written it, as far as this one knows."""
        return asyncio.get_running_loop().time() - self._others_wrote

    async def open(self) -> None:
        """Read what is written down."""
        entry = await self._persistently(lambda: self._records.cursor(self._name))
        self._text = None if entry is None else entry.value
        self._written = asyncio.get_running_loop().time() - (0.0 if entry is None else entry.age_seconds)
        self._others_wrote = self._written
        self.cursor = EventCursor() if entry is None else self._read(entry.value)

    def _read(self, text: str) -> EventCursor:
        try:
            return EventCursor.read(text)
        except ValueError:
            log.exception("Watching begins anew, and events since the last look are lost")
            return EventCursor()

    async def change(self, change: Callable[[EventCursor], EventCursor]) -> None:
        """Apply a change and write it down; again where another process was faster."""
        while True:
            following = change(self.cursor)
            fresh = asyncio.get_running_loop().time() - self._written < RENEW_SECONDS
            if following == self.cursor and fresh:
                return
            if await self._replace(following):
                return
            await self.open()

    async def take_over(self, owner: str) -> None:
        """Let one trigger tell all that is pending, unless another process has written meanwhile."""
        if not await self._replace(self.cursor.taken_over(owner)):
            await self.open()

    async def _replace(self, following: EventCursor) -> bool:
        present, text = self._text, following.to_text()
        if not await self._persistently(lambda: self._records.replace_cursor(self._name, present, text)):
            return False
        self.cursor, self._text, self._written = following, text, asyncio.get_running_loop().time()
        return True

    async def _persistently(self, act: Callable[[], T]) -> T:
        """Act in a thread, and again after a pause as long as the state can't be used."""
        while True:
            try:
                return await asyncio.to_thread(act)
            except StoreError as error:
                log.warning("What a watcher knows can't be written down, so it tells nothing at present: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
