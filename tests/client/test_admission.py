"""How long a start waits for its slot in the rate budget, and what is certain when it gets none in time."""

from __future__ import annotations

import pytest

from techflow_provider.client import BudgetTimeoutError, RateLimitError
from techflow_provider.sandbox import Fault
from techflow_provider.state.budget import LocalBudget, Reservation


def start(client):
    return client.workflows.execute("wf_1", within_seconds=3.0)


def test_a_start_without_a_slot_in_time_is_not_sent(connect, sandbox, clock, workflow_id):
    ask = connect(budget=LocalBudget(10, 1, clock.monotonic))
    ask(lambda client: client.workflows.list())
    with pytest.raises(BudgetTimeoutError) as caught:
        ask(start)
    assert caught.value.next_slot_seconds > 3
    assert not sandbox.executions
    assert sandbox.count(method="POST") == 0


def test_a_start_that_gets_a_429_with_a_long_cool_down_gives_up_without_an_execution(connect, sandbox, workflow_id):
    sandbox.faults.add(Fault("status", path="/workflows/*/execute", status=429, retry_after="60"))
    with pytest.raises(RateLimitError):
        connect()(start)
    assert not sandbox.executions
    assert sandbox.count(method="POST") == 1


def test_the_execution_of_a_start_is_searched_for_however_long_the_next_slots_take(
    connect, sandbox, clock, workflow_id
):
    sandbox.execute_response = "empty"
    budget = LocalBudget(10, 1, clock.monotonic)
    execution = connect(budget=budget)(start)
    assert [each.id for each in sandbox.executions] == [execution.id]


def test_a_slot_that_others_push_back_is_not_waited_for_beyond_the_time(connect, sandbox, clock, workflow_id):
    class Pushed(LocalBudget):
        """A budget in which a slot is always two seconds away."""

        def reserve(self, request_class, within_seconds, earlier=None):
            return Reservation(2.0, within_seconds >= 2.0, due=2.0)

    began = clock.monotonic()
    with pytest.raises(BudgetTimeoutError):
        connect(budget=Pushed())(start)
    assert clock.monotonic() - began <= 3
    assert not sandbox.executions
