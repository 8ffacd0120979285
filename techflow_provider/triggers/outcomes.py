"""What a trigger tells the task that it wakes: written and checked in this one place.

An event crosses a process border and a database, so it is plain JSON and is checked once when it arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from techflow_provider.client import errors
from techflow_provider.client.errors import TechFlowError, UnexpectedResponseError
from techflow_provider.client.models import Execution, ExecutionState, StatusWords
from techflow_provider.client.parsing import DecodeError, Json, quote

# An event that fires right after the deferral can overtake the scheduler's own note of it, and the task then fails.
FIRST_EVENT_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class TimedOut:
    """A wait's deadline passed.

    :param wanted: the execution that was waited for, in words
    :param last_seen: what the history said last, in words
    """

    wanted: str
    last_seen: str


@dataclass(frozen=True, slots=True)
class WaitOutcome:
    """How a wait ended: exactly one of the three is set.

    :param execution: the execution, when it has ended, either way
    :param timed_out: set when the time was over first
    :param error: why waiting makes no sense any more
    """

    execution: Execution | None = None
    timed_out: TimedOut | None = None
    error: TechFlowError | None = None

    @property
    def ended(self) -> Execution:
        """The execution of a wait that is neither timed out nor failed."""
        if self.execution is None:
            raise _unreadable(self.to_event())
        return self.execution

    def to_event(self) -> dict[str, Json]:
        """Return the payload: `execution` and its `state`, `timed_out`, or `error` with a class and its arguments."""
        if self.execution is not None:
            # With the state, since the task that is resumed need not know this TechFlow's further status words.
            return {"execution": self.execution.to_dict(), "state": self.execution.state.value}
        if self.error is not None:
            return {"error": {"class": type(self.error).__name__, "args": list(self.error.args)}}
        return {"timed_out": asdict(self.timed_out) if self.timed_out is not None else None}

    @classmethod
    def from_event(cls, event: Any) -> WaitOutcome:
        """Check the payload that a task is resumed with; it could be of another version or a hand-made one.

        :raises UnexpectedResponseError: it says none of the three
        """
        given: Mapping[str, Any] = event if isinstance(event, Mapping) else {}
        try:
            if isinstance(given.get("execution"), Mapping):
                return cls(execution=_execution(dict(given["execution"]), given.get("state")))
            if isinstance(given.get("error"), Mapping):
                return cls(error=_error(given["error"]))
            if isinstance(given.get("timed_out"), Mapping):
                return cls(timed_out=TimedOut(**given["timed_out"]))
        except (DecodeError, TypeError, ValueError) as error:
            raise _unreadable(event) from error
        raise _unreadable(event)


def admitted_event(error: TechFlowError | None = None) -> dict[str, Json]:
    """Return the payload that lets a task go for its slot in the rate budget, or fails it."""
    return {"admitted": True} if error is None else WaitOutcome(error=error).to_event()


def check_admitted(event: Any) -> None:
    """Check the payload that a task which waited for its admission is resumed with.

    :raises TechFlowError: why it was not admitted
    """
    if isinstance(event, Mapping) and event.get("admitted") is True:
        return
    over = WaitOutcome.from_event(event)
    raise over.error or _unreadable(event)


def _execution(told: dict[str, Json], state: object) -> Execution:
    execution = Execution.read(told)
    if state is None:
        return execution
    return replace(execution, words=StatusWords.meaning(execution.status, ExecutionState(str(state))))


def _error(told: Mapping[str, Any]) -> TechFlowError:
    kind: Callable[..., TechFlowError] | None = getattr(errors, str(told.get("class")), None)
    if not (isinstance(kind, type) and issubclass(kind, TechFlowError)):
        return TechFlowError(str(told.get("class")), *told.get("args", ()))
    return kind(*told.get("args", ()))


def _unreadable(event: object) -> UnexpectedResponseError:
    return UnexpectedResponseError("resuming from the trigger", 0, f"expected a wait's outcome, got {quote(event)}")
