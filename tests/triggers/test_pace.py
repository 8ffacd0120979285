"""When a poller looks next."""

from __future__ import annotations

import pytest

from techflow_provider.state.account import RequestClass
from techflow_provider.state.snapshot import Snapshot
from techflow_provider.triggers.pace import LONGEST_ANNOUNCED_SECONDS, Pace

BEGAN = 1000.0


def budget(polls: int = 0, waiting: int = 0, requests_per_minute: int = 100) -> Snapshot:
    used = {RequestClass.COMMAND: 0, RequestClass.POLL: polls}
    return Snapshot(requests_per_minute, 6, used, 6, {}, 0.0, waiting, (), "memory", shared=True)


def after(looks: int, seconds: float = 60.0) -> tuple[Pace, float]:
    """Return a pace that has looked so often in the last seconds, and the time now."""
    pace = Pace(BEGAN)
    for number in range(looks):
        pace.looked(BEGAN + seconds * (number + 1) / looks, rang=False, news=False)
    return pace, BEGAN + seconds


def test_one_poller_looks_as_often_as_its_waits_would_like() -> None:
    pace, now = after(12)
    assert pace.interval(5.0, budget(polls=12), now) == 5.0


def test_no_wait_is_so_eager_that_one_poller_exceeds_the_polls_share() -> None:
    pace, now = after(20)
    assert pace.interval(0.1, budget(polls=20), now) == 3.0


@pytest.mark.parametrize("pollers", [2, 5, 10])
def test_pollers_of_one_key_divide_the_polls_share(pollers: int) -> None:
    pace, now = after(12)
    assert pace.interval(5.0, budget(polls=12 * pollers), now) == pytest.approx(max(5.0, 3.0 * pollers))


def test_the_share_is_one_of_the_limit() -> None:
    pace, now = after(12)
    assert pace.interval(5.0, budget(polls=12, requests_per_minute=20), now) == pytest.approx(15.0)


def test_polls_of_the_triggerer_before_are_not_counted_as_those_of_another_one() -> None:
    pace, now = after(2, seconds=10.0)
    assert pace.interval(5.0, budget(polls=14), now) == 5.0


def test_looks_become_rarer_while_commands_queue() -> None:
    pace, now = after(12)
    assert pace.interval(5.0, budget(polls=12, waiting=3), now) == 10.0


def test_looks_become_rarer_while_webhooks_announce_the_ends_and_frequent_again_when_one_is_missed() -> None:
    pace, now = after(1)
    intervals = []
    for rang in (True, True, True, True, False):
        pace.looked(now, rang=rang, news=True)
        intervals.append(pace.interval(5.0, budget(), now))
    assert intervals == [10.0, 20.0, LONGEST_ANNOUNCED_SECONDS, LONGEST_ANNOUNCED_SECONDS, 5.0]


def test_rings_that_bring_nothing_earn_no_trust() -> None:
    pace, now = after(1)
    pace.looked(now, rang=True, news=False)
    assert pace.interval(5.0, budget(), now) == 5.0


def test_failures_make_looks_rarer_within_a_bound_until_one_succeeds() -> None:
    pace, now = after(1)
    intervals = []
    for _ in range(5):
        pace.failed(now)
        intervals.append(pace.interval(5.0, budget(), now))
    pace.looked(now, rang=False, news=False)
    assert [*intervals, pace.interval(5.0, budget(), now)] == [10.0] * 5 + [5.0]


def test_a_slow_server_gets_a_rest_between_two_looks() -> None:
    pace, now = after(1)
    assert pace.due(now, now + 0.1, 5.0, budget()) == now + 5.0
    assert pace.due(now, now + 30.0, 5.0, budget()) == now + 33.0


def test_a_ring_brings_a_look_within_a_second_unless_it_never_stops_ringing() -> None:
    assert after(11)[0].rung(BEGAN) == BEGAN + 1.0
    assert after(12)[0].rung(BEGAN) == BEGAN + 3.0
