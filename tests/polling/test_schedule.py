"""When a poller looks next."""

from __future__ import annotations

import pytest

from techflow_provider.polling.schedule import LONGEST_STREAK_SECONDS, PollSchedule
from techflow_provider.state.snapshot import Snapshot

NOW = 1000.0


def budget(waiting: int = 0, requests_per_minute: int = 100) -> Snapshot:
    return Snapshot(requests_per_minute, 6, {}, 6, {}, 0.0, waiting, (), "memory", shared=True)


def after(looks: int) -> PollSchedule:
    """Return a pace that has looked so often in the last minute."""
    pace = PollSchedule()
    for number in range(looks):
        pace.polled(NOW - number / looks, woken=False, found=False)
    return pace


@pytest.mark.parametrize("wanted", [5.0, 60.0])
def test_one_poller_looks_as_often_as_its_waits_would_like(wanted: float) -> None:
    assert PollSchedule().interval(wanted, budget(), pollers=1) == wanted


def test_no_wait_is_so_eager_that_one_poller_exceeds_the_polls_share() -> None:
    assert PollSchedule().interval(0.1, budget(), pollers=1) == 3.0


@pytest.mark.parametrize(("pollers", "interval"), [(1, 5.0), (2, 6.0), (5, 15.0), (10, 30.0)])
def test_pollers_of_one_key_divide_the_polls_share(pollers: int, interval: float) -> None:
    assert PollSchedule().interval(5.0, budget(), pollers) == pytest.approx(interval)


def test_the_share_is_one_of_the_limit() -> None:
    assert PollSchedule().interval(5.0, budget(requests_per_minute=20), pollers=1) == pytest.approx(15.0)


def test_looks_become_rarer_while_commands_queue() -> None:
    assert PollSchedule().interval(5.0, budget(waiting=3), pollers=1) == 10.0


def test_looks_become_rarer_while_webhooks_announce_the_ends_and_frequent_again_when_one_is_missed() -> None:
    pace = PollSchedule()
    intervals = []
    for rang in (True, True, True, True, False):
        pace.polled(NOW, woken=rang, found=True)
        intervals.append(pace.interval(5.0, budget(), 1))
    assert intervals == [10.0, 20.0, LONGEST_STREAK_SECONDS, LONGEST_STREAK_SECONDS, 5.0]


def test_a_ring_before_its_news_brings_one_more_look_at_the_usual_interval() -> None:
    pace = PollSchedule()
    intervals = []
    for rang, news in ((True, True), (True, False), (False, False)):
        pace.polled(NOW, woken=rang, found=news)
        intervals.append(pace.interval(5.0, budget(), 1))
    assert intervals == [10.0, 5.0, 10.0]


def test_rings_that_bring_nothing_earn_no_trust() -> None:
    pace = PollSchedule()
    pace.polled(NOW, woken=True, found=False)
    assert pace.interval(5.0, budget(), 1) == 5.0


def test_failures_make_looks_rarer_within_a_bound_until_one_succeeds() -> None:
    pace = PollSchedule()
    intervals = []
    for _ in range(5):
        pace.failed(NOW)
        intervals.append(pace.interval(5.0, budget(), 1))
    pace.polled(NOW, woken=False, found=False)
    assert [*intervals, pace.interval(5.0, budget(), 1)] == [10.0] * 5 + [5.0]


def test_a_slow_server_gets_a_rest_between_two_looks() -> None:
    pace = PollSchedule()
    assert pace.due(NOW, NOW + 0.1, 5.0, budget(), 1) == NOW + 5.0
    assert pace.due(NOW, NOW + 30.0, 5.0, budget(), 1) == NOW + 33.0


def test_a_ring_brings_a_look_within_a_second_unless_it_never_stops_ringing() -> None:
    assert after(11).woken_due(NOW) == NOW + 1.0
    assert after(12).woken_due(NOW) == NOW + 3.0
