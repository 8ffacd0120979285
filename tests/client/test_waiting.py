"""Starting an execution and waiting for it, with a history that lags, contradicts itself or fails."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from techflow_provider.client import (
    AmbiguousExecutionError,
    ExecutionNotFoundError,
    ExecutionState,
    ExecutionTimeoutError,
    InvalidParameterError,
    NotFoundError,
    UnauthorizedError,
)
from techflow_provider.client.errors import RefusedError
from techflow_provider.client.history import ExecutionSelector
from techflow_provider.sandbox import Fault

HISTORY = {"method": "GET", "path": "/executions"}


def wait(execution_id: str, interval: float = 5.0, timeout: float | None = None) -> Callable[[Any], Any]:
    return lambda client: client.executions.wait(ExecutionSelector(execution_id), interval, timeout)


def execute(client):
    return client.workflows.execute("wf_1")


@pytest.fixture
def started(sandbox, workflow_id):
    """An execution that takes 5 seconds."""
    return sandbox.start(workflow_id).id


def test_an_execution_is_awaited_until_it_completes(connect_each, sandbox, workflow_id, clock):
    sandbox.plan(workflow_id, seconds=23)
    ask = connect_each()
    begun = ask(execute)
    assert not begun.ended
    ended = ask(wait(begun.id))
    assert (ended.id, ended.state) == (begun.id, ExecutionState.COMPLETED)
    assert ended.finished_at - ended.started_at == timedelta(seconds=23)
    assert clock.monotonic() == 25
    assert sandbox.count(**HISTORY) == 6


def test_an_execution_that_fails_is_returned_with_its_reason(connect, sandbox, workflow_id):
    sandbox.plan(workflow_id, outcome="failed", error="out of memory")
    ask = connect()
    ended = ask(wait(ask(execute).id))
    assert (ended.state, ended.error) == (ExecutionState.FAILED, "out of memory")


def test_a_wait_polls_at_once(ask, sandbox, started, clock):
    sandbox.finish(started)
    assert ask(wait(started)).ended
    assert (clock.monotonic(), sandbox.count()) == (0, 1)


def test_a_wait_with_a_timeout_of_zero_polls_once(ask, sandbox, started):
    with pytest.raises(ExecutionTimeoutError):
        ask(wait(started, timeout=0))
    assert sandbox.count() == 1


def test_an_execution_that_outlasts_the_timeout_keeps_running_and_is_reported(ask, sandbox, workflow_id, clock):
    sandbox.plan(workflow_id, seconds=math.inf)
    started = sandbox.start(workflow_id).id
    with pytest.raises(
        ExecutionTimeoutError, match=r"did not end within 62 s .*'running'.*keeps running in TechFlow"
    ) as caught:
        ask(wait(started, timeout=62))
    assert caught.value.waited_seconds == clock.monotonic() == 62


def test_an_unknown_status_word_is_logged_once_and_counts_as_running(ask, sandbox, workflow_id, caplog):
    sandbox.status_words = {"running": "hibernating"}
    sandbox.plan(workflow_id, seconds=math.inf)
    started = sandbox.start(workflow_id).id
    with pytest.raises(ExecutionTimeoutError, match="'hibernating', a word that is not known"):
        ask(wait(started, timeout=60))
    assert [record.levelno for record in caplog.records if "hibernating" in record.getMessage()] == [logging.WARNING]


def test_an_execution_that_never_appears_ends_the_wait(ask, sandbox, workflow_id, clock):
    with pytest.raises(ExecutionNotFoundError, match=r"execution ex_none did not appear .* within 120 s"):
        ask(wait("ex_none"))
    assert clock.monotonic() == 120


def test_an_execution_that_appears_late_is_awaited(connect, sandbox, workflow_id):
    sandbox.history_lag_seconds = 60
    ask = connect()
    assert ask(wait(ask(execute).id)).state is ExecutionState.COMPLETED


def test_an_execution_that_disappears_ends_the_wait_after_the_grace_period(ask, sandbox, started, clock):
    for _ in range(2):
        sandbox.faults.add(Fault(status=200, body=json.dumps([{"id": started, "status": "running"}]), times=1))
    sandbox.faults.add(Fault(status=200, body="[]"))
    with pytest.raises(ExecutionNotFoundError, match="last seen with status 'running', and is no longer listed"):
        ask(wait(started, timeout=600))
    assert clock.monotonic() == 130


def test_an_execution_that_disappears_for_a_while_is_awaited(ask, sandbox, workflow_id):
    sandbox.plan(workflow_id, seconds=900)
    started = sandbox.start(workflow_id).id
    for _ in range(5):
        sandbox.faults.add(Fault(status=200, body=json.dumps([{"id": started, "status": "running"}]), times=1))
        sandbox.faults.add(Fault(status=200, body="[]", times=20))
    assert ask(wait(started)).ended


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault(status=500), Fault(status=503), Fault(status=418), Fault("truncated"), Fault("html")),
        *(Fault("reset"), Fault("drop"), Fault("garbage"), Fault("lost_response"), Fault("wrong_length")),
        *(Fault(status=200, body='[{"status": "running"}]'), Fault(status=429), Fault(status=429, retry_after="200")),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}-{fault.retry_after}",
)
def test_polls_that_fail_do_not_end_a_wait(connect, sandbox, started, caplog, fault):
    sandbox.faults.add(fault)
    sandbox.on_request = lambda _: sandbox.faults.clear() if sandbox.count() >= 9 else None
    assert connect()(wait(started)).state is ExecutionState.COMPLETED
    assert "failed and is retried" in caplog.text or fault.status == 429


def test_a_wait_whose_polls_all_fail_ends_at_its_timeout_and_does_not_flood(ask, sandbox, started, clock):
    sandbox.faults.add(Fault("html"))
    with pytest.raises(ExecutionTimeoutError, match="the history has not been read yet"):
        ask(wait(started, interval=1.0, timeout=600))
    assert clock.monotonic() == 600
    assert sandbox.count() < 30


def test_polls_that_hang_end_with_their_timeout(ask, sandbox, started, clock):
    sandbox.faults.add(Fault("hang", times=5))
    assert ask(wait(started)).ended
    assert clock.monotonic() > 5 * 30


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, UnauthorizedError), (404, NotFoundError), *((each, RefusedError) for each in (402, 403, 405, 410, 451))],
)
def test_a_refusal_that_no_retry_would_change_ends_a_wait(connect, sandbox, started, status, error):
    sandbox.faults.add(Fault(status=status))
    with pytest.raises(error):
        connect()(wait(started))
    assert sandbox.count() == 1


def test_a_workflows_first_execution_since_an_instant_is_awaited(ask, sandbox, workflow_id, clock):
    other = sandbox.add_workflow("Other")
    sandbox.start(workflow_id)
    clock.advance(10)
    since = clock.now()
    sandbox.start(other)
    clock.advance(10)
    first = sandbox.start(workflow_id).id
    clock.advance(1)
    sandbox.start(workflow_id)
    selector = ExecutionSelector(workflow_id=workflow_id, started_after=since)
    assert ask(lambda client: client.executions.wait(selector)).id == first


def test_a_workflow_that_has_not_started_yet_is_awaited_beyond_the_grace_period(ask, sandbox, workflow_id, clock):
    selector = ExecutionSelector(workflow_id=workflow_id, started_after=clock.now())
    with pytest.raises(ExecutionTimeoutError, match="it is not in the execution history"):
        ask(lambda client: client.executions.wait(selector, 5.0, 3600.0))
    begun: list[str] = []
    selector = ExecutionSelector(workflow_id=workflow_id, started_after=clock.now())

    def start_late(_):
        if not begun and sandbox.count(**HISTORY) > 800:
            begun.append(sandbox.start(workflow_id).id)

    sandbox.on_request = start_late
    assert ask(lambda client: client.executions.wait(selector)).id == begun[0]


@pytest.mark.parametrize("interval", [0, -1, math.nan, math.inf])
def test_an_interval_that_would_flood_or_never_poll_again_is_rejected(ask, sandbox, started, interval):
    with pytest.raises(InvalidParameterError, match="interval_seconds: expected a number above 0"):
        ask(wait(started, interval=interval))
    assert sandbox.count() == 0


@pytest.mark.parametrize("timeout", [-1, math.nan])
def test_an_invalid_timeout_is_rejected(ask, sandbox, started, timeout):
    with pytest.raises(InvalidParameterError, match="timeout_seconds: expected a number from 0, or None"):
        ask(wait(started, timeout=timeout))
    assert sandbox.count() == 0


def test_one_execution_is_found_in_the_history(connect, sandbox, started):
    ask = connect()
    assert ask(lambda client: client.executions.get(started)).id == started
    with pytest.raises(ExecutionNotFoundError, match="execution ex_none did not appear"):
        ask(lambda client: client.executions.get("ex_none"))


def test_the_history_is_listed_by_workflow_and_by_status(connect, sandbox, workflow_id, clock):
    other = sandbox.add_workflow("Other")
    old = sandbox.start(workflow_id).id
    clock.advance(60)
    new, elsewhere = sandbox.start(workflow_id).id, sandbox.start(other).id
    ask = connect()

    def ids(*args: str | None) -> set[str]:
        return {each.id for each in ask(lambda client: client.executions.list(*args))}

    assert ids() == {old, new, elsewhere}
    assert ids(workflow_id) == {old, new}
    assert ids(None, "Running") == {new, elsewhere}
    assert ids(workflow_id, "execution.completed") == {old}


@pytest.mark.parametrize("lag", [0, 5])
@pytest.mark.parametrize("times", ["iso", "iso_seconds", "epoch"])
def test_an_execution_without_an_id_in_the_response_is_found_in_the_history(
    connect, sandbox, workflow_id, clock, *, lag, times
):
    sandbox.start(workflow_id)
    clock.advance(60.4)
    sandbox.execute_response, sandbox.history_lag_seconds, sandbox.times = "empty", lag, times
    found = connect()(execute)
    assert found.id == sandbox.executions[-1].id
    assert len(sandbox.executions) == 2
    assert sandbox.count("POST") == 1


def test_two_candidate_executions_are_ambiguous(ask, sandbox, workflow_id):
    sandbox.execute_response = "empty"
    theirs = sandbox.start(workflow_id).id
    with pytest.raises(AmbiguousExecutionError, match="2 executions began since") as caught:
        ask(execute)
    assert theirs in str(caught.value)
    assert sandbox.count("POST") == 1


def test_a_second_execution_that_appears_a_poll_later_is_ambiguous(ask, sandbox, workflow_id):
    sandbox.execute_response, sandbox.history_lag_seconds = "empty", 3

    def start_at_the_second_poll(_):
        if sandbox.count(**HISTORY) == 2:
            sandbox.start(workflow_id)

    sandbox.on_request = start_at_the_second_poll
    with pytest.raises(AmbiguousExecutionError, match="2 executions began since"):
        ask(execute)


def test_an_execution_that_does_not_appear_is_ambiguous_and_not_started_again(ask, sandbox, workflow_id):
    sandbox.execute_response, sandbox.history_lag_seconds = "empty", 600
    with pytest.raises(AmbiguousExecutionError, match="none appeared in the history within 10 s; check the"):
        ask(execute)
    assert sandbox.count("POST") == 1
