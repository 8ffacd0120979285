"""What the times of a history say about when an execution began, by the clock of the server's `Date`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from techflow_provider.client.models import Execution
from techflow_provider.submission.times import ServerClock, Span, began_at

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
DAY_SECONDS = 86400.0
MINUTE_AFTER = "2026-01-01T12:01:00Z"


def seen(text: Any, name: str = "created_at") -> Execution:
    return Execution.read({"id": "ex_1", "status": "running", name: text})


def started(second: int, sent: float, responded: float, name: str = "created_at", zone: str = "Z") -> Any:
    """An execution that began at a second after noon, and when its request and response were by `Date`."""
    at = (NOON + timedelta(seconds=second)).replace(tzinfo=None)
    return seen(f"{at.isoformat()}{zone}", name), from_noon(sent, responded)


def from_noon(low: float, high: float) -> Span:
    return Span(NOON.timestamp() + low, NOON.timestamp() + high)


def clock_of(*starts: Any, more: tuple[Execution, ...] = ()) -> ServerClock:
    return ServerClock.of([*(each for each, _ in starts), *more], starts)


def test_a_span_has_its_limits_in_common_with_others():
    span = Span(1.0, 3.0)
    assert [span.meets(Span(low, low + 1.0)) for low in (-0.5, 0.0, 2.0, 3.0, 3.5)] == [False, True, True, True, False]
    assert span.minus(Span(1.0, 1.5)) == Span(-0.5, 2.0)
    assert span.middle == 2.0


@pytest.mark.parametrize(
    ("times", "precision"),
    [
        (["2026-01-01T00:00:00Z", "2026-01-02"], DAY_SECONDS),
        (["2026-01-01T00:00:00Z", MINUTE_AFTER], 60.0),
        ([MINUTE_AFTER, "2026-01-01T12:01:01Z"], 1.0),
        ([MINUTE_AFTER, "2026-01-01T12:01:01.5Z"], 0.0),
        ([None, MINUTE_AFTER], 60.0),
        ([None], 0.0),
        ([], 0.0),
    ],
)
def test_times_are_as_precise_as_the_most_precise_of_them(times, precision):
    assert ServerClock.of([seen(each) for each in times], ()).precision == precision


@pytest.mark.parametrize("text", [MINUTE_AFTER, "Thu, 01 Jan 2026 12:01:00 GMT", 1767268860, "1767268860", None])
def test_times_with_a_zone_may_be_five_minutes_from_date_while_no_start_shows_more(text):
    assert ServerClock.of([seen(text)], ()) == ServerClock(60.0 if text else 0.0, Span(-300.0, 300.0), Span(-1.0, 1.0))


@pytest.mark.parametrize("text", ["2026-01-01T12:01:00", "2026-01-01 12:01", "2026-01-01", "20260101"])
def test_times_without_a_zone_may_be_from_any_place_on_earth(text):
    hours = ServerClock.of([seen(MINUTE_AFTER), seen(text)], ()).widest
    assert hours == Span(-26 * 3600.0, 26 * 3600.0)


@pytest.mark.parametrize("zone", ["+02:00", "-0200", "+02", " UTC", "z", "-02", ".5-02"])
def test_a_zone_may_be_written_in_many_ways(zone):
    assert ServerClock.of([seen(f"2026-01-01T12:01:00{zone}")], ()).widest == Span(-300.0, 300.0)


@pytest.mark.parametrize(
    ("starts", "offset"),
    [
        # A second that was cut off or rounded, and the time between request and response.
        ([started(31, 0, 2)], (28.5, 32)),
        ([started(31, 0, 2), started(33, 3, 4)], (28.5, 31)),
        ([started(31, 0, 2), started(41, 8, 8.5)], (32, 32)),
        # Where they don't agree, all of them count.
        ([started(31, 0, 2), started(61, 0, 2)], (28.5, 62)),
    ],
)
def test_the_offset_is_what_the_starts_show_give_or_take_half_a_second(starts, offset):
    found = clock_of(*starts)
    assert found.is_measured
    assert found.offset == Span(offset[0] - 0.5, offset[1] + 0.5)
    # The two clocks may drift apart.
    is_one = len(starts) < 2 or starts[1] != started(61, 0, 2)
    assert found.widest == Span(offset[0] - (5.5 if is_one else 305.5), offset[1] + 5.5)


QUEUED = [started(second, second, second, "started_at") for second in (31, 33, 35)]


@pytest.mark.parametrize(
    ("starts", "more", "earlier_seconds"),
    [
        (QUEUED, (), 0.0),
        (QUEUED[:2], (), 300.0),
        ([started(31, 31, 31)], (), 0.0),
        ([started(31, 31, 31)], (seen(MINUTE_AFTER, "started_at"),), 0.0),
        ([started(31, 31, 31)], (seen(None),), 300.0),
        (QUEUED, (seen(None),), 300.0),
    ],
)
def test_an_execution_may_have_been_requested_before_it_left_a_queue_that_no_time_rules_out(
    starts, more, earlier_seconds
):
    found = clock_of(*starts, more=more)
    assert found.offset == Span(-1.0, 1.5)
    assert found.widest == Span(-6.0 - earlier_seconds, 6.5)


def test_local_times_may_change_by_an_hour():
    assert clock_of(started(31, 31, 31, zone="")).widest == Span(-6.0 - 3600.0, 6.5 + 3600.0)


def test_a_start_without_a_time_shows_nothing():
    assert not ServerClock.of([seen(None)], [(seen(None), from_noon(0, 1))]).is_measured


def test_an_execution_began_at_its_time_less_the_offset():
    clock = ServerClock(60.0, Span(-300.0, 300.0))
    assert clock.began(seen(MINUTE_AFTER), Span(-1.0, 2.0)) == from_noon(28.0, 121.0)
    assert clock.began(seen(None), Span(-1.0, 2.0)) is None


def test_the_time_of_the_request_counts_before_that_of_the_start():
    both = Execution.read(
        {"id": "ex_1", "status": "x", "started_at": "2026-01-01T12:05:00Z", "queued_at": MINUTE_AFTER}
    )
    assert began_at(both) == NOON + timedelta(minutes=1)
    assert began_at(seen(MINUTE_AFTER, "started_at")) == NOON + timedelta(minutes=1)
