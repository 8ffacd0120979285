"""What a wait needs of the history is parsed, and the rest is skipped."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from techflow_provider.client.history import ExecutionSelector, HistoryFilter
from techflow_provider.client.parsing import Json

NEXT = ExecutionSelector(workflow_id="wf_1", started_after=datetime(2026, 11, 25, tzinfo=UTC))


def filter_of(*known: tuple[ExecutionSelector, str | None]) -> HistoryFilter:
    history_filter = HistoryFilter()
    for each in known:
        history_filter.add(*each)
    return history_filter


def test_only_the_executions_that_are_waited_for_are_parsed() -> None:
    history_filter = filter_of((ExecutionSelector("ex_1"), None))
    assert history_filter.select({"id": "ex_1", "status": "running"})[0]
    assert history_filter.select({"executionId": "ex_1", "status": "running"})[0]
    assert not history_filter.select({"id": "ex_2", "status": "running"})[0]


def test_an_execution_is_parsed_again_when_its_status_has_changed() -> None:
    history_filter = filter_of((ExecutionSelector("ex_1"), "running"))
    assert not history_filter.select({"id": "ex_1", "status": "running"})[0]
    assert history_filter.select({"id": "ex_1", "status": "completed"})[0]


@pytest.mark.parametrize("known", [(None, "running"), ("running", None), ("queued", "running")])
def test_an_execution_is_parsed_when_two_waits_know_different_statuses(known: tuple[str | None, str | None]) -> None:
    history_filter = filter_of(*((ExecutionSelector("ex_1"), each) for each in known))
    assert history_filter.select({"id": "ex_1", "status": "running"})[0]


def test_every_execution_of_a_workflow_that_is_waited_for_is_parsed() -> None:
    history_filter = filter_of((NEXT, "running"), (ExecutionSelector("ex_1"), "running"))
    assert history_filter.select({"id": "ex_1", "status": "running", "workflow_id": "wf_1"})[0]
    assert history_filter.select({"id": "ex_2", "status": "running", "workflow": {"id": "wf_1"}})[0]
    assert not history_filter.select({"id": "ex_1", "status": "running", "workflow_id": "wf_2"})[0]


@pytest.mark.parametrize("item", [{"status": "running"}, {"id": 7}, {"id": None}, "ex_2", 7, None, ["ex_2"]], ids=repr)
def test_what_cannot_be_recognized_is_left_to_the_parser(item: Any) -> None:
    assert filter_of((ExecutionSelector("ex_1"), None)).select(item)[0]


def test_a_filter_for_everything_skips_nothing() -> None:
    history_filter: HistoryFilter = filter_of((ExecutionSelector("ex_1"), "running"))
    history_filter.everything = True
    items: list[Json] = [{"id": "ex_1", "status": "running"}, {"id": "ex_2", "status": "running"}]
    assert all(history_filter.select(item)[0] for item in items)
