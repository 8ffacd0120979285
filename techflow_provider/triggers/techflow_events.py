"""Tell Airflow 3 of TechFlow's events, so that it schedules DAGs on them: fields, and a place in the shared poller."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from airflow.triggers.base import TriggerEvent

from techflow_provider.client import TechFlowError
from techflow_provider.client.news import Subject
from techflow_provider.compat import event_trigger_base
from techflow_provider.hooks.budget import open_lookouts
from techflow_provider.hooks.techflow import TechFlowHook
from techflow_provider.triggers.journal import RENEW_SECONDS, Journal
from techflow_provider.triggers.lookout import Telling
from techflow_provider.triggers.mailbox import Mailbox
from techflow_provider.triggers.observers import in_words
from techflow_provider.triggers.sharing import shared_poller

if TYPE_CHECKING:
    from airflow.triggers.base import BaseEventTrigger
else:
    BaseEventTrigger = event_trigger_base()

# A triggerer hands events over about once a second; so long after it was told, one is in Airflow's database.
CONFIRM_SECONDS = 5.0
# A trigger that has not written for so long, with events untold, is gone.
TAKEOVER_SECONDS = 10.0
# After what ends every wait, such as a refused key, watching begins anew: somebody may have corrected it.
RETRY_SECONDS = 60.0


class TechFlowEventTrigger(BaseEventTrigger):
    """Tell of events in TechFlow, each once; it changes nothing there.

    The API is read, and what it lists compared with the last look, which is kept in the shared state: an event that
    happens while no triggerer runs is told later. One that was told less than five seconds before a triggerer was
    killed is told again, since Airflow may not have kept it. For another account use another connection: to this one,
    all that is there would be new.

    :param techflow_conn_id: connection of the type `techflow`
    :param events: one of the six documented names, or several (Webhook Events)
    :param workflow_id: the only workflow whose events count
    :param poll_interval: seconds between two looks while no webhook arrives
    :param spacing: seconds between two events
    :raises InvalidParameterError: an event is not documented
    """

    def __init__(
        self,
        techflow_conn_id: str,
        *,
        events: str | Iterable[str],
        workflow_id: str | None = None,
        poll_interval: float = 15.0,
        spacing: float = 5.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow leaves it unannotated
        self.techflow_conn_id = techflow_conn_id
        self.subject = Subject.of(events, workflow_id)
        self.poll_interval = poll_interval
        self.spacing = spacing

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return all that another triggerer needs to go on."""
        path = f"{TechFlowEventTrigger.__module__}.{TechFlowEventTrigger.__qualname__}"
        return path, {
            "techflow_conn_id": self.techflow_conn_id,
            "events": list(self.subject.events),
            "workflow_id": self.subject.workflow_id,
            "poll_interval": self.poll_interval,
            "spacing": self.spacing,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield an event's payload for each event, for as long as it is run."""
        while True:
            try:
                async for event in self._watch():
                    yield event
            except TechFlowError as error:
                self.log.error("Watching for events begins anew in %g s: %s", RETRY_SECONDS, error)  # noqa: TRY400  # no bug
            await asyncio.sleep(RETRY_SECONDS)

    async def _watch(self) -> AsyncIterator[TriggerEvent]:
        loop = asyncio.get_running_loop()
        telling = Telling(uuid4().hex, self.spacing, CONFIRM_SECONDS)
        look_up = TechFlowHook(self.techflow_conn_id).aget_techflow_connection()
        connection = await in_words(f"the connection {self.techflow_conn_id!r} could not be read", look_up)
        journal = Journal(open_lookouts(connection), self._name())
        await journal.open()
        mailbox = Mailbox(self.subject, self.poll_interval, journal, telling.owner)
        poller = await shared_poller(self.techflow_conn_id)
        with poller.observed_by(mailbox):
            while True:
                await self._write_down(mailbox, telling)
                pending = telling.next(journal.lookout, loop.time())
                if pending is not None:
                    yield TriggerEvent(pending.payload)  # type: ignore[no-untyped-call]  # Airflow leaves it unannotated
                    continue
                await mailbox.changes_within(_seconds_until_due(journal, telling))

    async def _write_down(self, mailbox: Mailbox, telling: Telling) -> None:
        journal = mailbox.journal
        await mailbox.empty_into_journal()
        arrived = telling.arrived(asyncio.get_running_loop().time())
        await journal.change(lambda lookout: lookout.without(arrived))
        telling.forget(arrived)
        if journal.lookout.has_strangers(telling.owner) and journal.left_alone_seconds >= TAKEOVER_SECONDS:
            await journal.take_over(telling.owner)

    def _name(self) -> str:
        # Whatever tells two triggers apart in Airflow tells them apart here, or they would share the events.
        return json.dumps(self.serialize()[1], sort_keys=True)


def _seconds_until_due(journal: Journal, telling: Telling) -> float:
    due = telling.due(journal.lookout) - asyncio.get_running_loop().time()
    if journal.lookout.has_strangers(telling.owner):
        due = min(due, TAKEOVER_SECONDS - journal.left_alone_seconds)
    return max(0.0, min(due, RENEW_SECONDS))
