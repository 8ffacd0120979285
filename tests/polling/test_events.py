"""Two polls of what TechFlow lists show what happened between them, each event once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from techflow_provider.client import Execution, InvalidParameterError
from techflow_provider.polling.events import Event, EventFilter, KnownExecutions, workflow_events

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
NOW = BEGIN + timedelta(days=365)


def execution(name: str, status: str = "running", started: float = 0, ended: float | None = None) -> Execution:
    fields: dict[str, Any] = {"id": name, "workflow_id": "wf_1", "status": status}
    fields["started_at"] = (BEGIN + timedelta(seconds=started)).isoformat()
    if ended is not None:
        fields["finished_at"] = (BEGIN + timedelta(seconds=ended)).isoformat()
    return Execution.read(fields)


def names_and_ids(events: Sequence[Event]) -> list[tuple[str, Any]]:
    return [(each.name, each.payload["execution"]["id"]) for each in events]  # type: ignore[index,call-overload]


def test_a_start_and_a_completion_are_shown_once_in_the_order_in_which_they_happened() -> None:
    events, known = KnownExecutions().compared_with(
        [execution("b", "completed", 1, 3), execution("a", "failed", 0, 2)], NOW
    )
    assert names_and_ids(events) == [
        ("execution.started", "a"),
        ("execution.started", "b"),
        ("execution.failed", "a"),
        ("execution.completed", "b"),
    ]
    assert known.compared_with([execution("b", "completed", 1, 3)], NOW) == ([], known)


def test_a_payload_is_the_execution_as_it_was_read() -> None:
    (event,), _ = KnownExecutions().compared_with([execution("a")], NOW)
    assert event.payload == {"event": "execution.started", "execution": execution("a").to_dict()}


def test_a_final_status_is_shown_once_and_stays() -> None:
    _, known = KnownExecutions().compared_with([execution("a")], NOW)
    events, known = known.compared_with([execution("a", "completed", 0, 1)], NOW)
    assert names_and_ids(events) == [("execution.completed", "a")]
    for status in ("running", "failed", "completed"):
        assert known.compared_with([execution("a", status, 0, 2)], NOW)[0] == []


def test_what_a_poll_leaves_out_is_not_forgotten() -> None:
    _, known = KnownExecutions().compared_with([execution("a"), execution("b", "completed", 0, 1)], NOW)
    assert known.compared_with([], NOW)[1] == known
    assert names_and_ids(
        known.compared_with([execution("a", "failed", 0, 9), execution("b", "completed", 0, 1)], NOW)[0]
    ) == [("execution.failed", "a")]


def test_completions_of_long_ago_are_not_remembered_and_not_shown_again() -> None:
    day = 24 * 3600.0
    history = [execution(f"e{number}", "completed", number * day, number * day + 1) for number in range(100)]
    _, known = KnownExecutions().compared_with([*history, execution("slow")], NOW)
    assert set(known.states) == {"e98", "e99", "slow"}
    assert known.compared_with(history, NOW)[0] == []
    # One that was still running is shown, however late.
    events, _ = known.compared_with([execution("slow", "failed", 0, 1)], NOW)
    assert names_and_ids(events) == [("execution.failed", "slow")]


def ended_at(name: str, finished_at: str) -> Execution:
    return Execution.read({"id": name, "workflow_id": "wf_1", "status": "completed", "finished_at": finished_at})


@pytest.mark.parametrize("impossible", ["9999-12-31T23:59:59Z", "2027-06-01T00:00:00Z", "0001-01-01T00:00:00Z"])
def test_an_impossible_time_of_one_execution_hides_no_other(impossible: str) -> None:
    listed = [ended_at("a", impossible)]
    _, known = KnownExecutions().compared_with(listed, NOW)
    events, known = known.compared_with([*listed, ended_at("b", "2026-12-31T00:00:00Z")], NOW)
    assert names_and_ids(events) == [("execution.started", "b"), ("execution.completed", "b")]
    assert known.compared_with(listed, NOW)[0] == []


def test_a_stored_time_in_the_future_hides_no_execution() -> None:
    known = KnownExecutions({}, datetime(9999, 12, 30, tzinfo=UTC))
    assert len(known.compared_with([ended_at("b", "2026-12-31T00:00:00Z")], NOW)[0]) == 2


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["running", "completed", "failed"])), max_size=6),
        max_size=8,
    )
)
def test_each_execution_starts_and_ends_at_most_once_whatever_is_listed(polls: list[list[tuple[str, str]]]) -> None:
    known, shown = KnownExecutions({}), []
    for poll in polls:
        listed = [execution(name, status, ended=None if status == "running" else 1) for name, status in poll]
        events, known = known.compared_with(listed, NOW)
        shown += names_and_ids(events)
    ends = [name for event, name in shown if event != "execution.started"]
    assert len(shown) == len(set(shown))
    assert len(ends) == len(set(ends))
    assert {name for _, name in shown} == {name for poll in polls for name, _ in poll}


def workflow(workflow_id: str, name: str = "n") -> dict[str, Any]:
    return {"id": workflow_id, "name": name, "status": "active"}


def test_workflows_are_created_updated_and_deleted() -> None:
    known = {each: workflow(each) for each in ("wf_1", "wf_2", "wf_3")}
    present = {"wf_1": workflow("wf_1"), "wf_2": workflow("wf_2", "other"), "wf_4": workflow("wf_4")}
    assert [each.payload for each in workflow_events(known, present)] == [
        {"event": "workflow.created", "workflow": workflow("wf_4")},
        {"event": "workflow.updated", "workflow": workflow("wf_2", "other")},
        {"event": "workflow.deleted", "workflow": workflow("wf_3")},
    ]
    assert workflow_events(present, present) == []


@pytest.mark.parametrize("events", ["execution.ended", [], ["workflow.created", 7], ""])
def test_only_documented_events_can_be_wanted(events: Any) -> None:
    with pytest.raises(InvalidParameterError, match=r"workflow\.created"):
        EventFilter.of(events)


def test_the_order_of_names_does_not_matter_to_a_filter() -> None:
    assert EventFilter.of(["workflow.deleted", "execution.failed"]) == EventFilter.of(
        ["execution.failed", "workflow.deleted"]
    )
    assert EventFilter.of("workflow.created").is_about("workflow")
    assert not EventFilter.of("workflow.created").is_about("execution")
