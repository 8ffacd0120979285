"""Wait in the triggerer until a task may send its request; the worker reserves the slot and sends."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from techflow_provider.client.errors import BudgetTimeoutError, TechFlowError
from techflow_provider.client.text import get_logger
from techflow_provider.hooks.budget import open_budget
from techflow_provider.hooks.techflow import TechFlowHook
from techflow_provider.state.budget import Reservation
from techflow_provider.triggers.outcomes import event_of, first_event_delay, seconds_until, sleep_until

log: logging.Logger = get_logger(__name__)


class TechFlowAdmissionTrigger(BaseTrigger):
    """Admit tasks one after another, at the rate of the connection's budget; it sends nothing and reserves nothing.

    >>> self.defer(trigger=TechFlowAdmissionTrigger("techflow_default"), method_name="execute_admitted")

    :param techflow_conn_id: connection of the type `techflow`
    :param deadline: ISO 8601, with a time zone: when to give up; None never
    """

    def __init__(self, techflow_conn_id: str, deadline: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow leaves it unannotated
        self.techflow_conn_id = techflow_conn_id
        self.deadline = deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return all that another triggerer needs to continue."""
        return f"{__name__}.TechFlowAdmissionTrigger", {
            "techflow_conn_id": self.techflow_conn_id,
            "deadline": self.deadline,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event, when the task is admitted or there is no point in waiting any longer."""
        began, delay = asyncio.get_running_loop().time(), first_event_delay()
        try:
            await self._wait()
            payload: dict[str, Any] = {"admitted": True}
        except TechFlowError as error:
            log.info("The task is not admitted: %s", error)
            payload = event_of(error)
        await sleep_until(began, delay)
        yield TriggerEvent(payload)  # type: ignore[no-untyped-call]  # as above

    async def _wait(self) -> None:
        budget = open_budget(await TechFlowHook(self.techflow_conn_id).aget_techflow_connection())
        earlier: Reservation | None = None
        while True:
            seconds = seconds_until(self.deadline)
            left = math.inf if seconds is None else seconds
            # In a thread, since a slow store must not hold up the loop.
            reservation = await asyncio.to_thread(budget.admit, left, earlier)
            if not reservation.granted:
                raise BudgetTimeoutError("POST …/execute", reservation.wait_seconds, left)
            if reservation.may_send:
                return
            if earlier is None:
                log.info("Waiting %.0f s for a slot in the rate budget", reservation.wait_seconds)
            await asyncio.sleep(reservation.wait_seconds)
            earlier = reservation
