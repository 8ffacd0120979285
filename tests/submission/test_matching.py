"""Which execution of the history belongs to a submission whose response is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from techflow_provider.client.models import Execution
from techflow_provider.submission.attempts import AttemptRecord
from techflow_provider.submission.matching import (
    Ambiguous,
    CompetingIntent,
    HistorySnapshot,
    Match,
    MatchInput,
    MatchResult,
    NoMatch,
    Undecided,
    Window,
    match,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TEN_YEARS = timedelta(days=3650)
SUBMISSION_ID = "me#1"


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def execution(name: str, began: float | None = 5.0, workflow_id: str | None = "wf_1") -> Execution:
    return Execution(name, workflow_id, "running", None if began is None else after(began), None, None, {})


def record(submitter: str = "me", payload: str | None = None, **fields: Any) -> AttemptRecord:
    return replace(
        AttemptRecord("account", "wf_1", f"{submitter}#1", "1", "attempt", NOON, 60.0, payload),
        **{"lost": True, **fields},
    )


def window(since: float = 0.0, until: float = 10.0) -> Window:
    return Window(after(since), after(until))


def competitor(
    since: float = 0.0,
    until: float = 10.0,
    payload: str | None = None,
    *,
    in_flight: bool = False,
    submitter: str = "other",
) -> CompetingIntent:
    return CompetingIntent(record(submitter, payload, lost=not in_flight), window(since, until))


def result(
    executions: Sequence[Execution],
    competing: Sequence[CompetingIntent] = (),
    holders: dict[str, str] | None = None,
    payload: str | None = None,
    *,
    early: bool = False,
) -> MatchResult:
    return match(
        MatchInput(record(payload=payload), window(), tuple(executions), tuple(competing), holders or {}), early=early
    )


def matched(*arguments, **more) -> str:
    found = result(*arguments, **more)
    assert isinstance(found, Match), found
    return found.execution.id


def test_a_claimed_execution_matches_whatever_else_there_is():
    history = [execution("ex_1"), execution("ex_2", -900, "wf_9"), execution("ex_3")]
    assert (
        matched(history, [competitor(in_flight=True)], {"ex_2": SUBMISSION_ID, "ex_3": "other#1"}, early=True) == "ex_2"
    )


@pytest.mark.parametrize(
    "history",
    [
        [],
        [execution("of another workflow", workflow_id="wf_2")],
        [execution("too early", -0.001)],
        [execution("too late", 10.001)],
        [execution("claimed")],
    ],
    ids=lambda history: history[0].id if history else "nothing",
)
def test_without_a_candidate_there_is_no_match_once_the_history_can_no_longer_lag(history):
    holders = {"claimed": "other#1"}
    assert isinstance(result(history, holders=holders, early=True), Undecided)
    assert isinstance(result(history, holders=holders), NoMatch)


@pytest.mark.parametrize("began", [0.0, 10.0])
def test_a_window_includes_its_limits(began):
    assert matched([execution("ex_1", began)]) == "ex_1"


def test_of_interchangeable_executions_the_earliest_matches_then_the_one_with_the_lowest_id():
    assert matched([execution("ex_1", 9), execution("ex_2", 2), execution("ex_3", 4)], early=True) == "ex_2"
    assert matched([execution("ex_2", 3), execution("ex_1", 3)]) == "ex_1"


@pytest.mark.parametrize("hidden", [execution("ex_2", None), execution("ex_2", workflow_id=None)])
@pytest.mark.parametrize("payload", [None, "a"])
@pytest.mark.parametrize("early", [True, False])
def test_an_execution_without_a_time_or_a_workflow_is_ambiguous(hidden, payload, early):
    assert isinstance(result([hidden], payload=payload, early=early), Ambiguous)
    assert isinstance(result([execution("ex_1"), hidden], payload=payload, early=early), Ambiguous)


@pytest.mark.parametrize("payload", [None, "a"])
def test_an_execution_that_the_response_to_another_task_may_name_is_left_to_it(payload):
    pending = competitor(4, 6, payload, in_flight=True)
    for early in (True, False):
        assert isinstance(result([execution("ex_1", 5)], [pending], payload=payload, early=early), Undecided)
    assert matched([execution("ex_1", 7)], [pending], payload=payload) == "ex_1"


def test_with_a_payload_a_pending_response_that_may_name_one_of_two_is_awaited():
    assert isinstance(
        result([execution("ex_1", 5), execution("ex_2", 8)], [competitor(4, 6, "a", in_flight=True)], payload="a"),
        Undecided,
    )


def test_of_two_executions_the_one_that_no_response_may_name_matches():
    assert matched([execution("ex_1", 5), execution("ex_2", 8)], [competitor(4, 6, in_flight=True)]) == "ex_2"


@pytest.mark.parametrize(("own", "others"), [(None, "b"), ("a", "b"), ("a", None)])
def test_an_execution_that_may_have_another_payload_does_not_match(own, others):
    foreign = competitor(4, 6, others)
    assert isinstance(result([execution("ex_1", 5)], [foreign], payload=own, early=True), Undecided)
    assert isinstance(result([execution("ex_1", 5)], [foreign], payload=own), Ambiguous)
    assert matched([execution("ex_1", 7)], [foreign], payload=own) == "ex_1"


def test_without_a_payload_an_execution_that_cannot_have_one_matches():
    assert matched([execution("ex_1", 5), execution("ex_2", 8)], [competitor(4, 6, "b")], early=True) == "ex_2"


def test_while_a_response_may_name_one_of_two_foreign_executions_it_is_awaited():
    competing = [competitor(4, 6, "b"), competitor(7, 9, in_flight=True)]
    assert isinstance(result([execution("ex_1", 5), execution("ex_2", 8)], competing), Undecided)


def test_with_a_payload_an_execution_must_be_and_remain_the_only_one():
    assert isinstance(result([execution("ex_1")], payload="a", early=True), Undecided)
    assert matched([execution("ex_1")], payload="a") == "ex_1"
    two = [execution("ex_1"), execution("ex_2")]
    assert isinstance(result(two, payload="a", early=True), Undecided)
    assert isinstance(result(two, payload="a"), Ambiguous)


def test_a_competing_intent_with_the_same_payload_is_not_foreign():
    assert matched([execution("ex_1")], [competitor(payload="a")], payload="a") == "ex_1"


def test_an_execution_is_left_to_the_competing_intent_that_can_have_no_other():
    assert matched([execution("ex_1", 3), execution("ex_2", 8)], [competitor(0, 5)]) == "ex_2"
    assert matched([execution("ex_1", 3), execution("ex_2", 8)], [competitor(7, 9)]) == "ex_1"


def test_as_many_competing_intents_as_possible_are_left_with_an_execution():
    history = [execution(f"ex_{at}", at) for at in (1, 3, 8)]
    assert matched(history, [competitor(0, 9, submitter="a"), competitor(0, 2, submitter="b")]) == "ex_3"
    assert matched(history, [competitor(0, 4, submitter="a"), competitor(0, 4, submitter="b")]) == "ex_8"
    # One of them gets none in any case.
    assert matched(history, [competitor(7, 9, submitter="a"), competitor(7, 9, submitter="b")]) == "ex_1"


def test_competing_intents_with_a_payload_or_a_pending_response_take_none_of_the_free_executions():
    history = [execution("ex_1", 3), execution("ex_2", 8)]
    assert matched(history, [competitor(9, 10, "b"), competitor(9, 10, in_flight=True)]) == "ex_1"
    assert matched(history, [competitor(20, 30, "b")], early=True) == "ex_1"


def snapshot(age_seconds: float = 2.0, now: datetime = NOON) -> HistorySnapshot:
    return HistorySnapshot((), NOON, now, age_seconds)


def sent(seconds_ago: float, by_the_store: float | None = None) -> AttemptRecord:
    age = seconds_ago if by_the_store is None else by_the_store
    return record(sent_at=after(-seconds_ago), sent_seconds=age - 4, age_seconds=4)


def test_a_window_reaches_from_the_request_to_its_last_possible_effect_with_five_seconds_to_spare():
    found = Window.of(sent(10), snapshot(), effect_seconds=70)
    assert (found.since, found.until) == (after(-15), after(2 - 10 + 70 + 5))


def test_a_window_begins_by_the_clock_that_shows_more_time_and_ends_by_the_stores():
    found = Window.of(sent(300, by_the_store=10), snapshot(), effect_seconds=70)
    assert (found.since, found.until) == (after(-305), after(67))


def test_a_clock_that_is_wrong_by_millennia_breaks_nothing():
    ancient = record(sent_at=datetime.min.replace(tzinfo=UTC), age_seconds=1e14)
    found = Window.of(ancient, snapshot(), effect_seconds=70)
    assert (found.since, found.until) == (
        NOON - TEN_YEARS - timedelta(seconds=5),
        NOON - TEN_YEARS + timedelta(seconds=5),
    )
    assert Window.of(sent(10), snapshot(1e14), 70).until == NOON + TEN_YEARS + timedelta(seconds=5)
