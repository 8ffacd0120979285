"""The observers of a poller: their interface, the set of them, and the one that waits for an execution."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections import Counter
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

    @property
    def execution_id(self) -> str | None:
        """The execution that it waits for, when it is known by its id."""
        return self.tracker.selector.execution_id

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

    def time_out(self) -> None:
        """End the wait, because its time is up."""
        if not self.ended.done():
            self.ended.set_exception(TimeoutError())


class ObserverSet:
    """The observers of one poller, which come and go at any time; waits are found by their executions."""

    def __init__(self) -> None:
        self.added: int = 0
        # Most executions have one wait, and a tuple would take 48 bytes of each.
        self._waiters: dict[str, ExecutionWaiter | tuple[ExecutionWaiter, ...]] = {}
        # With which status each execution isn't needed, and the waits that have to learn what isn't listed.
        self._known: dict[str, str | None] = {}
        self._unseen: set[ExecutionWaiter] = set()
        self._others: set[Observer] = set()
        self._intervals: Counter[float] = Counter()
        self._changed = asyncio.Event()

    def __bool__(self) -> bool:
        return bool(self._waiters or self._others)

    @property
    def interval_seconds(self) -> float:
        """The shortest interval that an observer would like; 0 without observers."""
        return min(self._intervals, default=0.0)

    def add(self, observer: Observer) -> None:
        """Add an observer."""
        if isinstance(observer, ExecutionWaiter) and observer.execution_id:
            others = self._waiters_of(observer.execution_id)
            self._waiters[observer.execution_id] = (*others, observer) if others else observer
            self._unseen.add(observer)
            self._known[observer.execution_id] = None
        else:
            self._others.add(observer)
        self._intervals[observer.interval_seconds] += 1
        self.added += 1
        self._changed.set()

    def remove(self, observer: Observer) -> None:
        """Remove an observer, if it hasn't been removed yet."""
        if isinstance(observer, ExecutionWaiter) and observer.execution_id:
            waiters = self._waiters_of(observer.execution_id)
            is_present, others = observer in waiters, tuple(each for each in waiters if each is not observer)
            self._waiters[observer.execution_id] = others
            if not others:
                del self._waiters[observer.execution_id]
                self._known.pop(observer.execution_id, None)
            self._unseen.discard(observer)
        else:
            is_present = observer in self._others
            self._others.discard(observer)
        self._intervals -= Counter({observer.interval_seconds: int(is_present)})
        self._changed.set()

    def _waiters_of(self, execution_id: str) -> tuple[ExecutionWaiter, ...]:
        found = self._waiters.get(execution_id, ())
        return found if isinstance(found, tuple) else (found,)

    async def wait_for_change(self, seconds: float) -> None:
        """Wait until an observer is added or removed, but no longer than some seconds."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    def history_filter(self) -> HistoryFilter:
        """Return what all observers together need from a poll."""
        # It isn't copied, so that a wait that begins during a poll costs nothing.
        history_filter = HistoryFilter(known_statuses=self._known)
        if self._others:
            history_filter.known_statuses = dict(self._known)
            for observer in tuple(self._others):
                observer.add_to(history_filter)
        return history_filter

    async def update(self, history: History, now: float) -> bool:
        """Hand the result of a poll to those that it concerns, and return whether one of them waited for it."""
        ids = [*(execution.id for execution in history), *history.unlisted]
        concerned = {waiter: None for each in ids for waiter in self._waiters_of(each)}
        observers = tuple(concerned | dict.fromkeys(self._unseen)) + tuple(self._others)
        found = await for_each(observers, lambda observer: observer.update(history, now))
        for waiter in observers:
            if isinstance(waiter, ExecutionWaiter) and waiter.execution_id in self._known:
                self._record(waiter.execution_id, waiter)
        # A set keeps the memory of what it held.
        self._unseen = set(self._unseen)
        return any(found)

    def _record(self, execution_id: str, waiter: ExecutionWaiter) -> None:
        known = {each.tracker.known_status for each in self._waiters_of(execution_id)}
        self._known[execution_id] = known.pop() if len(known) == 1 else None
        (self._unseen.add if waiter.tracker.known_status is None else self._unseen.discard)(waiter)

    def present(self) -> tuple[Observer, ...]:
        """Return the observers of this moment."""
        return (*(waiter for each in self._waiters for waiter in self._waiters_of(each)), *self._others)

    async def fail(self, error: TechFlowError) -> None:
        """End and remove every observer, because there will be no further poll."""
        # In a loop, since an observer may be added while the others are ended.
        while self:
            present = self.present()
            for observer in present:
                self.remove(observer)
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
