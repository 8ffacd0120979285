"""When a call is sent again: the pure decision, and what it comes to with a server that fails."""

from __future__ import annotations

import math
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from techflow_provider.client import (
    BudgetTimeoutError,
    NotFoundError,
    RateLimitError,
    ResponseSizeError,
    RetryPolicy,
    ServerError,
    TransportError,
    UnexpectedResponseError,
)
from techflow_provider.client.calls import raw
from techflow_provider.client.retry import retry_after_seconds
from techflow_provider.sandbox import Fault
from techflow_provider.sandbox.settings import MANUAL_START
from techflow_provider.state.budget import LocalBudget

POLICY = RetryPolicy()
attempts = st.integers(1, 10**6)
jitters = st.floats(0, 1)
statuses = st.integers(200, 599)
WHATEVER = {
    "list": lambda client: client.workflows.list(),
    "update": lambda client: client.workflows.update("wf_1", description="d"),
    "delete": lambda client: client.workflows.delete("wf_1"),
}
COMMANDS = {
    "create": lambda client: client.workflows.create("n"),
    "execute": lambda client: client.workflows.execute("wf_1"),
}
PATCH = {"patch": lambda client: client.send(raw("PATCH", "/workflows/wf_1"))}


def lost(*, maybe_sent: bool) -> TransportError:
    return TransportError("GET /x", "no response", maybe_sent)


def busy(retry_after: str | None, date: str | None = None) -> httpx.Response:
    headers = {"retry-after": retry_after, "date": date}
    return httpx.Response(429, headers={name: value for name, value in headers.items() if value is not None})


@given(st.booleans(), statuses, attempts, jitters)
def test_only_a_server_error_of_an_idempotent_request_is_retried(idempotent, status, attempt, jitter):
    delay = POLICY.delay(httpx.Response(status), attempt, jitter, idempotent=idempotent)
    repeats = status >= 500 and idempotent and attempt < POLICY.max_attempts
    assert (delay is not None) == repeats


@given(st.booleans(), st.booleans(), attempts, jitters)
def test_a_request_without_a_response_is_retried_when_that_is_safe(idempotent, maybe_sent, attempt, jitter):
    delay = POLICY.delay(lost(maybe_sent=maybe_sent), attempt, jitter, idempotent=idempotent)
    repeats = (not maybe_sent or idempotent) and attempt < POLICY.max_attempts
    assert (delay is not None) == repeats


@given(attempts, jitters, st.floats(0, 100), st.floats(0, 1000))
def test_a_delay_doubles_up_to_its_bound_and_half_of_it_is_random(attempt, jitter, first, longest):
    policy = RetryPolicy(max_attempts=10**9, backoff_seconds=first, max_backoff_seconds=longest)
    delay = policy.delay(httpx.Response(503), attempt, jitter, idempotent=True)
    assert delay is not None
    whole = min(first * 2.0 ** min(attempt - 1, 30), longest)
    assert whole / 2 <= delay <= whole
    assert delay == policy.delay(httpx.Response(503), attempt, jitter, idempotent=True)


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        *((None, None), ("", None), ("0", 0), ("7", 7), (" 7 ", 7), ("0.5", 0.5), ("-5", 0), ("-0", 0)),
        *(("99999999999", 300), ("1e300", 300), ("9" * 5000, None), ("inf", None), ("nan", None)),
        *(("soon", None), ("7 seconds", None), ("7, 8", None), ("0x10", None), ("2020-11-01", None)),
    ],
)
def test_a_cool_down_is_read_from_seconds_and_bounded(retry_after, seconds):
    assert POLICY.requested_seconds(busy(retry_after)) == seconds


@pytest.mark.parametrize(
    ("retry_after", "date", "seconds"),
    [
        ("Sun, 01 Nov 2020 12:00:30 GMT", "Sun, 01 Nov 2020 12:00:00 GMT", 30),
        ("Sun, 01 Nov 2020 13:00:30 +0100", "Sun, 01 Nov 2020 12:00:00 GMT", 30),
        ("Sunday, 01-Nov-20 12:00:30 GMT", "Sun, 01 Nov 2020 12:00:00 GMT", 30),
        ("Sun, 01 Nov 2020 11:00:00 GMT", "Sun, 01 Nov 2020 12:00:00 GMT", 0),
        ("Tue, 31 Dec 2199 23:59:59 GMT", "Sun, 01 Nov 2020 12:00:00 GMT", 300),
        ("Fri, 31 Dec 9999 23:59:59 GMT", "Sun, 01 Nov 2020 12:00:00 GMT", None),
        ("Mon, 01 Jan 0001 00:00:00 GMT", "Sun, 01 Nov 2020 12:00:00 GMT", None),
        ("Sun, 99 Nov 2020 12:00:30 GMT", "Sun, 01 Nov 2020 12:00:00 GMT", None),
        ("Sun, 01 Nov 2020 12:00:30 GMT", "now", 0),
        ("Sun, 01 Nov 2020 12:00:30 GMT", None, 0),
    ],
)
def test_a_cool_down_is_read_from_a_date_against_the_servers_own_clock(retry_after, date, seconds):
    assert POLICY.requested_seconds(busy(retry_after, date)) == seconds


