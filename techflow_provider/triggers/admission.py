"""Wait in the triggerer until a request has a chance: the slot is taken, and the request sent, by a worker."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from techflow_provider.client.errors import BudgetTimeoutError, TechFlowError
from techflow_provider.deferral import ADMISSION_SECONDS, seconds_until
from techflow_provider.hooks.budget import open_budget
from techflow_provider.hooks.techflow import TechFlowHook
from techflow_provider.state.budget import Reservation
from techflow_provider.triggers.outcomes import admitted_event


class TechFlowAdmissionTrigger(BaseTrigger):
    """Let tasks in one after another, at the rate of the connection's budget; it sends nothing and takes no slot.

    :param techflow_conn_id: connection of the type `techflow`
    :param deadline: ISO 8601, with a time zone: when to give up; None never
    """

    def __init__(self, techflow_conn_id: str, deadline: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow leaves it unannotated
        self.techflow_conn_id = techflow_conn_id
        self.deadline = deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return all that another triggerer needs to go on."""
        path = f"{TechFlowAdmissionTrigger.__module__}.{TechFlowAdmissionTrigger.__qualname__}"
        return path, {"techflow_conn_id": self.techflow_conn_id, "deadline": self.deadline}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event, when the task may go on or when that makes no sense any more."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await self._wait()
            payload = admitted_event()
        except TechFlowError as error:
            self.log.info("Waiting for the rate budget ends: %s", error)
            payload = admitted_event(error)
        # Whoever is here would have waited so long in a worker, and an event right after the deferral can overtake the
        # scheduler's own note of it, which then fails the task.
        await asyncio.sleep(max(0.0, began + ADMISSION_SECONDS - loop.time()))
        yield TriggerEvent(payload)  # type: ignore[no-untyped-call]  # as above

    async def _wait(self) -> None:
        budget = open_budget(await TechFlowHook(self.techflow_conn_id).aget_techflow_connection())
        earlier: Reservation | None = None
        while True:
            bound = seconds_until(self.deadline)
            left = math.inf if bound is None else bound
            # The store may take its time, and must not hold up the loop meanwhile.
            reservation = await asyncio.to_thread(budget.admit, left, earlier)
            if not reservation.granted:
                raise BudgetTimeoutError("POST …/execute", reservation.wait_seconds, left)
            if reservation.may_send:
                return
            if earlier is None:
                self.log.info("Waiting %.0f s for a slot in the rate budget", reservation.wait_seconds)
            await asyncio.sleep(reservation.wait_seconds)
            earlier = reservation
