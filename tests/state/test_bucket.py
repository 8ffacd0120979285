"""The rate that keeps every window of a minute inside the limit, and the policy that goes with it, as numbers."""

from __future__ import annotations

import math

import pytest

from techflow_provider.state.gcra import Policy, Rate

JITTER_SECONDS = 1.5
WHOLE = Policy.of(100, 6)


@pytest.mark.parametrize("limit", [*range(2, 30), 100, 1000])
@pytest.mark.parametrize("burst", [1, 2, 6, 40])
def test_no_window_of_a_minute_and_the_jitter_holds_more_than_the_limit_and_no_faster_rate_would_do(limit, burst):
    rate = Rate.within(limit, 60.0, burst)
    most = rate.burst + (60.0 + JITTER_SECONDS) / rate.interval_seconds
    assert limit - 0.05 < most < limit


@pytest.mark.parametrize(("limit", "kept"), [(1, 1), (2, 1), (3, 1), (4, 2), (11, 5), (12, 6), (100, 6)])
def test_a_burst_leaves_half_of_the_limit_to_the_steady_rate_and_is_one_at_least(limit, kept):
    assert Rate.within(limit, 60.0, 6).burst == kept


def test_a_limit_of_one_allows_a_request_a_minute():
    assert Rate.within(1, 60.0, 6).interval_seconds == pytest.approx(61.501)


def test_a_burst_leaves_at_once_and_the_next_request_waits_for_the_interval():
    rate = Rate(6, 2.0)
    assert (rate.tolerance(), rate.tolerance(1), rate.tolerance(3)) == (10.0, 0.0, 4.0)
    assert Policy(rate).drained_seconds == 12.0


@pytest.mark.parametrize(("burst", "part"), [(1, 1), (2, 1), (3, 2), (6, 3), (7, 4)])
def test_polls_may_use_half_of_the_burst_and_one_at_least(burst, part):
    assert Rate(burst, 1.0).polls_burst == part


def test_polls_get_a_fifth_of_the_rate_when_commands_want_it_all():
    assert WHOLE.poll_share == 0.2
    assert WHOLE.poll_interval_seconds == pytest.approx(5 * WHOLE.rate.interval_seconds)


def test_pauses_grow_from_five_seconds_to_ten_and_last_a_second_at_least():
    pauses = (WHOLE.first_pause_seconds, WHOLE.longest_pause_seconds, WHOLE.shortest_pause_seconds)
    assert pauses == (5.0, 10.0, 1.0)


def test_who_wakes_a_second_late_has_missed_the_slot_and_a_probe_is_given_up_after_half_a_minute():
    assert (WHOLE.late_seconds, WHOLE.probe_seconds) == (1.0, 30.0)
    assert Policy(WHOLE.rate) == WHOLE


def test_a_shorter_minute_makes_every_time_shorter_alike():
    tenth = Policy.of(100, 6, 6.0)
    for name in ("late", "first_pause", "longest_pause", "shortest_pause", "probe", "poll_interval", "drained"):
        whole = getattr(WHOLE, f"{name}_seconds")
        assert math.isclose(getattr(tenth, f"{name}_seconds"), whole / 10, rel_tol=1e-3)
    assert (tenth.rate.burst, tenth.poll_share) == (WHOLE.rate.burst, WHOLE.poll_share)
