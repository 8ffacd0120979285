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
from techflow_provider.polling.poller import Poller
from techflow_provider.polling.registry import shared_poller
from techflow_provider.triggers.outcomes import ended_event, event_of, first_event_delay, seconds_until, sleep_until
from techflow_provider.triggers.techflow_events import TechFlowEventTrigger

__all__ = ["TechFlowEventTrigger", "TechFlowExecutionTrigger"]

# Not the trigger's own logger, which takes a kilobyte each; the context decides in which log a line ends up.
log: logging.Logger = get_logger(__name__)
FIELDS = (
    *("techflow_conn_id", "execution_id", "execution_ids", "workflow_id", "started_after", "latest_active"),
    *("poll_interval", "deadline", "success_statuses", "allowed_statuses"),
)


class TechFlowExecutionTrigger(BaseTrigger):
    """Wait until executions have ended, or a deadline has passed; it changes nothing in TechFlow.

    >>> trigger = TechFlowExecutionTrigger("techflow_default", execution_id="exec_123")
    >>> self.defer(trigger=trigger, method_name="execute_complete")

    :param techflow_conn_id: connection of the type `techflow`
    :param execution_id: the execution to wait for
    :param execution_ids: several to wait for
    :param workflow_id: its workflow, since ids may count per workflow; without an id, the workflow whose first
        execution since `started_after` is waited for
    :param started_after: ISO 8601, with a time zone
    :param latest_active: whether the workflow's latest execution that was running at that time comes first
    :param poll_interval: seconds between two polls
    :param deadline: ISO 8601, with a time zone: when to give up; None never
    :param success_statuses: the final statuses with which the trigger itself ends the task as a success, with the
        execution as its result and without starting a worker; None leaves every final status to the task
    :param allowed_statuses: with `execution_ids`, the final statuses of one with which the others are still waited for;
        None waits for all
    :raises InvalidParameterError: neither an execution nor a workflow is given
    """

    def __init__(
        self,
        techflow_conn_id: str,
        *,
        execution_id: str | None = None,
        execution_ids: Sequence[str] | None = None,
        workflow_id: str | None = None,
        started_after: str | None = None,
        latest_active: bool = False,
        poll_interval: float = 5.0,
        deadline: str | None = None,
        success_statuses: Sequence[str] | str | None = None,
        allowed_statuses: Sequence[str] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow leaves it unannotated
        self.techflow_conn_id = techflow_conn_id
        self.execution_id: str | None = execution_id
        self.execution_ids = execution_ids
        self.workflow_id: str | None = workflow_id
        self.started_after = started_after
        self.latest_active = latest_active
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.allowed_statuses = allowed_statuses
        self.success_statuses: Sequence[str] | None = (
            [success_statuses] if isinstance(success_statuses, str) else success_statuses
        )
        self._trackers()

    def _trackers(self) -> tuple[ExecutionTracker, ...]:
        # Not an attribute, which takes memory in each wait.
        instant = datetime.fromisoformat(self.started_after) if self.started_after else None
        ids = self.execution_ids or (self.execution_id,)
        selectors = (ExecutionSelector(each, self.workflow_id, instant, self.latest_active) for each in ids)
        return tuple(map(ExecutionTracker, selectors))

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return all that another triggerer needs to continue."""
        return f"{__name__}.TechFlowExecutionTrigger", {name: getattr(self, name) for name in FIELDS}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event, when the wait is over."""
        # What this keeps while it waits is kept by each wait: so few variables, and no coroutine of its own for a part.
        began, trackers = asyncio.get_running_loop().time(), list(self._trackers())
        # Read again at the end, and here so that a mistake in it shows at once.
        first_event_delay()
        log.info("Waiting for %s to finish; one poll every %g s serves all waits", _names(trackers), self.poll_interval)
        try:
            async with asyncio.timeout(seconds_until(self.deadline)):
                poller = await self._poller(trackers)
            if self.execution_ids is None:
                event = self._ended(await poller.wait(trackers[0], self.poll_interval, seconds_until(self.deadline)))
            else:
                event = await self._wait_for_all(poller, trackers)
        except TimeoutError:
            event = _timed_out(trackers, asyncio.get_running_loop().time() - began)
        except TechFlowError as error:
            log.info("Stopped waiting for %s: %s", _names(trackers), error)
            event = TriggerEvent(event_of(error))  # type: ignore[no-untyped-call]  # as above
        await sleep_until(began, first_event_delay())
        yield event

    async def _poller(self, trackers: Sequence[ExecutionTracker]) -> Poller:
        """Return the connection's poller, and let trackers read status words as the connection says."""
        poller, words = await shared_poller(self.techflow_conn_id)
        for tracker in trackers:
            tracker.words = words
        return poller

    async def _wait_for_all(self, poller: Poller, trackers: list[ExecutionTracker]) -> TriggerEvent:
        """Return the event with the executions that have ended: all, or those up to one with a status not allowed.

        :param trackers: of them all; those that have ended are removed
        """
        ended: list[Execution] = []
        left = seconds_until(self.deadline)
        waits = [asyncio.ensure_future(poller.wait(each, self.poll_interval, left)) for each in trackers]
        try:
            for wait in asyncio.as_completed(waits):
                execution = await wait
                log.info("Execution %s ended with status %r", execution.id, execution.status)
                ended.append(execution)
                trackers[:] = [each for each in trackers if each.selector.execution_id != execution.id]
                if self.allowed_statuses is not None and not has_status(execution, self.allowed_statuses):
                    break
        finally:
            for each in waits:
                each.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        return TriggerEvent({"executions": [ended_event(each) for each in ended]})  # type: ignore[no-untyped-call]  # as above

    def _ended(self, execution: Execution) -> TriggerEvent:
        log.info("Execution %s ended with status %r", execution.id, execution.status)
        if has_status(execution, self.success_statuses or ()):
            return TaskSuccessEvent(xcoms={"return_value": execution.to_dict()})
        return TriggerEvent(ended_event(execution))  # type: ignore[no-untyped-call]  # as above

    async def on_kill(self) -> None:
        """Log that the executions keep running: TechFlow documents no call to cancel one."""
        names = _names(self._trackers())
        log.warning("The task was ended by a user; %s keeps running in TechFlow, which has no call to cancel it", names)


def _timed_out(trackers: Sequence[ExecutionTracker], waited_seconds: float) -> TriggerEvent:
    left, seen = _names(trackers), trackers[0].last_seen
    log.info("The deadline passed while waiting for %s: %s", left, seen)
    return TriggerEvent(event_of(ExecutionTimeoutError(left, waited_seconds, seen)))  # type: ignore[no-untyped-call]  # as above


def _names(trackers: Sequence[ExecutionTracker]) -> str:
    return ", ".join(str(each.selector) for each in trackers)
