"""Wait for an execution in the triggerer: fields, and one wait in the poller of the connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent

from techflow_provider.client import TechFlowError
from techflow_provider.client.history import ExecutionSelector, ExecutionTracker
from techflow_provider.deferral import ended_with, seconds_until
from techflow_provider.polling.registry import shared_poller
from techflow_provider.triggers.outcomes import FIRST_EVENT_SECONDS, TimedOut, WaitOutcome
from techflow_provider.triggers.techflow_events import TechFlowEventTrigger

__all__ = ["TechFlowEventTrigger", "TechFlowExecutionTrigger"]

# Not the trigger's own, of which each takes a kilobyte; where a line belongs is told by the context that logs it.
log = logging.getLogger(__name__)


class TechFlowExecutionTrigger(BaseTrigger):
    """Wait until an execution has ended, or a deadline has passed; it changes nothing in TechFlow.

    :param techflow_conn_id: connection of the type `techflow`
    :param execution_id: the execution to wait for
    :param workflow_id: or the workflow whose first execution since `started_after` is waited for
    :param started_after: ISO 8601, with a time zone
    :param poll_interval: seconds between two looks
    :param deadline: ISO 8601, with a time zone: when to give up; None never
    :param success_statuses: the ends with which the trigger itself ends the task as a success, with the execution as
        its result, and no worker is started; None leaves every end to the task
    :raises InvalidParameterError: neither or both of execution and workflow are given
    """

    def __init__(
        self,
        techflow_conn_id: str,
        *,
        execution_id: str | None = None,
        workflow_id: str | None = None,
        started_after: str | None = None,
        poll_interval: float = 5.0,
        deadline: str | None = None,
        success_statuses: Sequence[str] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow leaves it unannotated
        self.techflow_conn_id = techflow_conn_id
        self.execution_id = execution_id
        self.workflow_id = workflow_id
        self.started_after = started_after
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.success_statuses = success_statuses
        self.target = ExecutionSelector(
            execution_id, workflow_id, datetime.fromisoformat(started_after) if started_after else None
        )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return all that another triggerer needs to go on."""
        fields = (
            *("techflow_conn_id", "execution_id", "workflow_id", "started_after"),
            *("poll_interval", "deadline", "success_statuses"),
        )
        path = f"{TechFlowExecutionTrigger.__module__}.{TechFlowExecutionTrigger.__qualname__}"
        return path, {name: getattr(self, name) for name in fields}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event, when the wait is over."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        over = await self._wait()
        await asyncio.sleep(max(0.0, began + FIRST_EVENT_SECONDS - loop.time()))
        yield self._event(over)

    def _event(self, over: WaitOutcome) -> TriggerEvent:
        if over.execution and self.success_statuses and ended_with(over.execution, self.success_statuses):
            return TaskSuccessEvent(xcoms={"return_value": over.execution.to_dict()})
        return TriggerEvent(over.to_event())  # type: ignore[no-untyped-call]  # as above

    async def _wait(self) -> WaitOutcome:
        watch = ExecutionTracker(self.target)
        log.info("Waiting for %s; one look every %g s serves all waits", self.target, self.poll_interval)
        try:
            async with asyncio.timeout(seconds_until(self.deadline)):
                poller = await shared_poller(self.techflow_conn_id)
                execution = await poller.wait(watch, self.poll_interval)
        except TimeoutError:
            log.info("The time to wait for %s is over: %s", self.target, watch.last_seen)
            return WaitOutcome(timed_out=TimedOut(str(self.target), watch.last_seen))
        except TechFlowError as error:
            log.info("Waiting for %s ends: %s", self.target, error)
            return WaitOutcome(error=error)
        log.info("Execution %s ended with status %r", execution.id, execution.status)
        return WaitOutcome(execution=execution)

    async def on_kill(self) -> None:
        """Say that the execution goes on: TechFlow documents no call to cancel one."""
        self.log.warning(
            "The task was ended by a user; %s goes on in TechFlow, which has no call to cancel it", self.target
        )
