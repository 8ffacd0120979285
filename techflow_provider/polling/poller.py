"""One loop that reads the execution history for all who wait for something in it.

TechFlow has no call for one execution, so a wait means reading the whole history; one reading serves all waits. Those
who wait join and leave, and the loop ends with the last of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace

from techflow_provider.client import AsyncClient, Execution, RetryPolicy, Settings, TechFlowError, UnauthorizedError
from techflow_provider.client.calls import list_workflows
from techflow_provider.client.errors import is_transient
from techflow_provider.client.history import ExecutionTracker, History, HistoryFilter
from techflow_provider.client.paging import ConditionalCache
from techflow_provider.polling.observers import ExecutionWaiter, Observer, ObserverSet, as_techflow_error, for_each
from techflow_provider.polling.schedule import PollSchedule
from techflow_provider.state.budget import Budget, RequestClass
from techflow_provider.state.store import StoreError

log = logging.getLogger(__name__)

# One look may take its time with slots and pauses, and must come to an end.
LOOK_SECONDS = 120.0
# How often it is asked whether a webhook came.
BELL_SECONDS = 0.5
# A 5xx or a broken connection is the poller's own matter: it looks again, later each time.
LOOK_ONCE = RetryPolicy(max_attempts=1)


@dataclass(frozen=True, slots=True)
class Access:
    """How a poller reaches TechFlow.

    :param settings: key, base URL and bounds
    :param budget: the rate budget of the key
    :param wakeups: returns a number that changes with each webhook that came, and may raise `StoreError`; called in a
        thread; None where no webhook can come
    :param heartbeat: tells the key's other pollers that this one is there, and returns how many there are; called in a
        thread, and may raise `StoreError`; None where there can't be others
    """

    settings: Settings
    budget: Budget
    wakeups: Callable[[], int] | None = None
    heartbeat: Callable[[], int] | None = None


Connect = Callable[[], Awaitable[Access]]


class Poller:
    """Reads the history of one API key while somebody observes it.

    :param access: how to reach TechFlow
    :param connect: looks that up again when the key is refused
    :param ended: called when the last observer has left and nothing is read any more
    """

    def __init__(self, access: Access, connect: Connect, ended: Callable[[], None] = lambda: None) -> None:
        self._access = access
        self._connect = connect
        self._ended = ended
        self._observers = ObserverSet()
        self._task: asyncio.Task[None] | None = None

    async def wait(self, watch: ExecutionTracker, interval_seconds: float) -> Execution:
        """Wait until an execution has ended.

        :raises TechFlowError: waiting makes no sense any more
        """
        wait = ExecutionWaiter(watch, interval_seconds, asyncio.get_running_loop().create_future())
        # Not by the context manager, of which each takes half a kilobyte.
        self._join(wait)
        try:
            return await wait.ended
        finally:
            self._observers.remove(wait)

    @contextlib.contextmanager
    def observed_by(self, observer: Observer) -> Iterator[None]:
        """Hand an observer each reading while the context lasts; the first one comes within its interval."""
        self._join(observer)
        try:
            yield
        finally:
            self._observers.remove(observer)

    def _join(self, observer: Observer) -> None:
        self._observers.add(observer)
        if self._task is None or self._task.done():
            # In a context of its own, or what it logs would land in the log of the trigger that came first.
            self._task = asyncio.get_running_loop().create_task(self._run(), context=contextvars.Context())

    async def _run(self) -> None:
        try:
            await as_techflow_error("the execution history could not be read", self._poll())
        except TechFlowError as error:
            await self._observers.end(error)
        self._ended()

    async def _poll(self) -> None:
        """Look until nobody observes. A refused key is looked up once more, since it may have been changed."""
        while self._observers:
            access = self._access
            settings = replace(access.settings, deadline_seconds=LOOK_SECONDS)
            async with AsyncClient(settings=settings, budget=access.budget, retry=LOOK_ONCE) as client:
                try:
                    await _PollLoop(client, access, self._observers).poll_while_needed()
                except UnauthorizedError:
                    self._access = await self._connect()
                    if self._access.settings == access.settings:
                        raise
                    log.info(
                        "The API key was refused and has been changed in the connection: going on with the new one"
                    )


class _PollLoop:
    """The looks of a poller through one client.

    :param client: reads the history
    :param access: how it reaches TechFlow
    :param observer_set: those who observe
    """

    def __init__(self, client: AsyncClient, access: Access, observer_set: ObserverSet) -> None:
        self._client = client
        self._wakeups = access.wakeups
        self._heartbeat = access.heartbeat
        self._observers = observer_set
        self._clock = asyncio.get_running_loop().time
        self._pages: ConditionalCache[Execution] = ConditionalCache(self._clock)
        self._pace = PollSchedule()
        self._joined = 0
        self._rings = 0
        self._pollers = 1
        self._deaf = False
        self._missed = ""

    async def poll_while_needed(self) -> None:
        """Look until nobody observes.

        :raises TechFlowError: no look will succeed any more
        """
        rang = False
        while self._observers:
            began = self._clock()
            # What rang before is answered by this look, and what rings during it is not.
            await self._hears_ring()
            await self._poll_once(rang=rang)
            rang = await self._pause(began)

    async def _poll_once(self, *, rang: bool) -> None:
        observers = self._observers.present()
        self._forget_unchanged_pages()
        interest = HistoryFilter()
        await for_each(observers, lambda observer: observer.add_interest(interest))
        try:
            history = await self._read(interest)
        except TechFlowError as error:
            if not is_transient(error):
                raise
            # A page that came before the failure was handed to nobody.
            self._pages.clear()
            self._pace.failed(self._clock())
            await self._tell_of_miss(observers, error)
            return
        self._missed = ""
        now = self._clock()
        news = await for_each(observers, lambda observer: observer.update(history, now))
        self._pace.looked(now, rang=rang, news=any(news))

    async def _tell_of_miss(self, observers: tuple[Observer, ...], error: TechFlowError) -> None:
        # Once while the same goes wrong: the server may be away for hours, and the waits may be many.
        if str(error) != self._missed:
            self._missed = str(error)
            await for_each(observers, lambda observer: observer.miss(error))

    async def _read(self, interest: HistoryFilter) -> History:
        # The workflows first: when they can't be read, nothing of the history must count as handed over.
        workflows = None
        if interest.wants_workflows:
            workflows = tuple(await self._client.collect(list_workflows(RequestClass.POLL)))
        if not interest.wants_history:
            return History((), workflows)
        history = await self._client.executions.poll(LOOK_SECONDS, interest, self._pages)
        history.workflows = workflows
        return history

    def _forget_unchanged_pages(self) -> None:
        # To those who joined since the last look began, what has not changed is new.
        if self._joined != self._observers.added:
            self._joined = self._observers.added
            self._pages.clear()

    async def _pause(self, began: float) -> bool:
        """Let the interval pass while somebody observes, and return whether a webhook cut it short."""
        ended, budget = self._clock(), await self._client.use_state(self._client.budget.snapshot)
        await self._count_pollers()
        while self._observers:
            due = self._pace.due(began, ended, self._observers.interval_seconds, budget, self._pollers)
            left = due - self._clock()
            if left <= 0:
                break
            if await self._hears_ring():
                await asyncio.sleep(max(0.0, self._pace.rung(began) - self._clock()))
                return True
            await self._observers.changes_within(left if self._wakeups is None else min(left, BELL_SECONDS))
        return False

    async def _count_pollers(self) -> None:
        if self._heartbeat is None:
            return
        try:
            self._pollers = max(1, await self._client.use_state(self._heartbeat))
        except StoreError as error:
            # Those that were there last are still the best guess, and the budget warns of its store.
            log.debug("The pollers of the key can't be counted: %s", error)

    async def _hears_ring(self) -> bool:
        """Return whether a webhook came since the last time."""
        if self._wakeups is None:
            return False
        try:
            rings = await self._client.use_state(self._wakeups)
        except StoreError as error:
            if not self._deaf:
                log.warning("Webhooks can't be heard of at present (%s); the looks go on without them", error)
            self._deaf, self._pace.announced = True, 0
            return False
        rang, self._rings, self._deaf = rings != self._rings, rings, False
        return rang
