"""One loop that polls the execution history for all that wait for something in it.

TechFlow has no call for one execution, so a wait means reading the whole history; one poll serves all waits. Observers
come and go, and the loop ends with the last of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace

import httpx

from techflow_provider.client import AsyncClient, Execution, RetryPolicy, Settings, TechFlowError, UnauthorizedError
from techflow_provider.client.calls import list_workflows
from techflow_provider.client.history import ExecutionTracker, History, HistoryFilter
from techflow_provider.client.paging import collect
from techflow_provider.client.reading import (
    SHORTEST_INTERVAL_SECONDS,
    HistoryReader,
    PollMemory,
    ReadTerms,
    read_history,
)
from techflow_provider.client.text import get_logger
from techflow_provider.polling.observers import ExecutionWaiter, Observer, ObserverSet, as_techflow_error, for_each
from techflow_provider.polling.schedule import PollSchedule
from techflow_provider.state.budget import Budget, RequestClass
from techflow_provider.state.store import StoreError

log: logging.Logger = get_logger(__name__)

# One poll may wait for slots and cool-downs, within this bound.
POLL_DEADLINE_SECONDS = 120.0
# Time between two reads of the wake-up counter.
WAKEUP_CHECK_SECONDS = 0.5
# The poller itself polls again after a 5xx or a broken connection, each time later.
SEND_ONCE = RetryPolicy(max_attempts=1)


@dataclass(frozen=True, slots=True)
class Access:
    """How a poller reaches TechFlow.

    :param settings: key, base URL and bounds
    :param budget: the rate budget of the key
    :param wakeups: returns the wake-up counter, which each webhook increments; called in a thread, and may raise
        `StoreError`; None where no webhook can arrive
    :param reader: reads the history together with the key's other readers; None where there can't be any
    :param transport: an httpx transport, such as the sandbox's; None takes the network
    """

    settings: Settings
    budget: Budget
    wakeups: Callable[[], int] | None = None
    reader: HistoryReader | None = None
    transport: httpx.AsyncBaseTransport | None = None


Connect = Callable[[], Awaitable[Access]]


class Poller:
    """Polls with one API key while there are observers.

    :param access: how to reach TechFlow
    :param connect: reads that again when the key is refused
    :param ended: called when the last observer has been removed and polling has stopped
    """

    def __init__(self, access: Access, connect: Connect, ended: Callable[[], None] = lambda: None) -> None:
        self._access = access
        self._connect = connect
        self._ended = ended
        self._observers = ObserverSet()
        self._task: asyncio.Task[None] | None = None

    async def wait(
        self, tracker: ExecutionTracker, interval_seconds: float, within_seconds: float | None = None
    ) -> Execution:
        """Wait until an execution has ended.

        :raises TimeoutError: it hasn't within the time
        :raises TechFlowError: there is no point in waiting any longer
        """
        loop = asyncio.get_running_loop()
        waiter = ExecutionWaiter(tracker, interval_seconds, loop.create_future())
        # Without a context manager for either, which takes half a kilobyte per wait.
        timer = None if within_seconds is None else loop.call_later(within_seconds, waiter.time_out)
        self._add(waiter)
        try:
            return await waiter.ended
        finally:
            self._observers.remove(waiter)
            if timer is not None:
                timer.cancel()

    @contextlib.contextmanager
    def observed_by(self, observer: Observer) -> Iterator[None]:
        """Hand an observer the result of each poll while the context lasts, the first one within its interval."""
        self._add(observer)
        try:
            yield
        finally:
            self._observers.remove(observer)

    def _add(self, observer: Observer) -> None:
        self._observers.add(observer)
        if self._task is None or self._task.done():
            # In a context of its own, or its log lines would go to the log of the first trigger.
            self._task = asyncio.get_running_loop().create_task(self._run(), context=contextvars.Context())

    async def _run(self) -> None:
        try:
            await as_techflow_error("the execution history could not be read", self._poll())
        except TechFlowError as error:
            await self._observers.fail(error)
        self._ended()

    async def _poll(self) -> None:
        """Poll while there are observers; a refused key is looked up once more, since there may be a new one."""
        while self._observers:
            access = self._access
            settings = replace(access.settings, deadline_seconds=POLL_DEADLINE_SECONDS)
            async with AsyncClient(
                settings=settings,
                budget=access.budget,
                retry=SEND_ONCE,
                transport=access.transport,
                clock=asyncio.get_running_loop().time,
                reader=access.reader,
            ) as client:
                try:
                    await _PollLoop(client, access, self._observers).run()
                except UnauthorizedError:
                    self._access = await self._connect()
                    if self._access.settings == access.settings:
                        raise
                    log.info("The API key was refused, and the connection has a new one: polling continues with that")


class _PollLoop:
    """The polls of a poller through one client.

    :param client: reads the history
    :param access: how it reaches TechFlow
    :param observer_set: what receives the result of each poll
    """

    def __init__(self, client: AsyncClient, access: Access, observer_set: ObserverSet) -> None:
        self._client = client
        self._wakeups = access.wakeups
        self._observers = observer_set
        self._clock = client.context.clock
        self._memory = PollMemory(self._clock)
        self._schedule = PollSchedule()
        self._added = 0
        self._wakeup_count = 0
        self._wakeups_failed = False
        self._interval = 0.0
        self._next: float | None = None
        self._last_failure = ""

    async def run(self) -> None:
        """Poll while there are observers.

        :raises TechFlowError: no further poll can succeed
        """
        woken = False
        while self._observers:
            began = self._clock()
            # This poll serves a wake-up from before it, but not one that comes during it.
            await self._was_woken()
            await self._poll(woken=woken)
            woken = await self._wait_until_due(began)

    async def _poll(self, *, woken: bool) -> None:
        history_filter = self._observers.history_filter()
        # Observers added since the last poll began haven't received what is unchanged since then.
        history_filter.has_new = self._added != self._observers.added
        self._added = self._observers.added
        try:
            history = await self._read(history_filter, woken=woken)
        except TechFlowError as error:
            if not error.is_transient:
                raise
            self._schedule.failed(self._clock())
            await self._report(error)
            return
        now = self._clock()
        found = await self._observers.update(history, now)
        if history.failure is None:
            self._last_failure = ""
        else:
            await self._report(history.failure)
        self._schedule.polled(now, woken=woken, found=found)

    async def _report(self, error: TechFlowError) -> None:
        # Once per kind of failure: the server may be away for hours, and there may be many waits.
        if str(error) != self._last_failure:
            self._last_failure = str(error)
            await for_each(self._observers.present(), lambda observer: observer.report(error))

    async def _read(self, history_filter: HistoryFilter, *, woken: bool) -> History:
        # The workflows first: when they can't be read, no part of the history may count as received.
        workflows = None
        if history_filter.wants_workflows:
            workflows = tuple(await collect(list_workflows(RequestClass.POLL), self._client.context))
        if not history_filter.wants_executions:
            return History((), workflows)
        interval = self._interval or max(self._observers.interval_seconds, SHORTEST_INTERVAL_SECONDS)
        terms = ReadTerms.every(interval, POLL_DEADLINE_SECONDS, is_woken=woken)
        history = await read_history(self._client.context, history_filter, terms, self._memory)
        self._next, history.workflows = history.next_seconds, workflows
        return history

    async def _wait_until_due(self, began: float) -> bool:
        """Wait for the next poll while there are observers, and return whether a webhook asks for it."""
        ended, budget = self._clock(), await self._client.use_state(self._client.budget.snapshot)
        while self._observers:
            self._interval = self._schedule.interval(self._observers.interval_seconds, budget)
            due = self._schedule.due(began, ended, self._interval)
            if self._next is not None:
                # Another process polls, and its next result comes then.
                due = max(ended + self._next, due - self._interval / 2)
            left = due - self._clock()
            if left <= 0:
                break
            if await self._was_woken():
                await asyncio.sleep(max(0.0, self._schedule.woken_due(began) - self._clock()))
                return True
            await self._observers.wait_for_change(left if self._wakeups is None else min(left, WAKEUP_CHECK_SECONDS))
        return False

    async def _was_woken(self) -> bool:
        """Return whether a webhook arrived since the last call."""
        if self._wakeups is None:
            return False
        try:
            count = await self._client.use_state(self._wakeups)
        except StoreError as error:
            if not self._wakeups_failed:
                log.warning("Polling continues without webhooks: the wake-up counter can't be read (%s)", error)
            self._wakeups_failed, self._schedule.webhook_streak = True, 0
            return False
        woken, self._wakeup_count, self._wakeups_failed = count != self._wakeup_count, count, False
        return woken
