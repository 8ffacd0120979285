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
from techflow_provider.client.flow import FlowContext
from techflow_provider.client.history import ExecutionTracker, History, HistoryFilter
from techflow_provider.client.paging import collect
from techflow_provider.client.reading import SHORTEST_INTERVAL_SECONDS, ReadTerms
from techflow_provider.client.text import get_logger
from techflow_provider.polling.observers import ExecutionWaiter, Observer, ObserverSet, as_techflow_error, for_each
from techflow_provider.polling.schedule import PollSchedule
from techflow_provider.polling.shared import SHORTEST_CHECK_SECONDS, SharedReader
from techflow_provider.state.budget import Budget, RequestClass
from techflow_provider.state.memory import MemoryStore

log: logging.Logger = get_logger(__name__)

# One poll may wait for slots and cool-downs, within this bound.
POLL_DEADLINE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Access:
    """How a poller reaches TechFlow.

    :param settings: key, base URL and bounds
    :param budget: the rate budget of the key
    :param reader: reads the history together with the key's other readers; None where there can't be any
    :param transport: an httpx transport, such as the sandbox's; None takes the network
    """

    settings: Settings
    budget: Budget
    reader: SharedReader | None = None
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
        clock = asyncio.get_running_loop().time
        while self._observers:
            access = self._access
            settings = replace(access.settings, deadline_seconds=POLL_DEADLINE_SECONDS)
            reader = access.reader or SharedReader(MemoryStore(clock), settings.account, "the only one")
            # The poller itself polls again after a 5xx or a broken connection, each time later.
            once = RetryPolicy(max_attempts=1)
            async with AsyncClient(
                settings=settings, budget=access.budget, retry=once, transport=access.transport, clock=clock
            ) as client:
                try:
                    await _PollLoop(client.context, reader, self._observers, PollSchedule()).run()
                except UnauthorizedError:
                    self._access = await self._connect()
                    if self._access.settings == access.settings:
                        raise
                    log.info("The API key was refused, and the connection has a new one: polling continues with that")


@dataclass(slots=True)
class _PollLoop:
    """The polls of a poller with one key.

    :param context: what they run with
    :param reader: reads the history
    :param observers: what receives the result of each poll
    :param schedule: decides when to poll
    :param added: how many observers had been added before the last poll
    :param interval: the time between two polls
    :param next_seconds: when the result of another process's poll is expected
    :param last_failure: what was reported last
    """

    context: FlowContext
    reader: SharedReader
    observers: ObserverSet
    schedule: PollSchedule
    added: int = 0
    interval: float = 0.0
    next_seconds: float | None = None
    last_failure: str = ""

    async def run(self) -> None:
        """Poll while there are observers.

        :raises TechFlowError: no further poll can succeed
        """
        woken = False
        while self.observers:
            began = self.context.clock()
            # This poll serves a wake-up from before it, but not one that comes during it.
            await self.reader.is_woken(self.context)
            await self._poll(woken=woken)
            woken = await self._wait_until_due(began)

    async def _poll(self, *, woken: bool) -> None:
        wanted = self.observers.history_filter()
        # Observers added since the last poll began haven't received what is unchanged since then.
        added = self.observers.added
        wanted.has_new, self.next_seconds = self.added != added, None
        try:
            history = await self._read(wanted)
        except TechFlowError as error:
            if not error.is_transient:
                raise
            self.schedule.failed()
            await self._report(error)
            return
        self.added, self.next_seconds = added, history.next_seconds
        found = await self.observers.update(history, self.context.clock())
        await self._report(history.failure)
        self.schedule.polled(woken=woken, found=found)

    async def _report(self, error: TechFlowError | None) -> None:
        # Once per kind of failure: the server may be away for hours, and there may be many waits.
        before, self.last_failure = self.last_failure, "" if error is None else str(error)
        if error is not None and self.last_failure != before:
            await for_each(self.observers.present(), lambda observer: observer.report(error))

    async def _read(self, wanted: HistoryFilter) -> History:
        # The workflows first: when they can't be read, no part of the history may count as received.
        workflows = None
        if wanted.wants_workflows:
            workflows = tuple(await collect(list_workflows(RequestClass.POLL), self.context))
        if not (wanted.everything or wanted.known_statuses or wanted.workflow_ids):
            return History((), workflows)
        interval = self.interval or max(self.observers.interval_seconds, SHORTEST_INTERVAL_SECONDS)
        terms = ReadTerms.every(interval, POLL_DEADLINE_SECONDS)
        history = await self.reader.read(self.context, wanted, terms)
        history.workflows = workflows
        return history

    async def _wait_until_due(self, began: float) -> bool:
        """Wait for the next poll while there are observers, and return whether a webhook asks for it."""
        clock = self.context.clock
        ended, budget = clock(), await self.context.io.use_state(self.context.budget.snapshot)
        while self.observers:
            self.interval = self.schedule.interval(self.observers.interval_seconds, budget)
            due = self.schedule.due(began, ended, self.interval)
            if self.next_seconds is not None:
                # Another process polls, and its next result comes then.
                due = max(ended + self.next_seconds, due - self.interval / 2)
            left = due - clock()
            if left <= 0:
                break
            if await self.reader.is_woken(self.context):
                await asyncio.sleep(max(0.0, self.schedule.wake(began) - clock()))
                return True
            await self.observers.wait_for_change(min(left, SHORTEST_CHECK_SECONDS))
        return False
