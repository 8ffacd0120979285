"""What operators and sensors have in common when they wait: time limits, deferring, and what a final status means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowTaskTimeout, conf

from techflow_provider.client.errors import ExecutionFailedError, ExecutionTimeoutError, InvalidParameterError
from techflow_provider.client.history import has_status
from techflow_provider.client.models import Execution
from techflow_provider.client.parsing import in_seconds, quote
from techflow_provider.triggers.outcomes import deadline_after, execution_of

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator

    from techflow_provider.client.history import ExecutionSelector

DEFAULT_TIMEOUT = timedelta(days=7)
# The trigger keeps the deadline; Airflow's own bound of a deferral is only the safety net.
DEFERRAL_GRACE = timedelta(minutes=2)


def default_poll_interval() -> float:
    """Return `[techflow] poll_interval` in seconds.

    :raises InvalidParameterError: it isn't a number above 0
    """
    value = float(conf.getfloat("techflow", "poll_interval", fallback=5.0))
    if not value > 0:
        raise InvalidParameterError("[techflow] poll_interval", quote(value), "seconds, above 0")
    return value


def as_timedelta(parameter: str, value: timedelta | float) -> timedelta:
    """Return a time limit or an interval.

    :param value: a timedelta, or seconds
    :raises InvalidParameterError: it is neither, or not above 0
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
        raise InvalidParameterError(parameter, quote(value), "a timedelta or a number of seconds, above 0")
    return timedelta(seconds=seconds)


def shorter(timeout: timedelta, execution_timeout: timedelta | None) -> timedelta:
    """Return the limit of a deferred wait, during which Airflow does not enforce `execution_timeout`."""
    return timeout if execution_timeout is None else min(timeout, execution_timeout)


def defer_until_ended(
    task: BaseOperator,
    conn_id: str,
    selector: ExecutionSelector,
    *,
    poll_interval: float,
    timeout: timedelta,
    success_statuses: Sequence[str] | None = None,
) -> None:
    """Defer a task until an execution has ended or its time is up; it resumes in `execute_complete`.

    :param poll_interval: seconds between two polls
    :param timeout: limit of the wait; the task's `execution_timeout` can end it sooner
    :param success_statuses: the final statuses with which the trigger ends the task itself; None leaves all to the task
    :raises BaseException: Airflow's way to defer a task
    """
    from techflow_provider.triggers.techflow import TechFlowExecutionTrigger

    limit = shorter(timeout, task.execution_timeout)
    trigger = TechFlowExecutionTrigger(
        techflow_conn_id=conn_id,
        execution_id=selector.execution_id or None,
        workflow_id=selector.workflow_id or None,
        started_after=selector.started_after.isoformat() if selector.started_after else None,
        poll_interval=poll_interval,
        deadline=deadline_after(limit),
        success_statuses=None if success_statuses is None else list(success_statuses),
    )
    task.defer(trigger=trigger, method_name="execute_complete", timeout=limit + DEFERRAL_GRACE)


def ended_execution(task: BaseOperator, event: Any, timeout: timedelta) -> Execution:
    """Return the execution that a deferred task has waited for, whatever its final status.

    :param event: the trigger's event
    :param timeout: the task's own limit of the wait
    :raises BaseException: why there is none: the time was up, or there was no point in waiting any longer
    """
    try:
        return execution_of(event)
    except ExecutionTimeoutError as error:
        limit = shorter(timeout, task.execution_timeout)
        if limit < timeout:
            # Airflow doesn't enforce it while a task is deferred.
            passed = f"execution_timeout of {in_seconds(limit.total_seconds())} passed while waiting for"
            raise AirflowTaskTimeout(f"{passed} {error.execution}: {error.last_seen}") from error
        raise replace(error, waited_seconds=timeout.total_seconds()) from error


def check_ended(execution: Execution, allowed_statuses: Sequence[str] = ("completed",)) -> Execution:
    """Return an execution whose final status is a success.

    :param allowed_statuses: the final statuses that are a success (see `has_status`)
    :raises ExecutionFailedError: it has another one
    """
    if has_status(execution, allowed_statuses):
        return execution
    raise ExecutionFailedError(execution.id, execution.workflow_id, execution.status or "", execution.error)
