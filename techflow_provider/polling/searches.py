"""One poll of the whole history for all searches that use the same API key, wherever they run."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from techflow_provider.client.flow import FlowContext
from techflow_provider.client.history import History
from techflow_provider.client.models import read_executions
from techflow_provider.state.store import Change, Entry, Store, StoreError, Write
from techflow_provider.submission.recovery import read_whole

T = TypeVar("T")

# Few enough polls that the starts which are sent again meanwhile have nearly all of the limit.
SHORTEST_INTERVAL_SECONDS = 1.0
LONGEST_INTERVAL_SECONDS = 10.0
# After this time, the intervals begin anew.
QUIET_SECONDS = 60.0
SHARED_NAME, SHARED_TTL_SECONDS = "searches", 600.0
# A longer history isn't shared.
LARGEST_HISTORY = 256 * 1024


@dataclass(frozen=True, slots=True)
class SharedPoll:
    """The last poll as it is kept; times are ages, since the store has a clock of its own.

    :param attempt: seconds since the last poll began, which may not have succeeded
    :param interval: the time from then to the next one
    :param began: seconds since the last one that succeeded began
    :param history: what that showed; None where it isn't shared
    """

    attempt: float = math.inf
    interval: float = 0.0
    began: float = math.inf
    history: dict[str, Any] | None = None

    @classmethod
    def of(cls, entry: Entry | None) -> SharedPoll:
        """Return the poll as it is now; an entry that can't be read counts as none."""
        try:
            kept = cls() if entry is None else cls(**json.loads(entry.value))
            age = 0.0 if entry is None else entry.age_seconds
            return replace(kept, attempt=kept.attempt + age, began=kept.began + age)
        except (TypeError, ValueError):
            return cls()

    def write(self) -> Write:
        """Return what stores it."""
        return Write(json.dumps(asdict(self)), SHARED_TTL_SECONDS)


class SharedHistory:
    """Reads the history for the searches of one process, together with those of others.

    :param store: where they share what a poll has shown
    :param account: the API key's name there
    """

    def __init__(self, store: Store, account: str) -> None:
        self._store = store
        self._namespace = f"{account}/polls"
        self._lock = asyncio.Lock()
        self._last: History | None = None
        self._read_after: dict[Hashable, tuple[History, Any]] = {}

    async def poll(self, context: FlowContext, since: float) -> History:
        """Return what a poll showed that began at some time or later, on the context's clock.

        :raises TechFlowError: what reading the history raises
        """
        async with self._lock:
            if self._last is None or self._last.began < since:
                try:
                    self._last = await self._share(context, since)
                except StoreError:
                    self._last = await read_whole(context)
            return self._last

    async def once(self, history: History, key: Hashable, read: Callable[[Any], Awaitable[T]]) -> T:
        """Return what one search has read after a poll.

        :param key: what it depends on beside the history
        :param read: reads it, given what was read after another poll, if anything was
        """
        async with self._lock:
            after, earlier = self._read_after.get(key, (None, None))
            found: T = earlier if after is history else await read(earlier)  # type: ignore[assignment]
            self._read_after[key] = history, found
            return found

    async def _share(self, context: FlowContext, since: float) -> History:
        while True:
            shared = await self._update(context, _begin(context.clock() - since))
            if shared is None:
                return await self._poll(context)
            if shared.began <= context.clock() - since:
                return await read_whole(context) if shared.history is None else _received(shared, context)
            # A little later, so that the next poll isn't missed by a hair.
            await context.io.sleep(min(SHORTEST_INTERVAL_SECONDS, shared.interval - shared.attempt + 0.05))

    async def _poll(self, context: FlowContext) -> History:
        history = await read_whole(context)
        unreadable = history.unreadable + (history.failure is not None)
        shown = {
            "at": history.at.isoformat(),
            "unreadable": unreadable,
            "rows": [dict(each.raw) for each in history.rows],
        }
        text = json.dumps(shown).encode()
        is_private = len(text) > LARGEST_HISTORY or context.settings.holds_key(text)
        await self._update(context, _publish(context.clock() - history.began, None if is_private else shown))
        return history

    async def _update(self, context: FlowContext, change: Change[SharedPoll | None]) -> SharedPoll | None:
        return await context.io.use_state(partial(self._store.update, self._namespace, SHARED_NAME, change))


def _begin(age_seconds: float) -> Change[SharedPoll | None]:
    """Return the change with which a process begins to poll if it should; it has no result then.

    :param age_seconds: how long ago a poll may have begun
    """

    def change(entry: Entry | None, _: float) -> tuple[Write | None, SharedPoll | None]:
        shared = SharedPoll.of(entry)
        if shared.began <= age_seconds or shared.attempt < shared.interval:
            return None, shared
        interval = 2 * shared.interval if shared.attempt < QUIET_SECONDS else 0.0
        interval = min(max(interval, SHORTEST_INTERVAL_SECONDS), LONGEST_INTERVAL_SECONDS)
        return replace(shared, attempt=0.0, interval=interval).write(), None

    return change


def _publish(age_seconds: float, shown: dict[str, Any] | None) -> Change[SharedPoll | None]:
    def change(entry: Entry | None, _: float) -> tuple[Write | None, SharedPoll | None]:
        shared = SharedPoll.of(entry)
        following = replace(shared, began=age_seconds, history=shown)
        return (None, shared) if shared.began <= age_seconds else (following.write(), following)

    return change


def _received(shared: SharedPoll, context: FlowContext) -> History:
    shown = shared.history or {}
    return History(
        read_executions(shown["rows"], context.settings.status_words).items,
        at=datetime.fromisoformat(shown["at"]),
        began=context.clock() - shared.began,
        unreadable=shown["unreadable"],
    )
