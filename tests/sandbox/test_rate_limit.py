"""The rate limit: the five algorithms, the response 429, and which requests count."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import get_args

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from techflow_provider.sandbox import ManualClock, Sandbox
from techflow_provider.sandbox.limits import window
from techflow_provider.sandbox.settings import Algorithm, RetryAfter

ALGORITHMS = get_args(Algorithm)


def admitted(algorithm: Algorithm, times: list[float], burst: int | None = None) -> list[bool]:
    """Return which requests are admitted of 10 in 60 seconds."""
    counter = window(algorithm, 10, 60.0, burst, origin=0.0)
    return [counter.admit(time) == 0 for time in times]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_limit_is_admitted_at_once_and_not_one_more(algorithm):
    assert admitted(algorithm, [5.0] * 12) == [True] * 10 + [False] * 2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_after_two_idle_periods_the_whole_limit_is_available(algorithm):
    assert admitted(algorithm, [5.0] * 12 + [125.0] * 11)[12:] == [True] * 10 + [False]


def test_a_fixed_window_admits_twice_the_limit_around_its_boundary():
    assert admitted("fixed_window", [59.9] * 10 + [60.0] * 11) == [True] * 20 + [False]


def test_a_sliding_log_admits_again_one_period_after_each_request():
    times = [0.0] * 5 + [30.0] * 5 + [59.9, *[60.0] * 6, 89.9, *[90.0] * 5]
    expected = [True] * 10 + [False, *[True] * 5, False, False, *[True] * 5]
    assert admitted("sliding_log", times) == expected


def test_a_sliding_counter_weights_the_previous_period_by_its_overlap():
    assert admitted("sliding_counter", [59.9] * 10 + [60.0, 65.9, 66.0, 66.0, 72.0]) == [
        *[True] * 10,
        *[False, False, True, False, True],
    ]


@pytest.mark.parametrize("algorithm", ["token_bucket", "gcra"])
def test_a_bucket_refills_at_a_constant_rate(algorithm):
    assert admitted(algorithm, [0.0] * 10 + [5.9, 6.0, 6.0, 18.0, 18.0, 18.0]) == [
        *[True] * 10,
        *[False, True, False, True, True, False],
    ]


@pytest.mark.parametrize("algorithm", ["token_bucket", "gcra"])
def test_a_burst_may_be_smaller_than_the_limit(algorithm):
    assert admitted(algorithm, [0.0] * 4 + [600.0] * 4, burst=3) == [*[True] * 3, False] * 2


steps = st.lists(st.integers(0, 400), min_size=1, max_size=60)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(deadline=None)
@given(steps=steps, limit=st.integers(1, 8), burst=st.none() | st.integers(1, 8))
def test_a_rejection_returns_exactly_when_the_next_request_is_admitted(algorithm, steps, limit, burst):
    counter = window(algorithm, limit, 10.0, burst, origin=0.0)
    now = 0.0
    for step in steps:
        now += step / 100
        wait = counter.admit(now)
        if wait > 0.001:
            assert counter.admit(now + wait - 0.001) > 0
            now += wait + 0.000_001
            assert counter.admit(now) == 0


@settings(deadline=None)
@given(steps=steps, limit=st.integers(1, 8))
def test_no_interval_as_long_as_the_period_exceeds_a_sliding_logs_limit(steps, limit):
    counter = window("sliding_log", limit, 10.0, None, origin=0.0)
    times = [sum(steps[: end + 1]) / 100 for end in range(len(steps))]
    accepted = [time for time in times if counter.admit(time) == 0]
    assert all(later - earlier >= 9.999 for earlier, later in zip(accepted, accepted[limit:], strict=False))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_rejected_request_does_not_act_and_may_be_retried_after_retry_after(algorithm):
    clock = ManualClock()
    sandbox = Sandbox(clock=clock, limit=3, algorithm=algorithm)
    clock.advance(0.5)
    with sandbox_client(sandbox) as client:
        statuses = [client.post("/workflows", json={"name": "n"}).status_code for _ in range(4)]
        rejected = client.get("/executions")

        assert statuses == [200, 200, 200, 429]
        assert len(sandbox.workflows) == 3
        clock.advance(float(rejected.headers["retry-after"]))
        assert client.get("/executions").status_code == 200


def rejection(retry_after: RetryAfter, algorithm: Algorithm = "fixed_window") -> tuple[httpx.Response, ManualClock]:
    clock = ManualClock()
    sandbox = Sandbox(clock=clock, limit=1, retry_after=retry_after, algorithm=algorithm)
    clock.advance(20.5)
    with sandbox_client(sandbox) as client:
        client.get("/workflows")
        return client.get("/workflows"), clock


def sandbox_client(sandbox: Sandbox, key: str = "sandbox-key") -> httpx.Client:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.Client(base_url=sandbox.base_url, headers=headers, transport=sandbox.transport())


def test_retry_after_is_a_whole_number_of_seconds():
    response, _ = rejection(retry_after=True)
    assert response.headers["retry-after"] == "40"


def test_retry_after_may_be_a_date_that_is_never_too_early():
    response, clock = rejection(retry_after="date", algorithm="sliding_log")
    wait = (parsedate_to_datetime(response.headers["retry-after"]) - clock.now()).total_seconds()
    assert 60 <= wait <= 61


def test_retry_after_may_be_absent():
    response, _ = rejection(retry_after=False)
    assert response.status_code == 429
    assert "retry-after" not in response.headers


def test_each_key_has_its_own_limit_and_unknown_keys_do_not_count(clock):
    sandbox = Sandbox(clock=clock, limit=1, api_keys=("one", "two"))
    with sandbox_client(sandbox, "one") as one, sandbox_client(sandbox, "two") as two:
        with sandbox_client(sandbox, "three") as unknown:
            assert [unknown.get("/workflows").status_code for _ in range(3)] == [401] * 3
        assert [one.get("/workflows").status_code for _ in range(2)] == [200, 429]
        assert [two.get("/workflows").status_code for _ in range(2)] == [200, 429]


def test_requests_that_fail_also_count(clock):
    with sandbox_client(Sandbox(clock=clock, limit=2)) as client:
        statuses = [client.get("/nothing").status_code for _ in range(3)]
    assert statuses == [404, 404, 429]
