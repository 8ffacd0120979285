"""Every documented call with every documented status code: the outcome, and how many requests were sent.

`python -m tests.client.test_status_table` prints the table as it is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from techflow_provider.client import BadRequestError, Client, NotFoundError, ResponseError, Settings, UnauthorizedError
from techflow_provider.client.calls import raw
from techflow_provider.sandbox import Fault, ManualClock, Sandbox
from techflow_provider.state.budget import LocalBudget

DEADLINE_SECONDS = 150
CALLS: dict[str, Callable[[Any], Any]] = {
    "GET /workflows": lambda client: client.workflows.list(),
    "POST /workflows": lambda client: client.workflows.create(name="n", triggers=["manual"]),
    "GET /workflows/{id}": lambda client: client.workflows.get("wf_1"),
    "PUT /workflows/{id}": lambda client: client.workflows.update("wf_1", description="d"),
    "DELETE /workflows/{id}": lambda client: client.workflows.delete("wf_1"),
    "GET /executions": lambda client: client.executions.list(),
    "POST /workflows/{id}/execute": lambda client: client.workflows.execute("wf_1"),
}
BUSY = Fault(status=429, retry_after="60")
FAULTS: dict[str, Fault | None] = {
    "200": None,
    "400": Fault(status=400),
    "401": Fault(status=401),
    "404": Fault(status=404),
    "429": BUSY,
    "429, then 200": replace(BUSY, times=1),
    "500": Fault(status=500),
    "500, then 200": Fault(status=500, times=1),
}
# With Retry-After: 60 and a deadline of 150 s. Beside each outcome stands the number of requests.
TABLE = """
call                         | 200         | 400               | 401                 | 404             | 429              | 429, then 200 | 500           | 500, then 200
GET /workflows               | list 1      | BadRequestError 1 | UnauthorizedError 1 | NotFoundError 1 | RateLimitError 3 | list 2        | ServerError 4 | list 2
POST /workflows              | Workflow 1  | BadRequestError 1 | UnauthorizedError 1 | NotFoundError 1 | RateLimitError 3 | Workflow 2    | ServerError 1 | ServerError 1
GET /workflows/{id}          | Workflow 1  | BadRequestError 1 | UnauthorizedError 1 | NotFoundError 1 | RateLimitError 3 | Workflow 2    | ServerError 4 | Workflow 2
PUT /workflows/{id}          | Workflow 1  | BadRequestError 1 | UnauthorizedError 1 | NotFoundError 1 | RateLimitError 3 | Workflow 2    | ServerError 4 | Workflow 2
DELETE /workflows/{id}       | None 1      | BadRequestError 1 | UnauthorizedError 1 | NotFoundError 1 | RateLimitError 3 | None 2        | ServerError 4 | None 2
GET /executions              | list 1      | BadRequestError 1 | UnauthorizedError 1 | NotFoundError 1 | RateLimitError 3 | list 2        | ServerError 4 | list 2
POST /workflows/{id}/execute | Execution 1 | BadRequestError 1 | UnauthorizedError 1 | NotFoundError 1 | RateLimitError 3 | Execution 2   | ServerError 1 | ServerError 1
"""  # noqa: E501  # a table
ROWS = [[cell.strip() for cell in line.split("|")] for line in TABLE.strip().splitlines()]
WITH_ID = [call for call in CALLS if "{id}" in call]


def outcome_of(ask: Callable[[Callable[[Any], Any]], Any], sandbox: Sandbox, call: str, column: str) -> str:
    """Return the outcome of a call, and the number of its requests."""
    method, path = call.replace("{id}", "*").split()
    if fault := FAULTS[column]:
        sandbox.faults.add(replace(fault, method=method, path=path))
    try:
        result = ask(CALLS[call])
    except ResponseError as error:
        check(error, call.replace("{id}", "wf_1"), int(column[:3]), sandbox.count(method, path))
        result = error
    kind = "None" if result is None else type(result).__name__
    return f"{kind} {sandbox.count(method, path)}"


def check(error: ResponseError, call: str, status: int, requests: int) -> None:
    """Check that an error names the call, the status and the number of requests."""
    assert str(error).startswith(f"{call} returned {status}")
    assert (error.call, error.status_code, error.attempts) == (call, status, requests)


@pytest.mark.parametrize("row", ROWS[1:], ids=lambda row: row[0].replace("/", ""))
def test_each_status_of_a_call_gives_its_outcome_and_number_of_requests(connect_each, sandbox, workflow_id, row):
    measured_row = [row[0]]
    for column in FAULTS:
        sandbox.reset()
        sandbox.add_workflow("My Workflow", id="wf_1")
        ask = connect_each(deadline_seconds=DEADLINE_SECONDS)
        measured_row.append(outcome_of(ask, sandbox, row[0], column))
    assert measured_row == row


def test_the_table_has_every_call_and_every_status():
    assert [row[0] for row in ROWS[1:]] == list(CALLS)
    assert ROWS[0][1:] == list(FAULTS)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.replace("/", ""))
def test_a_wrong_key_is_rejected_by_the_server_and_not_retried(connect, sandbox, workflow_id, call):
    with pytest.raises(UnauthorizedError, match="check the API key"):
        connect(api_key="another-key")(CALLS[call])
    assert [record.status for record in sandbox.requests] == [401]


@pytest.mark.parametrize("call", WITH_ID, ids=lambda call: call.replace("/", ""))
def test_an_unknown_workflow_is_not_found_and_not_retried(connect, sandbox, call):
    with pytest.raises(NotFoundError, match="check the id"):
        connect()(CALLS[call])
    assert [record.status for record in sandbox.requests] == [404]


def test_a_bad_request_is_reported_with_the_servers_message(connect, sandbox):
    call = raw("POST", "/workflows", content=b'{"name": 5}', headers={"content-type": "application/json"})
    with pytest.raises(BadRequestError, match=r"POST /workflows returned 400: .*name"):
        connect()(lambda client: client.send(call))
    assert sandbox.workflows == ()


def _perform(client: Client, operation: Callable[[Any], Any]) -> Any:
    return operation(client)


def measured() -> list[list[str]]:
    """Return the table as a synchronous client produces it in-process."""
    rows = [["call", *FAULTS]]
    for call in CALLS:
        rows.append([call])
        for column in FAULTS:
            clock = ManualClock()
            sandbox = Sandbox(clock=clock, workflows_at_start={"wf_1": "My Workflow"})
            settings = Settings("sandbox-key", deadline_seconds=DEADLINE_SECONDS)
            budget = LocalBudget(100_000, 50_000, clock.monotonic)
            with Client(
                settings=settings,
                budget=budget,
                transport=sandbox.transport(),
                clock=clock.monotonic,
                sleep=clock.advance,
            ) as client:
                rows[-1].append(outcome_of(partial(_perform, client), sandbox, call, column))
    return rows


if __name__ == "__main__":
    table = measured()
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        sys.stdout.write(" | ".join(map(str.ljust, row, widths)).rstrip() + "\n")
