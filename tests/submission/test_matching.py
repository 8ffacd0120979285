"""Which execution of the history belongs to a submission whose response is lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from techflow_provider.client.models import Execution
from techflow_provider.submission.matching import (
    DOUBT,
    Ambiguous,
    Intent,
    Match,
    MatchInput,
    MatchResult,
    NoMatch,
    Row,
    Undecided,
    describe,
    match,
)
from techflow_provider.submission.records import AttemptRecord, Claim, payload_digest
from techflow_provider.submission.times import ServerClock, Span

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TEN_YEARS = timedelta(days=3650)
SUBMISSION_ID = "me#1"


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def execution(
    name: str, began: float | None = 5.0, workflow_id: str | None = "wf_1", finished: float | None = None
) -> Execution:
    started, ended = (None if each is None else after(each) for each in (began, finished))
    return Execution(name, workflow_id, "running", started, ended, None, {})


def row(each: Execution, echo: str | None = None, widest: float = 0.0) -> Row:
    at = each.started_at
    span = None if at is None else Span(at.timestamp(), at.timestamp())
    return Row(each, span, span and span.widened(widest), echo)


def record(submitter: str = "me", payload: str | None = None, **fields: Any) -> AttemptRecord:
    return replace(
        AttemptRecord("wf_1", f"{submitter}#1", "1", "attempt", NOON, 60.0, payload), **{"lost": True, **fields}
    )


def window(since: float = 0.0, until: float = 10.0) -> Span:
    return Span(after(since).timestamp(), after(until).timestamp())


def competitor(
    since: float = 0.0,
    until: float = 10.0,
    payload: str | None = None,
    *,
    in_flight: bool = False,
    submitter: str = "other",
) -> Intent:
    span = window(since, until)
    return Intent(record(submitter, payload, lost=not in_flight), span, span.low)


def search(
    executions: Sequence[Execution | Row],
    competing: Sequence[Intent] = (),
    claims: dict[str, Claim] | None = None,
    payload: str | None = None,
    **more: Any,
) -> MatchInput:
    rows = tuple(each if isinstance(each, Row) else row(each) for each in executions)
    own = more.pop("record", record(payload=payload))
    clock = ServerClock(1.0, Span(-300.0, 300.0), is_measured=more.pop("is_measured", False))
    return MatchInput(Intent(own, window(), window().low), rows, clock, tuple(competing), claims or {}, **more)


def result(*arguments: Any, early: bool = False, **more: Any) -> MatchResult:
    return match(search(*arguments, **more), early=early)


def matched(*arguments, **more) -> str:
    found = result(*arguments, **more)
    assert isinstance(found, Match), found
    return found.execution.id


def test_a_claimed_execution_is_the_submissions_own_and_an_adopted_one_is_not():
    own, adopted = result([execution("ex_1")], claims={"ex_1": Claim(SUBMISSION_ID)}), result([execution("ex_1")])
    assert isinstance(own, Match)
    assert isinstance(adopted, Match)
    assert (own.is_own, adopted.is_own) == (True, False)


def test_executions_that_may_fit_are_named_from_the_nearest_on():
    found = result([row(execution("ex_1", -20), widest=300), row(execution("ex_2", 12), widest=300)])
    assert isinstance(found, Ambiguous)
    assert "ex_2, ex_1" in found.reason


def test_a_task_with_another_payload_takes_no_execution_away_where_the_history_shows_payloads():
    two = [row(execution("ex_1", 3), "a"), row(execution("ex_2", 8), "a")]
    for other, own in (("b", "ex_1"), ("a", "ex_2")):
        assert matched(two, [competitor(-3, 5, other)], payload="a", shows_payloads=True) == own


def test_a_claimed_execution_matches_whatever_else_there_is():
    history = [execution("ex_1"), execution("ex_2", -900, "wf_9"), execution("ex_3")]
    claims = {"ex_2": Claim(SUBMISSION_ID), "ex_3": Claim("other#1")}
    assert matched(history, [competitor(in_flight=True)], claims, early=True) == "ex_2"


@pytest.mark.parametrize(
    "history",
    [
        [],
        [execution("of another workflow", workflow_id="wf_2")],
        [execution("too early", -0.001)],
        [execution("too late", 10.001)],
        [execution("claimed")],
        [execution("over", None, finished=-301)],
    ],
    ids=lambda history: history[0].id if history else "nothing",
)
def test_without_a_candidate_there_is_no_match_once_the_history_can_no_longer_lag(history):
    claims = {"claimed": Claim("other#1")}
    assert isinstance(result(history, claims=claims, early=True), Undecided)
    assert isinstance(result(history, claims=claims), NoMatch)


@pytest.mark.parametrize("payload", [None, "a"])
def test_a_history_that_may_be_cut_off_proves_nothing(payload):
    waiting = result([], payload=payload, is_complete=False)
    assert isinstance(waiting, Undecided)
    assert waiting.timeout_seconds == 120.0


def test_with_a_payload_the_only_one_of_a_history_that_may_be_cut_off_does_not_match():
    assert isinstance(result([execution("ex_1")], payload="a", is_complete=False), Undecided)
    assert matched([execution("ex_1")], is_complete=False) == "ex_1"


@pytest.mark.parametrize("began", [0.0, 10.0])
def test_a_window_includes_its_limits(began):
    assert matched([execution("ex_1", began)]) == "ex_1"


def test_of_interchangeable_executions_the_nearest_matches_then_the_one_with_the_lowest_id():
    assert matched([execution("ex_1", 9), execution("ex_2", 2), execution("ex_3", 4)], early=True) == "ex_2"
    assert matched([execution("ex_2", 3), execution("ex_1", 3)]) == "ex_1"


def test_an_execution_without_a_time_is_ruled_out_only_if_it_had_certainly_finished_before_the_request():
    for finished, kind in ((-300.5, NoMatch), (-300.0, Ambiguous)):
        assert isinstance(result([execution("ex_1", None, finished=finished)]), kind)


@pytest.mark.parametrize("hidden", [execution("ex_2", None), execution("ex_2", workflow_id=None)])
@pytest.mark.parametrize("payload", [None, "a"])
def test_an_execution_without_a_time_or_a_workflow_proves_nothing(hidden, payload):
    assert isinstance(result([hidden], payload=payload, early=True), Undecided)
    assert isinstance(result([hidden], payload=payload), Ambiguous)
    assert isinstance(result([execution("ex_1"), hidden], payload="a"), Ambiguous)
    assert matched([execution("ex_1"), hidden]) == "ex_1"


def test_an_execution_that_began_elsewhen_by_a_clock_that_is_not_known_well_is_neither_taken_nor_ignored():
    before = row(execution("ex_1", -4), widest=300)
    assert isinstance(result([before], early=True), Undecided)
    assert isinstance(result([before]), Ambiguous)
    assert matched([before, execution("ex_2", 3)]) == "ex_2"


def test_such_an_execution_is_ignored_where_another_task_explains_it_and_the_clock_is_known():
    before, other = row(execution("ex_1", -4), widest=300), competitor(-5, -3)
    assert isinstance(result([before], [other], is_measured=True), NoMatch)
    waiting = result([before], [other])
    assert isinstance(waiting, Undecided)
    assert waiting.timeout_seconds == 900.0


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


def test_with_a_payload_an_execution_that_may_have_another_one_does_not_match():
    foreign = competitor(4, 6, "b")
    assert isinstance(result([execution("ex_1", 5)], [foreign], payload="a", early=True), Undecided)
    assert isinstance(result([execution("ex_1", 5)], [foreign], payload="a"), Ambiguous)
    assert matched([execution("ex_1", 7)], [foreign], payload="a") == "ex_1"


def test_without_a_payload_an_execution_that_may_have_one_does_not_match():
    foreign = competitor(4, 6, "b")
    assert isinstance(result([execution("ex_1", 5)], [foreign], early=True), Undecided)
    assert isinstance(result([execution("ex_1", 5)], [foreign]), Ambiguous)
    assert matched([execution("ex_1", 5), execution("ex_2", 8)], [foreign], early=True) == "ex_2"


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


def test_a_history_that_shows_payloads_decides_at_once():
    history = [row(execution("ex_1", 5), "b"), row(execution("ex_2", 5), "a"), row(execution("ex_3", 5))]
    foreign = [competitor(0, 9, "b"), competitor(0, 9, None, submitter="third")]
    for payload, own in (("a", "ex_2"), (None, "ex_3")):
        found = result(history, foreign, payload=payload, shows_payloads=True, early=True)
        assert isinstance(found, Match)
        assert (found.execution.id, DOUBT in found.reason) == (own, False)
    assert isinstance(result(history, foreign, payload="c", shows_payloads=True), NoMatch)


def test_the_only_execution_with_the_payload_matches_although_its_time_is_not_known_well_enough():
    before = row(execution("ex_1", -4), "a", widest=300)
    assert isinstance(result([before], payload="a", shows_payloads=True, early=True), Undecided)
    assert matched([before], payload="a", shows_payloads=True) == "ex_1"


def test_where_claims_may_be_lost_only_the_payload_shows_whose_execution_it_is():
    lost = record(payload="a", is_restored=True)
    assert isinstance(result([execution("ex_1")], record=lost, early=True), Undecided)
    assert isinstance(result([execution("ex_1")], record=lost), Ambiguous)
    assert isinstance(result([], record=lost), NoMatch)
    assert matched([row(execution("ex_1"), "a")], record=lost, shows_payloads=True) == "ex_1"
    without = record(is_restored=True)
    assert isinstance(result([execution("ex_1")], record=without, shows_payloads=True), Ambiguous)


def test_what_another_task_may_get_is_left_to_it_where_the_shared_state_may_have_lost_a_claim():
    lost = record(is_restored=True)
    found = result([execution("ex_1", 3)], [competitor(0, 5)], record=lost)
    assert isinstance(found, Undecided)
    assert found.timeout_seconds < math.inf
    assert isinstance(result([execution("ex_1", 3), execution("ex_2", 8)], [competitor(0, 5)], record=lost), Ambiguous)
    # Two such tasks don't wait for each other.
    other = competitor(0, 5)
    unsure = replace(other, record=replace(other.record, is_restored=True))
    assert isinstance(result([execution("ex_1", 3)], [unsure], record=lost), Ambiguous)


def test_executions_are_distributed_in_the_order_of_the_requests():
    two = [execution("ex_1", 3), execution("ex_2", 8)]
    assert matched(two, [competitor(0, 5)]) == "ex_1"
    assert matched(two, [competitor(-3, 5)]) == "ex_2"
    assert matched(two, [competitor(7, 9)]) == "ex_1"
    assert matched([execution("ex_1", 3), execution("ex_2", 4)], [competitor(2, 9)]) == "ex_1"


def in_order(own: Intent, others: Sequence[Intent], rows: Sequence[Row]) -> set[str]:
    """The executions that a submission may get, by trying all ways to distribute them in the order of time."""
    requests = sorted((own, *others), key=lambda each: each.sent_at)
    ways: dict[tuple[int, float], set[str]] = {}
    for count in range(1, len(rows) + 1):
        for takers, taken in product(combinations(requests, count), combinations(rows, count)):
            pairs = list(zip(takers, taken, strict=True))
            if own in takers and all(intent.covers(each) for intent, each in pairs):
                mine = taken[takers.index(own)]
                ways.setdefault((-count, abs(mine.at - own.sent_at)), set()).add(mine.execution.id)
    return ways[min(ways)]


TIMES = st.integers(0, 10)


@example({3, 7}, [(-2, 5), (5, 2), (1, 11)])
@given(st.sets(TIMES, min_size=1, max_size=4), st.lists(st.tuples(st.integers(-4, 12), st.integers(0, 12)), max_size=3))
def test_as_many_requests_as_possible_get_an_execution_and_the_submission_the_nearest_that_leaves_as_many(
    began, others
):
    rows = [row(execution(f"ex_{at}", at)) for at in sorted(began)]
    competing = [competitor(since, since + seconds) for since, seconds in others]
    own = search(rows).own
    assert matched(rows, competing) in in_order(own, competing, rows)


def test_an_execution_is_taken_although_another_task_is_nearer_to_it():
    """Tasks estimate times in ways that differ, and could wait for each other; the first claim decides."""
    assert matched([execution("ex_1", 5)], [competitor(4, 9)]) == "ex_1"


def test_of_two_executions_a_task_takes_the_one_that_another_task_cannot_have():
    assert matched([execution("ex_1", 1), execution("ex_2", 8)], [competitor(7, 20)]) == "ex_1"
    assert matched([execution("ex_1", 1), execution("ex_2", 8)], [competitor(-5, 2)]) == "ex_2"


@pytest.mark.parametrize(
    ("claim", "was_exchanged"),
    [
        (Claim("other#1"), True),
        (Claim("other#1", by_response=True), False),
        (Claim("other#1", payload_digest="another"), False),
    ],
)
def test_another_task_that_adopted_an_execution_like_this_one_has_taken_what_it_started(claim, was_exchanged):
    assert search([execution("ex_1")], (), {"ex_1": claim}).was_exchanged is was_exchanged
    assert not search([execution("ex_1", -900)], (), {"ex_1": claim}).was_exchanged


def window_of(found: AttemptRecord) -> Span:
    return Intent.of(found, NOON, now=NOON, age_seconds=2.0, effect_seconds=70.0).window


def test_a_window_reaches_from_the_request_to_its_last_possible_effect_with_a_second_and_a_half_to_spare():
    assert window_of(record(since_sent=10.0)) == Span(after(-11.5).timestamp(), after(2 - 10 + 70 + 1.5).timestamp())


def test_a_window_begins_by_the_hosts_clock_where_the_stores_clock_has_had_a_break():
    broken = record(since_sent=10.0, sent_at=after(-300), is_clock_kept=False)
    assert window_of(broken).low == after(-301.5).timestamp()


def test_a_window_begins_by_one_clock_and_ends_by_the_other_where_the_two_disagree():
    for since_sent, sent_at in ((3600.0, -10), (10.0, -3600)):
        found = window_of(record(since_sent=since_sent, sent_at=after(sent_at)))
        assert found == Span(after(-3601.5).timestamp(), after(2 - 10 + 70 + 1.5).timestamp())


def test_where_our_clocks_disagree_only_a_payload_shows_which_execution_it_is():
    own = Intent.of(record(since_sent=3600.0, sent_at=after(-10)), NOON, NOON, 2.0, 70.0)
    given = replace(search([execution("ex_1", -5)]), own=own)
    unknown = match(given, early=False)
    assert isinstance(unknown, Ambiguous)
    assert "clock that isn't known well enough" in unknown.reason
    shared = replace(given, competing=[replace(own, record=record("other"))])
    assert isinstance(match(shared, early=False), Undecided)
    paid = replace(own, record=replace(own.record, payload_digest="p"))
    found = match(replace(given, own=paid, rows=[row(execution("ex_1", -5), "p")], shows_payloads=True), early=False)
    assert isinstance(found, Match)
    assert found.execution.id == "ex_1"


def test_a_clock_that_is_wrong_by_millennia_breaks_nothing():
    ancient = record(sent_at=datetime.min.replace(tzinfo=UTC), since_sent=1e14, is_clock_kept=False)
    found = window_of(ancient)
    assert found.low == pytest.approx((NOON - TEN_YEARS).timestamp(), abs=2)
    assert describe(found).startswith("from 2016-01-04T11:59:58+00:00 to 2016-01-04T12:01:")


def test_a_payload_has_the_same_digest_however_its_keys_are_ordered_and_none_has_none():
    assert payload_digest({"a": 1, "b": [2]}) == payload_digest({"b": (2,), "a": 1}) != payload_digest({})
    assert payload_digest(None) is None


def test_all_versions_of_this_package_have_the_same_digest_of_a_payload():
    assert payload_digest({"b": 2, "a": [1, None, "é", 1.5]}) == "32f5f5751f3137fc"
