"""What a trigger tells its task, across the border of a process."""

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
    "over",
    [WaitOutcome(execution=EXECUTION), WaitOutcome(timed_out=TimedOut("execution ex_1", "status 'running'"))],
    ids=["ended", "timed out"],
)
def test_an_outcome_survives_the_way_through_json(over: WaitOutcome) -> None:
    came = WaitOutcome.from_event(json.loads(json.dumps(over.to_event())))
    assert came.to_event() == over.to_event()


@pytest.mark.parametrize(
    "error",
    [
        UnauthorizedError("GET /executions", 401, "no such key"),
        TransportError("GET /executions", "no answer", maybe_sent=True),
        ExecutionNotFoundError("execution ex_1", 120.0),
        TechFlowError("the connection could not be read"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_in_its_own_class_with_its_own_words(error: TechFlowError) -> None:
    came = WaitOutcome.from_event(json.loads(json.dumps(WaitOutcome(error=error).to_event()))).error
    assert type(came) is type(error)
    assert str(came) == str(error)


def test_an_error_of_a_class_that_is_not_known_is_still_an_error() -> None:
    event = {"error": {"class": "os.system", "args": ["true"]}}
    error = WaitOutcome.from_event(event).error
    assert type(error) is TechFlowError
    assert "os.system" in str(error)


@pytest.mark.parametrize(
    "event",
    [None, "success", [], {}, {"execution": {"status": "completed"}}, {"timed_out": {"a": 1}}, {"error": "words"}],
    ids=repr,
)
def test_an_event_that_says_nothing_usable_is_quoted_in_the_error(event: Any) -> None:
    with pytest.raises(UnexpectedResponseError, match="expected a wait's outcome, got"):
        WaitOutcome.from_event(event)
