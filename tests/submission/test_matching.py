"""Which execution of the history is the one that a task has lost sight of."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from techflow_provider.client.models import Execution
from techflow_provider.state.records import Intent
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
    match_execution,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TEN_YEARS = timedelta(days=3650)
TICKET = "me#1"


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def execution(name: str, began: float | None = 5.0, workflow_id: str | None = "wf_1") -> Execution:
    return Execution(name, workflow_id, "running", None if began is None else after(began), None, None, {})


def intent(task: str = "me", payload: str | None = None, *, in_flight: bool = False) -> Intent:
    return Intent(task, f"{task}#1", "wf_1", "author", 60.0, payload, sent_at=NOON, lost=not in_flight)


def window(since: float = 0.0, until: float = 10.0) -> Window:
    return Window(after(since), after(until))


def rival(
    since: float = 0.0, until: float = 10.0, payload: str | None = None, *, in_flight: bool = False, task: str = "other"
) -> CompetingIntent:
    return CompetingIntent(intent(task, payload, in_flight=in_flight), window(since, until))


def verdict(
    executions: Sequence[Execution],
    rivals: Sequence[CompetingIntent] = (),
    holders: dict[str, str] | None = None,
    payload: str | None = None,
    *,
    early: bool = False,
) -> MatchResult:
    return match_execution(
        MatchInput(intent(payload=payload), window(), tuple(executions), tuple(rivals), holders or {}), early=early
    )


def adopted(*arguments, **more) -> str:
    found = verdict(*arguments, **more)
    assert isinstance(found, Match), found
    return found.execution.id


def test_what_the_task_has_claimed_is_its_own_whatever_else_there_is():
    history = [execution("ex_1"), execution("ex_2", -900, "wf_9"), execution("ex_3")]
    assert adopted(history, [rival(in_flight=True)], {"ex_2": TICKET, "ex_3": "other#1"}, early=True) == "ex_2"


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
def test_without_a_candidate_there_is_none_as_soon_as_the_history_can_not_lag_any_more(history):
    holders = {"claimed": "other#1"}
    assert isinstance(verdict(history, holders=holders, early=True), Undecided)
    assert isinstance(verdict(history, holders=holders), NoMatch)


@pytest.mark.parametrize("began", [0.0, 10.0])
def test_the_ends_of_the_window_are_in_it(began):
    assert adopted([execution("ex_1", began)]) == "ex_1"


def test_of_several_that_are_alike_the_earliest_is_taken_and_then_the_one_with_the_least_id():
    assert adopted([execution("ex_1", 9), execution("ex_2", 2), execution("ex_3", 4)], early=True) == "ex_2"
    assert adopted([execution("ex_2", 3), execution("ex_1", 3)]) == "ex_1"


@pytest.mark.parametrize("hidden", [execution("ex_2", None), execution("ex_2", workflow_id=None)])
@pytest.mark.parametrize("payload", [None, "a"])
@pytest.mark.parametrize("early", [True, False])
def test_an_execution_that_tells_no_time_or_no_workflow_is_adopted_by_nobody(hidden, payload, early):
    assert isinstance(verdict([hidden], payload=payload, early=early), Ambiguous)
    assert isinstance(verdict([execution("ex_1"), hidden], payload=payload, early=early), Ambiguous)


@pytest.mark.parametrize("payload", [None, "a"])
def test_an_execution_that_an_answer_to_another_task_may_name_is_left_to_it(payload):
    answered = rival(4, 6, payload, in_flight=True)
    for early in (True, False):
        assert isinstance(verdict([execution("ex_1", 5)], [answered], payload=payload, early=early), Undecided)
    assert adopted([execution("ex_1", 7)], [answered], payload=payload) == "ex_1"


def test_with_a_payload_an_answer_that_may_name_one_of_two_is_waited_for():
    assert isinstance(
        verdict([execution("ex_1", 5), execution("ex_2", 8)], [rival(4, 6, "a", in_flight=True)], payload="a"),
        Undecided,
    )


def test_of_two_the_one_is_taken_that_no_answer_may_name():
    assert adopted([execution("ex_1", 5), execution("ex_2", 8)], [rival(4, 6, in_flight=True)]) == "ex_2"


@pytest.mark.parametrize(("own", "others"), [(None, "b"), ("a", "b"), ("a", None)])
def test_what_may_be_of_another_payload_is_not_taken(own, others):
    stranger = rival(4, 6, others)
    assert isinstance(verdict([execution("ex_1", 5)], [stranger], payload=own, early=True), Undecided)
    assert isinstance(verdict([execution("ex_1", 5)], [stranger], payload=own), Ambiguous)
    assert adopted([execution("ex_1", 7)], [stranger], payload=own) == "ex_1"


def test_without_a_payload_one_is_taken_that_can_not_be_of_another_payload():
    assert adopted([execution("ex_1", 5), execution("ex_2", 8)], [rival(4, 6, "b")], early=True) == "ex_2"


def test_while_an_answer_may_settle_one_of_two_that_may_be_strangers_it_is_waited_for():
    rivals = [rival(4, 6, "b"), rival(7, 9, in_flight=True)]
    assert isinstance(verdict([execution("ex_1", 5), execution("ex_2", 8)], rivals), Undecided)


def test_with_a_payload_it_must_be_the_only_one_and_stay_it():
    assert isinstance(verdict([execution("ex_1")], payload="a", early=True), Undecided)
    assert adopted([execution("ex_1")], payload="a") == "ex_1"
    two = [execution("ex_1"), execution("ex_2")]
    assert isinstance(verdict(two, payload="a", early=True), Undecided)
    assert isinstance(verdict(two, payload="a"), Ambiguous)


def test_with_a_payload_a_rival_with_the_same_one_is_no_stranger():
    assert adopted([execution("ex_1")], [rival(payload="a")], payload="a") == "ex_1"


def test_an_execution_is_left_to_the_rival_that_can_have_no_other():
    assert adopted([execution("ex_1", 3), execution("ex_2", 8)], [rival(0, 5)]) == "ex_2"
    assert adopted([execution("ex_1", 3), execution("ex_2", 8)], [rival(7, 9)]) == "ex_1"


def test_as_many_rivals_as_possible_are_left_with_one():
    history = [execution(f"ex_{at}", at) for at in (1, 3, 8)]
    assert adopted(history, [rival(0, 9, task="a"), rival(0, 2, task="b")]) == "ex_3"
    assert adopted(history, [rival(0, 4, task="a"), rival(0, 4, task="b")]) == "ex_8"
    # One of them gets none in any case.
    assert adopted(history, [rival(7, 9, task="a"), rival(7, 9, task="b")]) == "ex_1"


def test_rivals_with_a_payload_or_an_answer_to_come_take_none_of_those_that_are_left():
    history = [execution("ex_1", 3), execution("ex_2", 8)]
    assert adopted(history, [rival(9, 10, "b"), rival(9, 10, in_flight=True)]) == "ex_1"
    assert adopted(history, [rival(20, 30, "b")], early=True) == "ex_1"


def reading(age_seconds: float = 2.0, now: datetime = NOON) -> HistorySnapshot:
    return HistorySnapshot((), NOON, now, age_seconds)


def sent(seconds_ago: float, by_the_store: float | None = None) -> Intent:
    age = seconds_ago if by_the_store is None else by_the_store
    return Intent(
        "me", TICKET, "wf_1", "author", 60.0, sent_at=after(-seconds_ago), sent_seconds=age - 4, age_seconds=4
    )


def test_a_window_reaches_from_the_request_to_its_last_possible_effect_with_five_seconds_to_spare():
    found = Window.of(sent(10), reading(), effect_seconds=70)
    assert (found.since, found.until) == (after(-15), after(2 - 10 + 70 + 5))


def test_a_window_begins_by_the_clock_that_shows_more_time_and_ends_by_the_stores():
    found = Window.of(sent(300, by_the_store=10), reading(), effect_seconds=70)
    assert (found.since, found.until) == (after(-305), after(67))


def test_a_clock_that_is_wrong_by_millennia_breaks_nothing():
    ancient = Intent("me", TICKET, "wf_1", "author", 60.0, sent_at=datetime.min.replace(tzinfo=UTC), age_seconds=1e14)
    found = Window.of(ancient, reading(), effect_seconds=70)
    assert (found.since, found.until) == (
        NOON - TEN_YEARS - timedelta(seconds=5),
        NOON - TEN_YEARS + timedelta(seconds=5),
    )
    assert Window.of(sent(10), reading(1e14), 70).until == NOON + TEN_YEARS + timedelta(seconds=5)
