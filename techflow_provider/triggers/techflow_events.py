"""Report TechFlow's events to Airflow 3, which schedules DAGs on them: fields, and one stream of the shared poller."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import TriggerEvent

from techflow_provider.client.errors import TechFlowError
from techflow_provider.client.text import get_logger
from techflow_provider.compat import event_trigger_base
from techflow_provider.polling.events import EventFilter

if TYPE_CHECKING:
    from airflow.triggers.base import BaseEventTrigger

    from techflow_provider.client.parsing import Json
else:
    BaseEventTrigger = event_trigger_base()

log: logging.Logger = get_logger(__name__)

# Time until the stream is opened again after an error such as a refused key, which somebody may have corrected.
RETRY_SECONDS = 60.0


class TechFlowEventTrigger(BaseEventTrigger):
    """Emit TechFlow's events, each once; it changes nothing there.

    The API is polled, and what it lists is compared with the last poll, which is kept in the shared state: an event
    that happens while no triggerer runs is emitted later. One that was emitted less than five seconds before a
    triggerer was killed is emitted again, since Airflow may not have stored it. For another account use another
    connection: to this one, all that is there would be new.

    >>> AssetWatcher(name="techflow", trigger=TechFlowEventTrigger("techflow_default", events="execution.completed"))

    :param techflow_conn_id: connection of the type `techflow`
    :param events: one of the six documented names, or several (Webhook Events)
    :param workflow_id: the only workflow whose events count
    :param poll_interval: seconds between two polls while no webhook arrives
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
        self.event_filter: EventFilter = EventFilter.of(events, workflow_id)
        self.poll_interval = poll_interval
        self.spacing = spacing

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return all that another triggerer needs to continue."""
        return f"{__name__}.TechFlowEventTrigger", {
            "techflow_conn_id": self.techflow_conn_id,
            "events": list(self.event_filter.events),
            "workflow_id": self.event_filter.workflow_id,
            "poll_interval": self.poll_interval,
            "spacing": self.spacing,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield the payload of each event, until the trigger is cancelled."""
        while True:
            try:
                async for payload in await self._events():
                    yield TriggerEvent(payload)  # type: ignore[no-untyped-call]  # as above
            except TechFlowError as error:
                log.error("The event stream stopped and will be retried in %g s: %s", RETRY_SECONDS, error)  # noqa: TRY400  # no bug
            await asyncio.sleep(RETRY_SECONDS)

    async def _events(self) -> AsyncIterator[Json]:
        # Not needed by a DAG file, which is parsed again and again.
        from techflow_provider.hooks.budget import open_cursors
        from techflow_provider.hooks.techflow import TechFlowHook
        from techflow_provider.polling.event_stream import EventStream
        from techflow_provider.polling.observers import as_techflow_error
        from techflow_provider.polling.registry import shared_poller

        look_up = TechFlowHook(self.techflow_conn_id).aget_techflow_connection()
        connection = await as_techflow_error(f"the connection {self.techflow_conn_id!r} could not be read", look_up)
        # Whatever distinguishes two triggers in Airflow must distinguish their cursors, or they would share the events.
        name = json.dumps(self.serialize()[1], sort_keys=True)
        stream = EventStream(self.event_filter, open_cursors(connection), name, self.poll_interval, self.spacing)
        return stream.events(partial(shared_poller, self.techflow_conn_id))
