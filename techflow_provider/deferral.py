"""What operators and sensors have in common when they wait: time limits, deferring, and what a final status means."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import AirflowTaskTimeout, conf, get_current_context

from techflow_provider.client.errors import ExecutionFailedError, ExecutionTimeoutError, InvalidParameterError
from techflow_provider.client.history import has_status
from techflow_provider.client.models import Execution
from techflow_provider.client.parsing import in_seconds, quote, shorten
from techflow_provider.client.text import get_logger
from techflow_provider.compat import has_api_server, resumes_retries
from techflow_provider.triggers.outcomes import deadline_after, executions_of

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context

    from techflow_provider.client.history import ExecutionSelector
    from techflow_provider.client.settings import Settings
else:
    BaseOperator = object

log: logging.Logger = get_logger(__name__)

DEFAULT_TIMEOUT = timedelta(days=7)
# Dates further ahead can't be represented.
LONGEST = timedelta(days=366_000)
# How many characters are kept of what TechFlow says about a failure.
LONGEST_REASON = 1000
# The trigger keeps the deadline; Airflow's own bound of a deferral is only the safety net.
DEFERRAL_GRACE = timedelta(minutes=2)
ATTEMPT = "techflow_attempt"


class Deferring(BaseOperator):
    """A task whose retry begins anew, although Airflow 3.0 resumes it with the event of the attempt that failed."""

    def defer(self, *, kwargs: dict[str, Any] | None = None, **options: Any) -> NoReturn:
        """Defer the task, on Airflow 3.0 with the number of the attempt."""
        if resumes_retries():
            kwargs = {**(kwargs or {}), ATTEMPT: get_current_context()["ti"].try_number}
        super().defer(kwargs=kwargs, **options)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume the attempt that was deferred, and begin any other one."""
        attempt = (next_kwargs or {}).pop(ATTEMPT, None)
        if attempt in (None, context["ti"].try_number):
            return super().resume_execution(next_method, next_kwargs, context)
        log.info("Airflow resumes this attempt with the outcome of attempt %s; it begins anew", attempt)
        return self.execute(context)


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
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0 < seconds <= LONGEST.total_seconds():
        raise InvalidParameterError(parameter, quote(value), "a timedelta or a number of seconds, above 0")
    return timedelta(seconds=seconds)


def log_wait(
    selectors: object, interval_seconds: float, timeout: timedelta, url: str | None, *, in_triggerer: bool
) -> None:
    """Log what a wait is for, where to look for it, and when it ends."""
    log.info(
        "Waiting in the %s for %s, with a poll every %g s, for up to %s; see %s",
        *("triggerer" if in_triggerer else "worker", selectors, interval_seconds),
        str(timeout).removesuffix(", 0:00:00"),
        url or "the execution history in TechFlow",
    )


def shorter(timeout: timedelta, execution_timeout: timedelta | None) -> timedelta:
    """Return the limit of a deferred wait, during which Airflow does not enforce `execution_timeout`."""
    return timeout if execution_timeout is None else min(timeout, execution_timeout)


def defer_until_ended(
    task: BaseOperator,
    conn_id: str,
    *selectors: ExecutionSelector,
    poll_interval: float,
    timeout: timedelta,
    success_statuses: Sequence[str] | None = None,
    allowed_statuses: Sequence[str] | None = None,
) -> None:
    """Defer a task until its executions have ended or its time is up; it resumes in `execute_complete`.

    :param poll_interval: seconds between two polls
    :param timeout: limit of the wait; the task's `execution_timeout` can end it sooner
    :param success_statuses: the final statuses with which the trigger ends the task itself; None leaves all to the task
    :param allowed_statuses: the final statuses of one of several with which the others are still waited for; None
        waits for all of them
    :raises BaseException: Airflow's way to defer a task
    """
    from techflow_provider.triggers.techflow import TechFlowExecutionTrigger

    limit = shorter(timeout, task.execution_timeout)
    selector, *others = selectors
    trigger = TechFlowExecutionTrigger(
        techflow_conn_id=conn_id,
        execution_id=None if others else selector.execution_id,
        execution_ids=[each.execution_id or "" for each in selectors] if others else None,
        workflow_id=selector.workflow_id or None,
        started_after=selector.started_after.isoformat() if selector.started_after else None,
        latest_active=selector.latest_active,
        poll_interval=poll_interval,
        deadline=deadline_after(limit),
        success_statuses=None if success_statuses is None else list(success_statuses),
        allowed_statuses=None if allowed_statuses is None else list(allowed_statuses),
    )
    if has_api_server() and not task.retries:
        log.info(
            "If Airflow fails this task when it resumes ('state mismatch' in the audit log), mark it as success once"
            " its execution has completed: cleared, it would start another. With retries, it continues by itself"
        )
    task.defer(trigger=trigger, method_name="execute_complete", timeout=limit + DEFERRAL_GRACE)


def ended_executions(task: BaseOperator, event: Any, timeout: timedelta) -> list[Execution]:
    """Return the executions that a deferred task has waited for, whatever their final statuses.

    :param event: the trigger's event
    :param timeout: the task's own limit of the wait
    :raises BaseException: why there is none: the time was up, or there was no point in waiting any longer
    """
    try:
        return executions_of(event)
    except ExecutionTimeoutError as error:
        limit = shorter(timeout, task.execution_timeout)
        if limit < timeout:
            # Airflow doesn't enforce it while a task is deferred.
            passed = f"execution_timeout of {in_seconds(limit.total_seconds())} passed while waiting for"
            raise AirflowTaskTimeout(f"{passed} {error.execution}: {error.last_seen}") from error
        raise replace(error, waited_seconds=timeout.total_seconds()) from error


def check_ended(execution: Execution, allowed_statuses: Sequence[str], settings: Settings) -> Execution:
    """Return an execution whose final status is a success.

    :param allowed_statuses: the final statuses that are a success (see `has_status`)
    :param settings: with the key, which TechFlow may repeat in what it says about a failure
    :raises ExecutionFailedError: it has another one
    """
    if has_status(execution, allowed_statuses):
        return execution
    further = json.dumps(execution.further, ensure_ascii=False) if execution.further else None
    reason, details = (_without_key(text, settings) for text in (execution.error, further))
    raise ExecutionFailedError(execution.id, execution.workflow_id, execution.status or "", reason, details)


def _without_key(text: str | None, settings: Settings) -> str | None:
    if text is None:
        return None
    return shorten(settings.without_key(text, text, text.encode(errors="replace")), LONGEST_REASON)
