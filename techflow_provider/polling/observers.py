"""The observers of a poller: their interface, the set of them, and the one that waits for an execution."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from techflow_provider.client import Execution, TechFlowError
from techflow_provider.client.history import ExecutionTracker, History, HistoryFilter
from techflow_provider.client.text import get_logger

log: logging.Logger = get_logger(__name__)

T = TypeVar("T")

# After so many observers, the other tasks of the event loop get their turn.
OBSERVERS_PER_TURN = 500


class Observer(Protocol):
    """Receives the result of each poll, one after the other, in the event loop.

    :param interval_seconds: the time between two polls that it would like
    """

    interval_seconds: float

    def add_to(self, history_filter: HistoryFilter) -> None:
        """Add what is needed from the next poll; what no observer adds may be missing from it."""

    def update(self, history: History, now: float) -> bool:
        """Read the result of a poll, and return whether it held what was waited for.

        :param history: what was asked for, without what is known to be unchanged since the last poll
        :param now: seconds on the event loop's clock
        """

    def report(self, error: TechFlowError) -> None:
        """Log a poll that failed and will be retried."""

    def fail(self, error: TechFlowError) -> None:
        """End, because there will be no further poll."""


@dataclass(eq=False, slots=True)
class ExecutionWaiter:
    """An observer that waits for the completion of one execution.

    :param tracker: what it knows of its execution
    :param interval_seconds: the time between two polls that it would like
    :param ended: resolved when the wait is over
    :param context: the trigger's context, so that its log lines go to the trigger's own log
    """

    tracker: ExecutionTracker
    interval_seconds: float
    ended: asyncio.Future[Execution]
    context: contextvars.Context = field(default_factory=contextvars.copy_context)

    def add_to(self, history_filter: HistoryFilter) -> None:
        """Add the execution, unless it still has the known status."""
        self.tracker.add_to(history_filter)

    def update(self, history: History, now: float) -> bool:
        """Read the result of a poll, and return whether the execution has ended."""
        if self.ended.done():
            return False
        try:
            execution = self.context.run(self.tracker.update, history, now)
        except TechFlowError as error:
            self.fail(error)
            return False
        if execution is not None:
            self.ended.set_result(execution)
        return execution is not None

    def report(self, error: TechFlowError) -> None:
        """Log a poll that failed and will be retried."""
        self.context.run(log.warning, "Polling the execution history failed and is retried: %s", error)

    def fail(self, error: TechFlowError) -> None:
        """End the wait with its reason."""
        if not self.ended.done():
            self.ended.set_exception(error)


class ObserverSet:
    """The observers of one poller, which come and go at any time."""

    def __init__(self) -> None:
        self.added: int = 0
        self._members: set[Observer] = set()
        self._changed = asyncio.Event()

    def __bool__(self) -> bool:
        return bool(self._members)

    @property
    def interval_seconds(self) -> float:
        """The shortest interval that an observer would like; 0 without observers."""
        return min((member.interval_seconds for member in self._members), default=0.0)

    def add(self, observer: Observer) -> None:
        """Add an observer."""
        self._members.add(observer)
        self.added += 1
        self._changed.set()

    def remove(self, observer: Observer) -> None:
        """Remove an observer."""
        self._members.discard(observer)
        self._changed.set()

    async def wait_for_change(self, seconds: float) -> None:
        """Wait until an observer is added or removed, but no longer than some seconds."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    def present(self) -> tuple[Observer, ...]:
        """Return the observers of this moment."""
        return tuple(self._members)

    async def fail(self, error: TechFlowError) -> None:
        """End and remove every observer, because there will be no further poll."""
        # In a loop, since an observer may be added while the others are ended.
        while self._members:
            present = self.present()
            self._members.clear()
            await for_each(present, lambda observer: observer.fail(error))


async def for_each(observers: tuple[Observer, ...], act: Callable[[Observer], T]) -> list[T]:
    """Call a function with each observer and return the results, without holding up the event loop."""
    results: list[T] = []
    for number, observer in enumerate(observers, 1):
        results.append(act(observer))
        if number % OBSERVERS_PER_TURN == 0:
            await asyncio.sleep(0)
    # Waits that are over remove their observers now, before the poller checks whether any is left.
    await asyncio.sleep(0)
    return results


async def as_techflow_error(failure: str, work: Awaitable[T]) -> T:
    """Await something, and turn whatever it raises into an error that a trigger's event can carry.

    :param failure: a clause that says what failed
    :raises TechFlowError: the work raised it, or raised something else
    """
    try:
        return await work
    except TechFlowError:
        raise
    except Exception as error:
        # Airflow may raise anything, and a wait must end with the reason.
        raise TechFlowError(f"{failure}: {type(error).__name__}: {error}") from error