@given(st.text(st.characters(codec="ascii"), max_size=40), st.text(st.characters(codec="ascii"), max_size=40))
def test_no_header_breaks_the_reading_of_a_cool_down(retry_after, date):
    seconds = retry_after_seconds(httpx.Response(429, headers={"retry-after": retry_after, "date": date}))
    assert seconds is None or (seconds >= 0 and math.isfinite(seconds))


@pytest.mark.parametrize("retry_after", ["7", format_datetime(MANUAL_START.replace(second=7), usegmt=True)])
@pytest.mark.parametrize("operation", [*WHATEVER, *COMMANDS])
def test_a_call_that_was_refused_is_retried_after_the_cool_down(
    connect, sandbox, workflow_id, clock, *, operation, retry_after
):
    sandbox.faults.add(Fault(status=429, retry_after=retry_after, times=1))
    connect()({**WHATEVER, **COMMANDS}[operation])
    assert 7 <= clock.monotonic() < 20
    assert sandbox.count(status=429) == 1


@pytest.mark.parametrize("retry_after", [None, "soon", "-1", "0"])
def test_a_429_without_a_usable_retry_after_does_not_cause_a_flood(connect, sandbox, clock, retry_after):
    sandbox.faults.add(Fault(status=429, retry_after=retry_after))
    with pytest.raises(RateLimitError) as caught:
        connect(deadline_seconds=600)(WHATEVER["list"])
    assert 2 <= caught.value.attempts == sandbox.count() <= 62
    assert clock.monotonic() <= 600


@pytest.mark.parametrize("operation", WHATEVER)
@pytest.mark.parametrize("fault", ["reset", 500, 502, 503, 504])
def test_an_idempotent_call_survives_transient_failures(connect, sandbox, workflow_id, operation, fault):
    method = {"list": "GET", "update": "PUT", "delete": "DELETE"}[operation]
    matching: dict[str, Any] = {"method": method, "times": 2}
    sandbox.faults.add(Fault(status=fault, **matching) if isinstance(fault, int) else Fault(fault, **matching))
    connect()(WHATEVER[operation])
    assert sandbox.count(method) == 3


@pytest.mark.parametrize("operation", [*COMMANDS, *PATCH])
def test_a_command_that_may_have_been_sent_is_never_retried(connect, sandbox, workflow_id, operation):
    sandbox.faults.add(Fault("reset"))
    with pytest.raises(TransportError, match="the request may have reached the server"):
        connect()({**COMMANDS, **PATCH}[operation])
    assert sandbox.count() - sandbox.count("GET") == 1


@pytest.mark.parametrize("operation", COMMANDS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_command_that_meets_a_server_error_is_never_retried(connect, sandbox, workflow_id, operation, when):
    sandbox.faults.add(Fault(status=502, when=when))
    with pytest.raises(ServerError, match="returned 502"):
        connect()(COMMANDS[operation])
    assert sandbox.count("POST") == 1


def test_the_retry_of_a_deletion_whose_response_was_lost_finds_nothing(connect, sandbox, workflow_id):
    sandbox.faults.add(Fault("lost_response", method="DELETE", times=1))
    with pytest.raises(NotFoundError, match="after 2 requests"):
        connect()(WHATEVER["delete"])
    assert sandbox.workflows == ()


@pytest.mark.parametrize("kind", [httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout])
@pytest.mark.parametrize("operation", [*WHATEVER, *COMMANDS])
def test_a_call_that_was_certainly_not_sent_is_retried(connect, operation, kind):
    seen: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request.method)
        if len(seen) < 3:
            raise kind("refused")
        return httpx.Response(200, json=[] if operation == "list" else {"id": "x"})

    connect(respond=respond)({**WHATEVER, **COMMANDS}[operation])
    assert len(seen) == (4 if operation == "update" else 3)


def test_a_call_ends_at_its_deadline(connect, sandbox, clock):
    sandbox.faults.add(Fault(status=503))
    policy = RetryPolicy(max_attempts=10**6, backoff_seconds=8, max_backoff_seconds=8)
    with pytest.raises(ServerError, match=r"after \d+ requests") as caught:
        connect(deadline_seconds=60, retry=policy)(WHATEVER["list"])
    assert 7 <= caught.value.attempts <= 16
    assert clock.monotonic() <= 60


def test_without_a_slot_before_the_deadline_nothing_is_sent(connect, sandbox, clock):
    ask = connect(deadline_seconds=5, budget=LocalBudget(2, 1, clock.monotonic))
    ask(WHATEVER["list"])
    with pytest.raises(BudgetTimeoutError, match="GET /workflows was not sent") as caught:
        ask(WHATEVER["list"])
    assert caught.value.next_slot_seconds > 5
    assert sandbox.count() == 1


def test_a_response_over_the_size_limit_is_not_requested_again(connect, sandbox):
    sandbox.faults.add(Fault("huge", size=300_000))
    with pytest.raises(ResponseSizeError):
        connect(max_response_bytes=200_000)(WHATEVER["list"])
    assert sandbox.count() == 1


def test_an_unreadable_response_is_not_requested_again(connect, sandbox):
    sandbox.faults.add(Fault("html"))
    with pytest.raises(UnexpectedResponseError):
        connect()(WHATEVER["list"])
    assert sandbox.count() == 1
