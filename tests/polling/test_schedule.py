"""When a poller polls next."""

from __future__ import annotations

import pytest

from techflow_provider.polling.schedule import LONGEST_STREAK_SECONDS, PollSchedule
from techflow_provider.state.snapshot import Snapshot

NOW = 1000.0


def budget(waiting: int = 0, requests_per_minute: int = 100) -> Snapshot:
    return Snapshot(requests_per_minute, 6, {}, 6, {}, 0.0, waiting, (), "memory", shared=True)


@pytest.mark.parametrize("wanted", [5.0, 60.0])
def test_one_poller_polls_as_often_as_its_waits_would_like(wanted: float) -> None:
    assert PollSchedule().interval(wanted, budget()) == wanted


def test_no_interval_is_so_short_that_one_poller_exceeds_the_polls_share() -> None:
    assert PollSchedule().interval(0.1, budget()) == 3.0


def test_the_share_is_one_of_the_limit() -> None:
    assert PollSchedule().interval(5.0, budget(requests_per_minute=20)) == pytest.approx(15.0)


def test_polls_become_rarer_while_commands_queue() -> None:
    assert PollSchedule().interval(5.0, budget(waiting=3)) == 10.0


def test_polls_become_rarer_while_webhooks_announce_completions_and_frequent_again_when_one_is_missed() -> None:
    schedule = PollSchedule()
    intervals = []
    for woken in (True, True, True, True, False):
        schedule.polled(woken=woken, found=True)
        intervals.append(schedule.interval(5.0, budget()))
    assert intervals == [10.0, 20.0, LONGEST_STREAK_SECONDS, LONGEST_STREAK_SECONDS, 5.0]


def test_a_webhook_ahead_of_the_history_causes_one_more_poll_at_the_usual_interval() -> None:
    schedule = PollSchedule()
    intervals = []
    for woken, found in ((True, True), (True, False), (False, False)):
        schedule.polled(woken=woken, found=found)
        intervals.append(schedule.interval(5.0, budget()))
    assert intervals == [10.0, 5.0, 10.0]


def test_webhooks_after_which_nothing_is_found_change_no_interval() -> None:
    schedule = PollSchedule()
    schedule.polled(woken=True, found=False)
    assert schedule.interval(5.0, budget()) == 5.0


def test_failures_make_polls_rarer_within_a_bound_until_one_succeeds() -> None:
    schedule = PollSchedule()
    intervals = []
    for _ in range(5):
        schedule.failed()
        intervals.append(schedule.interval(5.0, budget()))
    schedule.polled(woken=False, found=False)
    assert [*intervals, schedule.interval(5.0, budget())] == [10.0] * 5 + [5.0]


def test_a_slow_server_gets_a_rest_between_two_polls() -> None:
    schedule = PollSchedule()
    assert schedule.due(NOW, NOW + 0.1, 5.0) == NOW + 5.0
    assert schedule.due(NOW, NOW + 30.0, 5.0) == NOW + 33.0


def test_a_webhook_causes_a_poll_within_a_second_unless_another_one_just_did() -> None:
    schedule = PollSchedule()
    assert [schedule.wake(NOW + seconds) for seconds in (0.0, 1.0, 4.0, 20.0)] == [
        NOW + 1.0,
        NOW + 4.0,
        NOW + 7.0,
        NOW + 21.0,
    ]
