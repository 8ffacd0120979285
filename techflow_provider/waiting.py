"""What operators and sensors have in common when they wait: how long, and what the end of a wait means to a task."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.providers.common.compat.sdk import AirflowTaskTimeout, conf

from techflow_provider.client.errors import ExecutionFailedError, InvalidParameterError
from techflow_provider.client.models import Execution, status_word
from techflow_provider.client.shapes import quote

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


def task_timeout(wanted: str, waited: timedelta, last_seen: str) -> BaseException:
    """Return the error of a task whose `execution_timeout` passed while it was deferred."""
    seconds = waited.total_seconds()
    return AirflowTaskTimeout(f"execution_timeout of {seconds:g} s passed while waiting for {wanted}: {last_seen}")


def check_ended(execution: Execution, allowed_statuses: tuple[str, ...] = ("completed",)) -> Execution:
    """Return an execution that ended as it should.

    :param allowed_statuses: the ends that are a success: states (`completed`, `failed`) or the server's own words
    :raises ExecutionFailedError: it ended otherwise
    """
    words = {status_word(word) for word in allowed_statuses}
    if words & {execution.state.value, status_word(execution.status or "")}:
        return execution
    raise ExecutionFailedError(execution.id, execution.workflow_id, execution.status or "", execution.error)
