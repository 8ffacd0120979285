"""What a wait wants of the history is read, and what it doesn't want is not even looked at."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from techflow_provider.client.history import ExecutionSelector, HistoryFilter
from techflow_provider.client.parsing import Json

NEXT = ExecutionSelector(workflow_id="wf_1", started_after=datetime(2026, 11, 25, tzinfo=UTC))


def interest(*told: tuple[ExecutionSelector, str | None]) -> HistoryFilter:
    made = HistoryFilter()
    for each in told:
        made.add(*each)
    return made


def test_only_the_executions_that_are_waited_for_are_read() -> None:
    made = interest((ExecutionSelector("ex_1"), None))
    assert not made.skips({"id": "ex_1", "status": "running"})
    assert not made.skips({"executionId": "ex_1", "status": "running"})
    assert made.skips({"id": "ex_2", "status": "running"})


def test_an_execution_is_read_again_when_its_status_is_another() -> None:
    made = interest((ExecutionSelector("ex_1"), "running"))
    assert made.skips({"id": "ex_1", "status": "running"})
    assert not made.skips({"id": "ex_1", "status": "completed"})


@pytest.mark.parametrize("told", [(None, "running"), ("running", None), ("queued", "running")])
def test_two_waits_that_know_different_things_are_both_told(told: tuple[str | None, str | None]) -> None:
    made = interest(*((ExecutionSelector("ex_1"), each) for each in told))
    assert not made.skips({"id": "ex_1", "status": "running"})


def test_every_execution_of_a_workflow_that_is_waited_for_is_read() -> None:
    made = interest((NEXT, "running"), (ExecutionSelector("ex_1"), "running"))
    assert not made.skips({"id": "ex_1", "status": "running", "workflow_id": "wf_1"})
    assert not made.skips({"id": "ex_2", "status": "running", "workflow": {"id": "wf_1"}})
    assert made.skips({"id": "ex_1", "status": "running", "workflow_id": "wf_2"})


@pytest.mark.parametrize("item", [{"status": "running"}, {"id": 7}, {"id": None}, "ex_2", 7, None, ["ex_2"]], ids=repr)
def test_what_cannot_be_told_at_a_glance_is_left_to_the_reader(item: Any) -> None:
    assert not interest((ExecutionSelector("ex_1"), None)).skips(item)


def test_who_wants_everything_gets_it() -> None:
    made: HistoryFilter = interest((ExecutionSelector("ex_1"), "running"))
    made.everything = True
    items: list[Json] = [{"id": "ex_1", "status": "running"}, {"id": "ex_2", "status": "running"}]
    assert not any(map(made.skips, items))
