"""The error tree: what survives a copy, and what callers branch on."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from techflow_provider.client import errors
from techflow_provider.client.errors import (
    BudgetTimeoutError,
    InvalidParameterError,
    ResponseError,
    TechFlowError,
    TransportError,
)

ALL = [
    errors.InvalidParameterError("name", "null", "text"),
    errors.BudgetTimeoutError("GET /workflows", 7.5, 1.0),
    errors.TransportError("GET /workflows", "no connection", maybe_sent=True),
    errors.ResponseSizeError("GET /workflows", "too large", maybe_sent=True),
    errors.BadRequestError("GET /workflows", 400, "busy"),
    errors.UnauthorizedError("GET /workflows", 401, "busy"),
    errors.NotFoundError("GET /workflows", 404, "busy", attempts=2),
    errors.RateLimitError("GET /workflows", status_code=429, detail="busy"),
    errors.ServerError("GET /workflows", 500, "busy", 4),
    errors.UnexpectedResponseError("GET /workflows", 200, "busy"),
    errors.RefusedError("GET /workflows", 403, "busy"),
    errors.AmbiguousExecutionError("wf_1", "the response is lost"),
    errors.AmbiguousWorkflowError("Report", reason="the response is lost"),
    errors.SharedExecutionError("wf_1", "ex_1", "another task"),
    errors.StateUnavailableError("wf_1", "locked"),
    errors.SupersededError("wf_1", "dag.task"),
    errors.ExecutionNotFoundError("execution ex_1", 120.0),
    errors.ExecutionTimeoutError("execution ex_1", 60.0, "it was last seen running"),
    errors.ExecutionFailedError("ex_1", "wf_1", "failed", None),
]


def subclasses(kind: type[TechFlowError]) -> set[type[TechFlowError]]:
    return {kind}.union(*map(subclasses, kind.__subclasses__()))


def test_every_kind_of_error_is_tested_here():
    concrete = {kind for kind in subclasses(TechFlowError) if kind.__module__ == errors.__name__}
    assert concrete - {TechFlowError, ResponseError} == {type(error) for error in ALL}


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickles_copies_and_json(error):
    through_json = type(error)(*json.loads(json.dumps(error.args)))
    for made in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error), through_json):
        assert type(made) is type(error)
        assert (str(made), repr(made), made.args, vars(made)) == (str(error), repr(error), error.args, vars(error))
    assert hash(error) is not None


def test_an_error_keeps_all_its_arguments_in_order_however_they_were_given():
    error = errors.RateLimitError(detail="busy", call="GET /workflows", status_code=429)
    assert error.args == ("GET /workflows", 429, "busy", 1)


def test_callers_learn_what_a_failed_command_did():
    def effect(error: TechFlowError) -> str:
        return "none" if error.had_no_effect else "certain" if error.was_accepted else "unknown"

    assert effect(InvalidParameterError("name", "null", "text")) == "none"
    assert effect(BudgetTimeoutError("POST /workflows", 7.5, 1.0)) == "none"
    assert effect(TransportError("POST /workflows", "refused", maybe_sent=False)) == "none"
    assert effect(TransportError("POST /workflows", "reset", maybe_sent=True)) == "unknown"
    # 408 and 409 may mean that an earlier request was executed, or still is.
    statuses = {
        "none": (400, 401, 403, 404, 410, 422, 429),
        "certain": (200, 201, 204),
        "unknown": (302, 408, 409, 500),
    }
    for expected, each in statuses.items():
        for status in each:
            assert effect(ResponseError("POST /workflows", status, "busy")) == expected


def test_only_errors_that_a_later_poll_may_not_have_are_transient():
    transient = {type(error).__name__ for error in ALL if error.is_transient}
    assert transient == {
        *("BudgetTimeoutError", "TransportError", "ResponseSizeError"),
        *("RateLimitError", "ServerError", "UnexpectedResponseError"),
    }


def test_a_404_on_a_list_has_no_id_to_check():
    one, listed = (errors.NotFoundError(call, 404, "?") for call in ("GET /workflows/wf_1", "GET /workflows"))
    assert str(one).endswith("; check the id, and the base URL (the connection's host) with its path")
    assert str(listed).endswith("; check the base URL (the connection's host) with its path")
