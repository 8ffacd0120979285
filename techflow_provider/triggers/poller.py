"""One loop that reads the execution history for every wait of a connection.

TechFlow has no call for one execution, so a wait means reading the whole history; one reading serves all waits. Waits
join and leave, and the loop ends with the last of them.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

from techflow_provider.client import AsyncClient, Execution, RetryPolicy, Settings, TechFlowError, UnauthorizedError
from techflow_provider.client.calls import list_executions
from techflow_provider.client.history import History, Watch
from techflow_provider.client.patience import backoff_seconds, passes
from techflow_provider.state.budget import Budget, RequestClass

log = logging.getLogger(__name__)

# However eager the waits are, this keeps the looks of one poller under 20 a minute.
SHORTEST_INTERVAL_SECONDS = 3.0
# One look may take its time with slots and pauses, and must come to an end.
LOOK_SECONDS = 120.0
# So many waits are served before others of the event loop get their turn.
WAITS_PER_TURN = 200
# A history that is longer is indexed in a thread.
LARGE_HISTORY = 2000
# A 5xx or a broken connection is the poller's own matter: it looks again, later each time.
LOOK_ONCE = RetryPolicy(max_attempts=1)

Connect = Callable[[], Awaitable[tuple[Settings, Budget]]]


@dataclass(eq=False, slots=True)
class Wait:
    """One wait in a poller.

    :param watch: what it knows of its execution
    :param interval_seconds: how often it would like a look
    :param ended: set when the wait is over
    :param context: the trigger's context, so that what is logged for it lands in its own log
    """

    watch: Watch
    interval_seconds: float
    ended: asyncio.Future[Execution]
    context: contextvars.Context = field(default_factory=contextvars.copy_context)

    def look(self, history: History, now: float) -> None:
        """Take notice of a reading of the history."""
        if self.ended.done():
            return
        try:
            execution = self.context.run(self.watch.look, history, now)
        except TechFlowError as error:
            self.fail(error)
        else:
            if execution is not None:
                self.ended.set_result(execution)

    def fail(self, error: TechFlowError) -> None:
        """End the wait with the reason why it can't go on."""
        if not self.ended.done():
            self.ended.set_exception(error)


class Poller:
    """Reads the history of one connection while something waits.

    :param connect: looks the connection up; called once at the start, and again when the key is refused
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._waits: set[Wait] = set()
        self._changed = asyncio.Event()
        self._failures = 0
        self._task: asyncio.Task[None] | None = None

    async def wait(self, watch: Watch, interval_seconds: float) -> Execution:
        """Wait until an execution has ended.

        :raises TechFlowError: waiting makes no sense any more
        """
        wait = Wait(watch, interval_seconds, asyncio.get_running_loop().create_future())
        self._waits.add(wait)
        self._changed.set()
        self._run_while_needed()
        try:
            return await wait.ended
        finally:
            self._waits.discard(wait)
            self._changed.set()

    def _run_while_needed(self) -> None:
        if self._task is None or self._task.done():
            # In a context of its own, or what it logs would land in the log of the trigger that came first.
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._run(), context=contextvars.Context())

    async def _run(self) -> None:
        try:
            settings, budget = await self._connect()
            await self._poll(settings, budget)
        except TechFlowError as error:
            await self._end_all(error)
        except Exception as error:  # noqa: BLE001 - a wait must end with the reason, whatever a look-up raises
            await self._end_all(TechFlowError(f"the connection could not be read: {type(error).__name__}: {error}"))

    async def _end_all(self, reason: TechFlowError) -> None:
        # Again until nobody is left, since a wait may join while the others are told.
        while self._waits:
            await self._serve(lambda wait: wait.fail(reason))

    async def _poll(self, settings: Settings, budget: Budget) -> None:
        """Look until nobody waits. A key that is refused is looked up once more, since it may have been changed."""
        while self._waits:
            async with AsyncClient(settings=_for_looks(settings), budget=budget, retry=LOOK_ONCE) as client:
                try:
                    await self._look_while_needed(client)
                except UnauthorizedError:
                    fresh, budget = await self._connect()
                    if fresh == settings:
                        raise
                    log.info(
                        "The API key was refused and has been changed in the connection; going on with the new one"
                    )
                    settings = fresh

    async def _look_while_needed(self, client: AsyncClient) -> None:
        while self._waits:
            await self._look(client)
            await self._pause()

    async def _look(self, client: AsyncClient) -> None:
        try:
            executions = await client.collect(list_executions(RequestClass.POLL))
        except TechFlowError as error:
            if not passes(error):
                raise
            await self._miss(error)
            return
        self._failures = 0
        large = len(executions) > LARGE_HISTORY
        history = await asyncio.to_thread(History, executions) if large else History(executions)
        now = asyncio.get_running_loop().time()
        await self._serve(lambda wait: wait.look(history, now))

    async def _miss(self, error: TechFlowError) -> None:
        self._failures += 1
        words = str(error)
        await self._serve(lambda wait: wait.context.run(_tell_failure, words))

    async def _serve(self, act: Callable[[Wait], None]) -> None:
        for served, wait in enumerate(tuple(self._waits), 1):
            act(wait)
            if served % WAITS_PER_TURN == 0:
                await asyncio.sleep(0)
        # Those whose wait is over leave before it is asked whether anybody still waits.
        await asyncio.sleep(0)

    async def _pause(self) -> None:
        """Let the interval pass, unless the last wait leaves; a wait that joins may want a shorter one."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while self._waits:
            self._changed.clear()
            left = began + self._interval() - loop.time()
            if left <= 0:
                return
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                return

    def _interval(self) -> float:
        wanted = min((wait.interval_seconds for wait in self._waits), default=0.0)
        return backoff_seconds(max(wanted, SHORTEST_INTERVAL_SECONDS), self._failures)


def _for_looks(settings: Settings) -> Settings:
    return replace(settings, deadline_seconds=LOOK_SECONDS)


def _tell_failure(words: str) -> None:
    log.warning("A look at the execution history failed and is repeated: %s", words)


# The one piece of module-level state: the pollers of each running event loop, by what they are shared by.
_pollers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Poller]] = WeakKeyDictionary()


def shared_poller(key: str, connect: Connect) -> Poller:
    """Return the running loop's poller of a key, made when there is none.

    :param key: what waits must have in common to share one
    """
    pollers = _pollers.setdefault(asyncio.get_running_loop(), {})
    if key not in pollers:
        pollers[key] = Poller(connect)
    return pollers[key]
