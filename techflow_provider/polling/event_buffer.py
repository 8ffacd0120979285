"""An observer that keeps readings for an event trigger until it has written down what is new in them."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
from dataclasses import dataclass, field

from techflow_provider.client import TechFlowError
from techflow_provider.client.history import History, HistoryFilter
from techflow_provider.polling.cursor_store import CursorStore
from techflow_provider.polling.event_cursor import EventCursor
from techflow_provider.polling.events import EventFilter

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class EventBuffer:
    """What the looks of a poller have shown since the last time it was emptied.

    :param subject: the events that are wanted
    :param interval_seconds: how often a look is wanted
    :param journal: what is known already
    :param owner: the name of the trigger
    """

    subject: EventFilter
    interval_seconds: float
    journal: CursorStore
    owner: str
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    _kept: list[History] = field(default_factory=list)
    _error: TechFlowError | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def add_interest(self, interest: HistoryFilter) -> None:
        """Want to see what can tell of the events."""
        if self.subject.about_workflows:
            interest.add_list_of_workflows()
        if not self.subject.about_executions:
            return
        if self.subject.workflow_id is None:
            interest.add_everything()
        else:
            interest.add_workflow(self.subject.workflow_id)

    def update(self, history: History, now: float) -> bool:  # noqa: ARG002  # the interface of an observer
        """Keep a reading if it is worth writing down, and return whether it brought an event that is wanted."""
        before = self.journal.cursor
        after = self._seen(before, history)
        if after != before:
            # The state may be away for long; what a reading omits as unchanged is in one of those before.
            self._kept.append(history)
            self._changed.set()
        return after.count > before.count

    def _seen(self, lookout: EventCursor, history: History) -> EventCursor:
        if self.subject.about_executions:
            lookout = lookout.see_executions(self.subject, history, self.owner)
        if history.workflows is not None and self.subject.about_workflows:
            lookout = lookout.see_workflows(self.subject, history.workflows, self.owner)
        return lookout

    def miss(self, error: TechFlowError) -> None:
        """Log that a look failed."""
        self.context.run(log.warning, "A look for TechFlow's events failed and is repeated: %s", error)

    def fail(self, error: TechFlowError) -> None:
        """Keep the reason why there will be no further look."""
        self._error = error
        self._changed.set()

    async def changes_within(self, seconds: float) -> None:
        """Wait until there is something new, or the time is over.

        :raises TechFlowError: there will be no further look
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)
        self._changed.clear()
        if self._error is not None:
            raise self._error

    async def empty_into_journal(self) -> None:
        """Write down what is new."""
        readings = tuple(self._kept)
        await self.journal.change(lambda lookout: functools.reduce(self._seen, readings, lookout))
        del self._kept[: len(readings)]
