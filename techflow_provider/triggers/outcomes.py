"""What a task and its trigger hand to each other: the deadline of a wait, and its outcome.

An event crosses a process boundary and a database, so it is plain JSON, and is checked once when it arrives.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.common.compat.sdk import conf

from techflow_provider.client.errors import (
    ExecutionTimeoutError,
    InvalidParameterError,
    TechFlowError,
    UnexpectedResponseError,
    rebuild_error,
)
from techflow_provider.client.models import Execution, ExecutionState, StatusWords
from techflow_provider.client.parsing import DecodeError, Json, quote

# A worker slot must not be used for waiting: a deferrable task whose slot in the rate budget is further away defers.
ADMISSION_SECONDS = 2.0
FIRST_EVENT_SECONDS = 3.0


def deadline_after(time_left: timedelta) -> str:
    """Return a deadline as a trigger takes it: ISO 8601, with a time zone."""
    return (datetime.now(UTC) + time_left).isoformat()


def seconds_until(deadline: str | None) -> float | None:
    """Return the time until a trigger's deadline, 0 when it has passed, and None when there is none."""
    if deadline is None:
        return None
    return max(0.0, (datetime.fromisoformat(deadline) - datetime.now(UTC)).total_seconds())


def first_event_delay() -> float:
    """Return `[techflow] first_event_delay` in seconds.

    An event soon after the deferral can arrive before the scheduler has noticed that, and Airflow 3 fails the task.

    :raises InvalidParameterError: it isn't a number from 0
    """
    value = float(conf.getfloat("techflow", "first_event_delay", fallback=FIRST_EVENT_SECONDS))
    if not 0 <= value < math.inf:
        raise InvalidParameterError("[techflow] first_event_delay", quote(value), "seconds, from 0")
    return value


async def sleep_until(began: float, seconds: float) -> None:
    """Sleep until some seconds after a trigger began, on the event loop's clock."""
    await asyncio.sleep(max(0.0, began + seconds - asyncio.get_running_loop().time()))


def ended_event(execution: Execution) -> dict[str, Json]:
    """Return the payload that resumes a task with its execution."""
    # With the state, since the task that is resumed need not know this TechFlow's own status words.
    return {"execution": execution.to_dict(), "state": execution.state.value}


def event_of(error: TechFlowError) -> dict[str, Json]:
    """Return the payload that resumes a task with an error: its class and its arguments."""
    return {"error": {"class": type(error).__name__, "args": list(error.args)}}


def executions_of(event: Any) -> list[Execution]:
    """Check the payload that resumes a task after a wait for one execution or for several, and return them.

    :raises TechFlowError: see `execution_of`
    """
    several = event.get("executions") if isinstance(event, Mapping) else None
    return [execution_of(each) for each in several] if isinstance(several, list) else [execution_of(event)]


def execution_of(event: Any) -> Execution:
    """Check the payload that resumes a task after a wait, and return its execution.

    :raises TechFlowError: why there is none: `ExecutionTimeoutError` when the deadline passed, the wait's error, or
        `UnexpectedResponseError` for a payload that isn't one of ours
    """
    if not isinstance(event, Mapping) or not isinstance(event.get("execution"), Mapping):
        raise error_of(event)
    try:
        execution, state = Execution.read(dict(event["execution"])), event.get("state")
        if state is None:
            return execution
        return replace(execution, words=StatusWords.meaning(execution.status, ExecutionState(str(state))))
    except (DecodeError, ValueError) as error:
        raise unreadable(event) from error


def error_of(event: Any) -> TechFlowError:
    """Return the error in a payload, which another version or a person may have written."""
    try:
        if "timed_out" in event:
            # Of version 0.1.0.
            return ExecutionTimeoutError(event["timed_out"]["wanted"], 0.0, event["timed_out"]["last_seen"])
        return rebuild_error(str(event["error"]["class"]), event["error"]["args"])
    except (KeyError, TypeError):
        return unreadable(event)


def check_admitted(event: Any) -> None:
    """Check the payload that resumes a task which waited for a slot in the rate budget.

    :raises TechFlowError: why it was not admitted
    """
    if not (isinstance(event, Mapping) and event.get("admitted") is True):
        raise error_of(event)


def unreadable(event: object) -> UnexpectedResponseError:
    """Return the error for a payload that isn't one of ours."""
    return UnexpectedResponseError("resuming from the trigger", 0, f"expected a wait's outcome, got {quote(event)}")
