"""Tell Airflow 3 of TechFlow's events, so that it schedules DAGs on them: fields, and a place in the shared poller."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import TriggerEvent

from techflow_provider.client.errors import TechFlowError
from techflow_provider.compat import event_trigger_base
from techflow_provider.polling.events import EventFilter

if TYPE_CHECKING:
    from airflow.triggers.base import BaseEventTrigger
else:
    BaseEventTrigger = event_trigger_base()

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
        self.subject = EventFilter.of(events, workflow_id)
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
        # The DAG's file, which is parsed again and again, needs nothing of this.
        from techflow_provider.polling.event_stream import Rhythm, watch

        rhythm = Rhythm(self.poll_interval, self.spacing)
        while True:
            try:
                async for payload in watch(self.techflow_conn_id, self.subject, self._name(), rhythm):
                    yield TriggerEvent(payload)  # type: ignore[no-untyped-call]  # as above
            except TechFlowError as error:
                self.log.error("Watching for events begins anew in %g s: %s", RETRY_SECONDS, error)  # noqa: TRY400  # no bug
            await asyncio.sleep(RETRY_SECONDS)

    def _name(self) -> str:
        # Whatever tells two triggers apart in Airflow tells them apart here, or they would share the events.
        return json.dumps(self.serialize()[1], sort_keys=True)
