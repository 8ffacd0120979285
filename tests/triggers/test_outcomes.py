"""What a trigger hands to its task, across the boundary of a process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from techflow_provider.client import (
    Execution,
    ExecutionNotFoundError,
    TechFlowError,
    TransportError,
    UnauthorizedError,
    UnexpectedResponseError,
)
from techflow_provider.triggers.outcomes import TimedOut, WaitOutcome

EXECUTION = Execution.read({"id": "ex_1", "workflow_id": "wf_1", "status": "failed", "error": "disk full", "x": 1})


@pytest.mark.parametrize(
    "outcome",
    [WaitOutcome(execution=EXECUTION), WaitOutcome(timed_out=TimedOut("execution ex_1", "status 'running'"))],
    ids=["ended", "timed out"],
)
def test_an_outcome_survives_json(outcome: WaitOutcome) -> None:
    received = WaitOutcome.from_event(json.loads(json.dumps(outcome.to_event())))
    assert received.to_event() == outcome.to_event()


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
    received = WaitOutcome.from_event(json.loads(json.dumps(WaitOutcome(error=error).to_event()))).error
    assert type(received) is type(error)
    assert str(received) == str(error)


def test_an_error_of_an_unknown_class_is_still_an_error() -> None:
    event = {"error": {"class": "os.system", "args": ["true"]}}
    error = WaitOutcome.from_event(event).error
    assert type(error) is TechFlowError
    assert "os.system" in str(error)


@pytest.mark.parametrize(
    "event",
    [None, "success", [], {}, {"execution": {"status": "completed"}}, {"timed_out": {"a": 1}}, {"error": "words"}],
    ids=repr,
)
def test_an_event_that_cannot_be_read_is_quoted_in_the_error(event: Any) -> None:
    with pytest.raises(UnexpectedResponseError, match="expected a wait's outcome, got"):
        WaitOutcome.from_event(event)
