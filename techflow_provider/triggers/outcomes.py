"""What a task and its trigger hand to each other: the deadline of a wait, and its outcome.

An event crosses a process boundary and a database, so it is plain JSON, and is checked once when it arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from techflow_provider.client.errors import TechFlowError, UnexpectedResponseError, rebuild_error
from techflow_provider.client.models import Execution, ExecutionState, StatusWords
from techflow_provider.client.parsing import DecodeError, Json, quote

# A worker slot must not be used for waiting: a deferrable task whose slot in the rate budget is further away defers.
ADMISSION_SECONDS = 5.0
# An event right after the deferral can arrive before the scheduler has recorded it, and the task then fails.
FIRST_EVENT_SECONDS = 3.0


def deadline_after(time_left: timedelta) -> str:
    """Return a deadline as a trigger takes it: ISO 8601, with a time zone."""
    return (datetime.now(UTC) + time_left).isoformat()


def seconds_until(deadline: str | None) -> float | None:
    """Return the time until a trigger's deadline, 0 when it has passed, and None when there is none."""
    if deadline is None:
        return None
    return max(0.0, (datetime.fromisoformat(deadline) - datetime.now(UTC)).total_seconds())


async def sleep_until(began: float, seconds: float) -> None:
    """Sleep until some seconds after a trigger began, on the event loop's clock."""
    await asyncio.sleep(max(0.0, began + seconds - asyncio.get_running_loop().time()))


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The deadline of a wait has passed.

    :param wanted: the execution that was waited for, as a phrase
    :param last_seen: what the history showed last, as a clause
    """

    wanted: str
    last_seen: str


@dataclass(frozen=True, slots=True)
class WaitOutcome:
    """How a wait ended: exactly one of the three is set.

    :param execution: the execution, with a final status
    :param timed_out: set when the deadline passed first
    :param error: why there was no point in waiting any longer
    """

    execution: Execution | None = None
    timed_out: TimedOut | None = None
    error: TechFlowError | None = None

    def to_event(self) -> dict[str, Json]:
        """Return the payload: `execution` and its `state`, `timed_out`, or `error` with a class and its arguments."""
        if self.execution is not None:
            # With the state, since the task that is resumed need not know this TechFlow's own status words.
            return {"execution": self.execution.to_dict(), "state": self.execution.state.value}
        if self.error is not None:
            return event_of(self.error)
        return {"timed_out": asdict(self.timed_out) if self.timed_out is not None else None}

    @classmethod
    def from_event(cls, event: Any) -> WaitOutcome:
        """Check the payload that a task is resumed with, which another version or a person may have written.

        :raises UnexpectedResponseError: it holds none of the three
        """
        fields: Mapping[str, Any] = event if isinstance(event, Mapping) else {}
        try:
            if isinstance(fields.get("execution"), Mapping):
                return cls(execution=_execution(dict(fields["execution"]), fields.get("state")))
            if isinstance(fields.get("error"), Mapping):
                error = fields["error"]
                return cls(error=rebuild_error(str(error.get("class")), error.get("args", ())))
            if isinstance(fields.get("timed_out"), Mapping):
                return cls(timed_out=TimedOut(**fields["timed_out"]))
        except (DecodeError, TypeError, ValueError) as error:
            raise unreadable(event) from error
        raise unreadable(event)


def event_of(error: TechFlowError) -> dict[str, Json]:
    """Return the payload that carries an error: its class and its arguments."""
    return {"error": {"class": type(error).__name__, "args": list(error.args)}}


def admitted_event(error: TechFlowError | None = None) -> dict[str, Json]:
    """Return the payload that lets a task reserve its slot in the rate budget, or fails it."""
    return {"admitted": True} if error is None else WaitOutcome(error=error).to_event()


def check_admitted(event: Any) -> None:
    """Check the payload that resumes a task which waited for a slot in the rate budget.

    :raises TechFlowError: why it was not admitted
    """
    if isinstance(event, Mapping) and event.get("admitted") is True:
        return
    raise WaitOutcome.from_event(event).error or unreadable(event)


def _execution(fields: dict[str, Json], state: object) -> Execution:
    execution = Execution.read(fields)
    if state is None:
        return execution
    return replace(execution, words=StatusWords.meaning(execution.status, ExecutionState(str(state))))


def unreadable(event: object) -> UnexpectedResponseError:
    """Return the error for a payload that isn't one of ours."""
    return UnexpectedResponseError("resuming from the trigger", 0, f"expected a wait's outcome, got {quote(event)}")
