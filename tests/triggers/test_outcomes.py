"""What a trigger hands to its task, across the boundary of a process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from techflow_provider.client import (
    Execution,
    ExecutionNotFoundError,
    ExecutionTimeoutError,
    TechFlowError,
    TransportError,
    UnauthorizedError,
    UnexpectedResponseError,
)
from techflow_provider.triggers.outcomes import ended_event, error_of, event_of, execution_of

EXECUTION = Execution.read({"id": "ex_1", "workflow_id": "wf_1", "status": "failed", "error": "disk full", "x": 1})


def received(event: Any) -> Any:
    """Return an event as the task receives it."""
    return json.loads(json.dumps(event))


def test_an_execution_arrives_with_its_state() -> None:
    execution = execution_of(received(ended_event(EXECUTION)))
    assert (execution.to_dict(), execution.state) == (EXECUTION.to_dict(), EXECUTION.state)


def test_the_end_of_the_time_arrives_from_this_version_and_from_the_first() -> None:
    error = ExecutionTimeoutError("execution ex_1", 7.0, "status 'running'")
    first = {"timed_out": {"wanted": "execution ex_1", "last_seen": "status 'running'"}}
    for event in (event_of(error), first):
        with pytest.raises(ExecutionTimeoutError) as raised:
            execution_of(received(event))
        assert (raised.value.execution, raised.value.last_seen) == (error.execution, error.last_seen)


@pytest.mark.parametrize(
    "error",
    [
        UnauthorizedError("GET /executions", 401, "no such key"),
        TransportError("GET /executions", "no response", maybe_sent=True),
        ExecutionNotFoundError("execution ex_1", 120.0),
        TechFlowError("the connection could not be read"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_with_its_class_and_its_message(error: TechFlowError) -> None:
    with pytest.raises(type(error)) as raised:
        execution_of(received(event_of(error)))
    assert str(raised.value) == str(error)


def test_an_error_of_an_unknown_class_is_still_an_error() -> None:
    event = {"error": {"class": "os.system", "args": ["true"]}}
    error = error_of(event)
    assert type(error) is TechFlowError
    assert "os.system" in str(error)


@pytest.mark.parametrize(
    "event",
    [None, "success", [], {}, {"execution": {"status": "completed"}}, {"timed_out": {"a": 1}}, {"error": "words"}],
    ids=repr,
)
def test_an_event_that_cannot_be_read_is_quoted_in_the_error(event: Any) -> None:
    with pytest.raises(UnexpectedResponseError, match="expected a wait's outcome, got"):
        execution_of(event)
