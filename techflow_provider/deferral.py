"""What operators and sensors have in common when they wait: how long, how to defer, and what an end means to a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowTaskTimeout, conf

from techflow_provider.client.errors import ExecutionFailedError, InvalidParameterError
from techflow_provider.client.models import Execution, status_word
from techflow_provider.client.parsing import in_seconds, quote

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator

    from techflow_provider.client.history import ExecutionSelector

DEFAULT_TIMEOUT = timedelta(days=7)
# A worker slot is no waiting room: a deferrable task that would wait longer than this for the rate budget defers.
ADMISSION_SECONDS = 5.0
# The trigger keeps the time itself; Airflow's own bound on a deferral is the net below it.
DEFERRAL_GRACE = timedelta(minutes=2)


def default_poll_interval() -> float:
    """Return `[techflow] poll_interval` in seconds.

    :raises InvalidParameterError: it is no number above 0
    """
    value = float(conf.getfloat("techflow", "poll_interval", fallback=5.0))
    if not value > 0:
        raise InvalidParameterError("[techflow] poll_interval", quote(value), "seconds, above 0")
    return value


def as_timedelta(parameter: str, value: timedelta | float) -> timedelta:
    """Return a time to wait.

    :param value: a timedelta, or seconds
    :raises InvalidParameterError: it is neither, or not above 0
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
        raise InvalidParameterError(parameter, quote(value), "a timedelta or a number of seconds, above 0")
    return timedelta(seconds=seconds)


def shorter(timeout: timedelta, execution_timeout: timedelta | None) -> timedelta:
    """Return the time that ends a deferred wait, during which Airflow does not enforce `execution_timeout`."""
    return timeout if execution_timeout is None else min(timeout, execution_timeout)


def deadline_after(seconds: timedelta) -> str:
    """Return the instant some time from now in ISO 8601, as a trigger takes it."""
    return (datetime.now(UTC) + seconds).isoformat()


def seconds_until(deadline: str | None) -> float | None:
    """Return the time until a trigger's deadline, 0 when it has passed, and None when there is none."""
    if deadline is None:
        return None
    return max(0.0, (datetime.fromisoformat(deadline) - datetime.now(UTC)).total_seconds())


def defer_until_ended(
    task: BaseOperator,
    conn_id: str,
    target: ExecutionSelector,
    *,
    poll_interval: float,
    timeout: timedelta,
    success_statuses: Sequence[str] | None = None,
) -> None:
    """Defer a task until an execution has ended or the time for it is over; it resumes in `execute_complete`.

    :param poll_interval: seconds between two looks
    :param timeout: when the wait ends at the latest; the task's `execution_timeout` can end it sooner
    :param success_statuses: the ends with which the trigger ends the task itself; None leaves all to the task
    :raises BaseException: Airflow's way to defer a task
    """
    from techflow_provider.triggers.techflow import TechFlowExecutionTrigger

    bound = shorter(timeout, task.execution_timeout)
    trigger = TechFlowExecutionTrigger(
        techflow_conn_id=conn_id,
        execution_id=target.execution_id or None,
        workflow_id=target.workflow_id or None,
        started_after=target.started_after.isoformat() if target.started_after else None,
        poll_interval=poll_interval,
        deadline=deadline_after(bound),
        success_statuses=None if success_statuses is None else list(success_statuses),
    )
    task.defer(trigger=trigger, method_name="execute_complete", timeout=bound + DEFERRAL_GRACE)


def ended_execution(
    task: BaseOperator, event: Any, timeout: timedelta, timeout_error: Callable[[str, timedelta, str], BaseException]
) -> Execution:
    """Return the execution that a deferred task has waited for, whichever way it ended.

    :param event: what the trigger tells
    :param timeout: the task's own bound of the wait
    :param timeout_error: makes the error of that bound, from what was waited for, the bound, and what was seen last
    :raises BaseException: why there is none: the time was over, or waiting made no sense any more
    """
    from techflow_provider.triggers.outcomes import WaitOutcome

    over = WaitOutcome.from_event(event)
    if over.error is not None:
        raise over.error
    if over.timed_out is None:
        return over.ended
    waited = shorter(timeout, task.execution_timeout)
    if waited < timeout:
        # Airflow does not enforce it while a task is deferred.
        words = f"execution_timeout of {in_seconds(waited.total_seconds())} passed while waiting for"
        raise AirflowTaskTimeout(f"{words} {over.timed_out.wanted}: {over.timed_out.last_seen}")
    raise timeout_error(over.timed_out.wanted, timeout, over.timed_out.last_seen)


def ended_with(execution: Execution, statuses: Sequence[str]) -> bool:
    """Whether an execution has one of some statuses: states (`completed`, `failed`) or the server's own words."""
    words = {status_word(word) for word in statuses}
    return bool(words & {execution.state.value, status_word(execution.status or "")})


def check_ended(execution: Execution, allowed_statuses: Sequence[str] = ("completed",)) -> Execution:
    """Return an execution that ended as it should.

    :param allowed_statuses: the ends that are a success (see `ended_with`)
    :raises ExecutionFailedError: it ended otherwise
    """
    if ended_with(execution, allowed_statuses):
        return execution
    raise ExecutionFailedError(execution.id, execution.workflow_id, execution.status or "", execution.error)
