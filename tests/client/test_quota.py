"""What responses state about the rate limit is read in every usual spelling, and nothing else breaks a response."""

from __future__ import annotations

import time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from techflow_provider.client.retry import quota_of
from techflow_provider.state.learning import Quota

DATE = "Thu, 26 Nov 2026 12:00:00 GMT"
EPOCH = 1795694400


def quota(**headers: str) -> Quota | None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return quota_of(httpx.Response(200, headers={"date": DATE, **named}))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"ratelimit": '"default";r=50;t=30', "ratelimit_policy": '"default";q=100;w=60'}, Quota(100, 50, 30, 60)),
        ({"ratelimit": "default;r=50;t=30", "ratelimit_policy": "default;q=100;w=60"}, Quota(100, 50, 30, 60)),
        (
            {"ratelimit": '"100-in-1min"; r=99; t=60', "ratelimit_policy": '"100-in-1min"; q=100; w=60; pk=:YWJj:'},
            Quota(100, 99, 60, 60),
        ),
        (
            {
                "ratelimit": '"burst";r=9;t=1, "hour";r=5;t=1800',
                "ratelimit_policy": '"burst";q=10;w=1, "hour";q=1000;w=3600',
            },
            Quota(1000, 5, 1800, 3600),
        ),
        ({"ratelimit": "limit=100, remaining=50, reset=30"}, Quota(100, 50, 30)),
        ({"ratelimit": "limit=100, remaining=50, reset=30", "ratelimit_policy": "100;w=60"}, Quota(100, 50, 30, 60)),
        ({"ratelimit": '"default";r=50', "ratelimit_policy": '"default";q=100;w=60'}, Quota(100, 50, 60, 60)),
        ({"ratelimit_limit": "100", "ratelimit_remaining": "50", "ratelimit_reset": "30"}, Quota(100, 50, 30)),
        (
            {"ratelimit_limit": "100, 100;w=60", "ratelimit_remaining": "50", "ratelimit_reset": "30"},
            Quota(100, 50, 30, 60),
        ),
        (
            {
                "x_ratelimit_limit": '10, 10;w=1;name="per-ip", 1000;w=3600',
                "x_ratelimit_remaining": "9",
                "x_ratelimit_reset": "1",
            },
            Quota(10, 9, 1, 1),
        ),
        (
            {"x_ratelimit_limit": "100", "x_ratelimit_remaining": "50", "x_ratelimit_reset": str(EPOCH + 30)},
            Quota(100, 50, 30),
        ),
        (
            {"x_ratelimit_limit": "100", "x_ratelimit_remaining": "50", "x_ratelimit_reset": f"{EPOCH + 30}000"},
            Quota(100, 50, 30),
        ),
        (
            {
                "x_rate_limit_limit": "100",
                "x_rate_limit_remaining": "50",
                "x_rate_limit_reset": "2026-11-26T12:00:30Z",
            },
            Quota(100, 50, 30),
        ),
        (
            {
                "x_ratelimit_limit": "100",
                "x_ratelimit_remaining": "50",
                "x_ratelimit_reset": "Thu, 26 Nov 2026 12:00:30 GMT",
            },
            Quota(100, 50, 30),
        ),
        ({"x_ratelimit_limit": "100", "x_ratelimit_remaining": "50", "x_ratelimit_reset": "1.5"}, Quota(100, 50, 1.5)),
    ],
)
def test_every_usual_spelling_is_read(headers, expected):
    assert quota(**headers) == expected


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"ratelimit": ""},
        {"ratelimit": "nothing"},
        {"ratelimit": "r=x;t=y"},
        {"x_ratelimit_remaining": "50"},
        {"x_ratelimit_limit": "100", "x_ratelimit_remaining": "many", "x_ratelimit_reset": "30"},
        {"x_ratelimit_limit": "100", "x_ratelimit_remaining": "50", "x_ratelimit_reset": "soon"},
        {"x_ratelimit_limit": "-1", "x_ratelimit_remaining": "-1", "x_ratelimit_reset": "-1"},
        {"x_ratelimit_limit": "nan", "x_ratelimit_remaining": "inf", "x_ratelimit_reset": "inf"},
    ],
)
def test_what_states_no_quota_is_ignored(headers):
    assert quota(**headers) is None


@given(st.dictionaries(st.sampled_from(["ratelimit", "ratelimit-policy", "x-ratelimit-reset"]), st.text(max_size=60)))
def test_no_header_raises_an_error(headers):
    encoded = {name: value.encode("utf-8", "replace") for name, value in headers.items()}
    quota_of(httpx.Response(200, headers=[(b"x-ratelimit-remaining", b"1"), (b"x-ratelimit-limit", b"1")]))
    quota_of(httpx.Response(200, headers=[(name.encode(), value) for name, value in encoded.items()]))


def test_a_long_header_takes_no_time():
    began = time.process_time()
    quota(ratelimit="a=1," * 1_000_000, ratelimit_policy='"x";' * 1_000_000)
    assert time.process_time() - began < 10
