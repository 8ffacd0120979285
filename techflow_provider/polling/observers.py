"""Who is handed the readings of the execution history: the interface, and the observer that waits for one execution."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from techflow_provider.client import Execution, TechFlowError
from techflow_provider.client.errors import log_or_raise
from techflow_provider.client.history import ExecutionTracker, History, HistoryFilter

log = logging.getLogger(__name__)

T = TypeVar("T")

# So many observers are served before others of the event loop get their turn.
OBSERVERS_PER_TURN = 500


class Observer(Protocol):
    """Somebody who is handed each reading of the history, one after the other, in the event loop.

    :param interval_seconds: how often it would like a look
    """

    interval_seconds: float

    def add_interest(self, interest: HistoryFilter) -> None:
        """Add what is wanted of the next reading; what nobody adds may be left out of it."""

    def update(self, history: History, now: float) -> bool:
        """Take notice of a reading, and return whether it brought what was waited for.

        :param history: what was of interest, without what is known to be unchanged since the last reading
        :param now: seconds on the event loop's clock
        """

    def miss(self, error: TechFlowError) -> None:
        """Take notice of a look that failed and is repeated."""

    def fail(self, error: TechFlowError) -> None:
        """Learn why there will be no further look."""


@dataclass(eq=False, slots=True)
class ExecutionWaiter:
    """An observer that waits for the end of one execution.

    :param watch: what it knows of its execution
    :param interval_seconds: how often it would like a look
    :param ended: set when the wait is over
    :param context: the trigger's context, so that what is logged for it lands in its own log
    """

    watch: ExecutionTracker
    interval_seconds: float
    ended: asyncio.Future[Execution]
    context: contextvars.Context = field(default_factory=contextvars.copy_context)

    def add_interest(self, interest: HistoryFilter) -> None:
        """Add the execution, unless its status is the one that is known already."""
        interest.add(self.watch.target, self.watch.status)

    def update(self, history: History, now: float) -> bool:
        """Take notice of a reading, and return whether the execution has ended."""
        if self.ended.done():
            return False
        try:
            execution = self.context.run(self.watch.update, history, now)
        except TechFlowError as error:
            self.fail(error)
            return False
        if execution is not None:
            self.ended.set_result(execution)
        return execution is not None

    def miss(self, error: TechFlowError) -> None:
        """Log that a look failed."""
        self.context.run(log_or_raise, error, log.warning)

    def fail(self, error: TechFlowError) -> None:
        """End the wait with the reason why it can't go on."""
        if not self.ended.done():
            self.ended.set_exception(error)


class ObserverSet:
    """The observers of one poller; they join and leave at any time."""

    def __init__(self) -> None:
        self.added = 0
        self._members: set[Observer] = set()
        self._changed = asyncio.Event()

    def __bool__(self) -> bool:
        return bool(self._members)

    @property
    def interval_seconds(self) -> float:
        """The shortest interval that an observer would like; 0 when there is none."""
        return min((member.interval_seconds for member in self._members), default=0.0)

    def add(self, observer: Observer) -> None:
        """Let an observer belong to the crowd."""
        self._members.add(observer)
        self.added += 1
        self._changed.set()

    def remove(self, observer: Observer) -> None:
        """Let an observer go."""
        self._members.discard(observer)
        self._changed.set()

    async def changes_within(self, seconds: float) -> None:
        """Wait until somebody joins or leaves, or the time is over."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    def present(self) -> tuple[Observer, ...]:
        """Return who is there now."""
        return tuple(self._members)

    async def end(self, error: TechFlowError) -> None:
        """Tell everybody why there will be no further look."""
        # Again until nobody is left, since an observer may join while the others are told.
        while self._members:
            await for_each(self.present(), lambda observer: observer.fail(error))


async def for_each(observers: tuple[Observer, ...], act: Callable[[Observer], T]) -> list[T]:
    """Do something with each observer and return what came of it, giving the event loop its turns meanwhile."""
    results: list[T] = []
    for served, observer in enumerate(observers, 1):
        results.append(act(observer))
        if served % OBSERVERS_PER_TURN == 0:
            await asyncio.sleep(0)
    # Those whose wait is over leave before it is asked whether anybody still waits.
    await asyncio.sleep(0)
    return results


async def as_techflow_error(failed: str, work: Awaitable[T]) -> T:
    """Await something and turn whatever it raises into an error that an event can carry.

    :param failed: what has failed then, in words
    :raises TechFlowError: the work raised it, or raised something else
    """
    try:
        return await work
    except TechFlowError:
        raise
    except Exception as error:
        # Airflow raises anything, and a wait must end with the reason.
        raise TechFlowError(f"{failed}: {type(error).__name__}: {error}") from error
