"""Wait for an execution in the triggerer: fields, and one wait in the poller of the connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent

from techflow_provider.client import Execution, ExecutionTimeoutError, TechFlowError
from techflow_provider.client.history import ExecutionSelector, ExecutionTracker, has_status
from techflow_provider.client.text import get_logger
from techflow_provider.polling.registry import shared_poller
from techflow_provider.triggers.outcomes import FIRST_EVENT_SECONDS, ended_event, event_of, seconds_until, sleep_until
from techflow_provider.triggers.techflow_events import TechFlowEventTrigger

__all__ = ["TechFlowEventTrigger", "TechFlowExecutionTrigger"]

# Not the trigger's own logger, which takes a kilobyte each; the context decides in which log a line ends up.
log: logging.Logger = get_logger(__name__)
FIELDS = (
    *("techflow_conn_id", "execution_id", "workflow_id", "started_after"),
    *("poll_interval", "deadline", "success_statuses"),
)


class TechFlowExecutionTrigger(BaseTrigger):
    """Wait until an execution has ended, or a deadline has passed; it changes nothing in TechFlow.

    >>> trigger = TechFlowExecutionTrigger("techflow_default", execution_id="exec_123")
    >>> self.defer(trigger=trigger, method_name="execute_complete")

    :param techflow_conn_id: connection of the type `techflow`
    :param execution_id: the execution to wait for
    :param workflow_id: its workflow, since ids may count per workflow; without an id, the workflow whose first
        execution since `started_after` is waited for
    :param started_after: ISO 8601, with a time zone
    :param poll_interval: seconds between two polls
    :param deadline: ISO 8601, with a time zone: when to give up; None never
    :param success_statuses: the final statuses with which the trigger itself ends the task as a success, with the
        execution as its result and without starting a worker; None leaves every final status to the task
    :raises InvalidParameterError: neither an execution nor a workflow is given
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
        success_statuses: Sequence[str] | str | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow leaves it unannotated
        instant = datetime.fromisoformat(started_after) if started_after else None
        self.selector: ExecutionSelector = ExecutionSelector(execution_id, workflow_id, instant)
        self.techflow_conn_id = techflow_conn_id
        self.execution_id: str | None = self.selector.execution_id
        self.workflow_id: str | None = self.selector.workflow_id
        self.started_after = started_after
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.success_statuses: Sequence[str] | None = (
            [success_statuses] if isinstance(success_statuses, str) else success_statuses
        )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return all that another triggerer needs to continue."""
        return f"{__name__}.TechFlowExecutionTrigger", {name: getattr(self, name) for name in FIELDS}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event, when the wait is over."""
        # Not in a coroutine of its own, which takes a quarter of a kilobyte per wait.
        began = asyncio.get_running_loop().time()
        tracker = ExecutionTracker(self.selector)
        log.info("Waiting for %s to finish; one poll every %g s serves all waits", self.selector, self.poll_interval)
        try:
            async with asyncio.timeout(seconds_until(self.deadline)):
                poller, tracker.words = await shared_poller(self.techflow_conn_id)
            execution = await poller.wait(tracker, self.poll_interval, seconds_until(self.deadline))
            log.info("Execution %s ended with status %r", execution.id, execution.status)
            event = self._ended(execution)
        except TimeoutError:
            log.info("The deadline passed while waiting for %s: %s", self.selector, tracker.last_seen)
            waited = asyncio.get_running_loop().time() - began
            event = TriggerEvent(event_of(ExecutionTimeoutError(str(self.selector), waited, tracker.last_seen)))  # type: ignore[no-untyped-call]  # as above
        except TechFlowError as error:
            log.info("Stopped waiting for %s: %s", self.selector, error)
            event = TriggerEvent(event_of(error))  # type: ignore[no-untyped-call]  # as above
        await sleep_until(began, FIRST_EVENT_SECONDS)
        yield event

    def _ended(self, execution: Execution) -> TriggerEvent:
        if has_status(execution, self.success_statuses or ()):
            return TaskSuccessEvent(xcoms={"return_value": execution.to_dict()})
        return TriggerEvent(ended_event(execution))  # type: ignore[no-untyped-call]  # as above

    async def on_kill(self) -> None:
        """Log that the execution keeps running: TechFlow documents no call to cancel one."""
        log.warning(
            "The task was ended by a user; %s keeps running in TechFlow, which has no call to cancel it", self.selector
        )
