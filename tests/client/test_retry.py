"""When a call is sent again: the pure decision, and what it comes to with a server that fails."""

from __future__ import annotations

import gzip
import math
import socket
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
BROKEN = ["reset", "drop", "lost_response", "garbage", "wrong_length"]


def lost(*, maybe_sent: bool) -> TransportError:
    return TransportError("GET /x", "no answer", maybe_sent)


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
def test_a_delay_doubles_up_to_its_bound_and_half_of_it_is_chance(attempt, jitter, first, longest):
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
def test_a_pause_is_read_from_seconds_and_bounded(retry_after, seconds):
    assert POLICY.requested_seconds(busy(retry_after)) == seconds


@pytest.mark.parametrize(
    ("retry_after", "date", "seconds"),
    [
        ("Sun, 01 Nov 2020 12:00:30 GMT", "Sun, 01 Nov 2020 12:00:00 GMT", 30),
        ("Sun, 01 Nov 2020 13:00:30 +0100", "Sun, 01 Nov 2020 12:00:00 GMT", 30),
        ("Sunday, 01-Nov-20 12:00:30 GMT", "Sun, 01 Nov 2020 12:00:00 GMT", 30),
        ("Sun, 01 Nov 2020 11:00:00 GMT", "Sun, 01 Nov 2020 12:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", "Sun, 01 Nov 2020 12:00:00 GMT", 300),
        ("Sun, 99 Nov 2020 12:00:30 GMT", "Sun, 01 Nov 2020 12:00:00 GMT", None),
        ("Sun, 01 Nov 2020 12:00:30 GMT", "now", 0),
        ("Sun, 01 Nov 2020 12:00:30 GMT", None, 0),
    ],
)
def test_a_pause_is_read_from_a_date_against_the_servers_own_clock(retry_after, date, seconds):
    assert POLICY.requested_seconds(busy(retry_after, date)) == seconds


@given(st.text(st.characters(codec="ascii"), max_size=40), st.text(st.characters(codec="ascii"), max_size=40))
def test_no_header_breaks_the_reading_of_a_pause(retry_after, date):
    seconds = retry_after_seconds(httpx.Response(429, headers={"retry-after": retry_after, "date": date}))
    assert seconds is None or (seconds >= 0 and math.isfinite(seconds))


@pytest.mark.parametrize("form", ["7", "date"])
@pytest.mark.parametrize("operation", [*WHATEVER, *COMMANDS])
def test_a_call_that_was_refused_comes_again_after_the_pause(connect, sandbox, workflow_id, clock, *, operation, form):
    retry_after = format_datetime(MANUAL_START.replace(second=7), usegmt=True) if form == "date" else form
    sandbox.faults.add(Fault(status=429, retry_after=retry_after, times=1))
    connect()({**WHATEVER, **COMMANDS}[operation])
    assert 7 <= clock.monotonic() < 20
    assert sandbox.count(status=429) == 1


@pytest.mark.parametrize("retry_after", [None, "soon", "-1", "0"])
def test_a_429_without_a_usable_pause_does_not_make_a_flood(near, sandbox, clock, retry_after):
    sandbox.faults.add(Fault(status=429, retry_after=retry_after))
    with pytest.raises(RateLimitError) as caught:
        near(deadline_seconds=600)(WHATEVER["list"])
    assert 2 <= caught.value.attempts == sandbox.count() <= 62
    assert clock.monotonic() <= 600


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        (operation, fault)
        for operation in WHATEVER
        for fault in [*BROKEN, 500, 502, 503, 504]
        # A deletion that took place finds nothing when it comes again.
        if operation != "delete" or fault not in ("lost_response", "wrong_length")
    ],
)
def test_an_idempotent_call_survives_failures_in_passing(connect, sandbox, workflow_id, operation, fault):
    method = {"list": "GET", "update": "PUT", "delete": "DELETE"}[operation]
    fits: dict[str, Any] = {"method": method, "times": 2}
    sandbox.faults.add(Fault(status=fault, **fits) if isinstance(fault, int) else Fault(fault, **fits))
    connect()(WHATEVER[operation])
    assert sandbox.count(method) == 3


@pytest.mark.parametrize("operation", COMMANDS)
@pytest.mark.parametrize("fault", BROKEN)
def test_a_command_that_may_have_left_is_never_repeated(connect, sandbox, workflow_id, operation, fault):
    sandbox.faults.add(Fault(fault))
    with pytest.raises(TransportError, match="it may have reached the server") as caught:
        connect()(COMMANDS[operation])
    assert caught.value.maybe_sent
    assert sandbox.count("POST") == 1


@pytest.mark.parametrize("operation", COMMANDS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_command_that_meets_a_server_error_is_never_repeated(near, sandbox, workflow_id, operation, when):
    sandbox.faults.add(Fault(status=502, when=when))
    with pytest.raises(ServerError, match="returned 502"):
        near()(COMMANDS[operation])
    assert sandbox.count("POST") == 1


def test_a_lost_answer_leaves_one_execution(connect, sandbox, workflow_id):
    sandbox.faults.add(Fault("lost_response"))
    with pytest.raises(TransportError):
        connect()(COMMANDS["execute"])
    assert len(sandbox.executions) == 1


def test_a_deletion_whose_answer_was_lost_finds_nothing_when_it_comes_again(connect, sandbox, workflow_id):
    sandbox.faults.add(Fault("lost_response", method="DELETE", times=1))
    with pytest.raises(NotFoundError, match="after 2 requests"):
        connect()(WHATEVER["delete"])
    assert sandbox.workflows == ()


@pytest.mark.parametrize("kind", [httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout])
@pytest.mark.parametrize("operation", [*WHATEVER, *COMMANDS])
def test_a_call_that_surely_did_not_leave_is_repeated(near, operation, kind):
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.method)
        if len(seen) < 3:
            raise kind("refused")
        return httpx.Response(200, json=[] if operation == "list" else {"id": "x"})

    near(answer=answer)({**WHATEVER, **COMMANDS}[operation])
    assert len(seen) == (4 if operation == "update" else 3)


@pytest.mark.parametrize("operation", COMMANDS)
def test_a_port_that_nobody_listens_on_is_said_to_have_seen_nothing(connect, clock, operation):
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        with pytest.raises(TransportError, match=r"no connection \(.*\); it never reached the server") as caught:
            connect(base_url=url)(COMMANDS[operation])
    assert not caught.value.maybe_sent
    assert clock.monotonic() > 0


def test_a_hang_ends_with_the_time_out(connect, sandbox):
    sandbox.faults.add(Fault("hang"))
    ask = connect(timeout_seconds=0.2, retry=RetryPolicy(max_attempts=1))
    with pytest.raises(TransportError, match="no response within the time-out"):
        ask(WHATEVER["list"])
    assert sandbox.count() == 1


def test_a_call_ends_at_its_deadline(near, sandbox, clock):
    sandbox.faults.add(Fault(status=503))
    policy = RetryPolicy(max_attempts=10**6, backoff_seconds=8, max_backoff_seconds=8)
    with pytest.raises(ServerError, match=r"after \d+ requests") as caught:
        near(deadline_seconds=60, retry=policy)(WHATEVER["list"])
    assert 7 <= caught.value.attempts <= 16
    assert clock.monotonic() <= 60


def test_without_a_slot_before_the_deadline_nothing_is_sent(near, sandbox, clock):
    ask = near(deadline_seconds=5, budget=LocalBudget(2, 1, clock.monotonic))
    ask(WHATEVER["list"])
    with pytest.raises(BudgetTimeoutError, match="GET /workflows was not sent") as caught:
        ask(WHATEVER["list"])
    assert caught.value.next_slot_seconds > 5
    assert sandbox.count() == 1


def test_an_answer_over_the_bound_is_refused(connect, sandbox):
    sandbox.faults.add(Fault("huge", size=300_000))
    ask = connect(max_response_bytes=200_000)
    with pytest.raises(TransportError, match=r"larger than the limit of 200000 bytes; it may have reached"):
        ask(COMMANDS["create"])
    assert len(sandbox.workflows) == sandbox.count("POST") == 1


def test_an_answer_over_the_bound_is_not_asked_for_again(near, sandbox):
    sandbox.faults.add(Fault("huge", size=300_000))
    with pytest.raises(ResponseSizeError):
        near(max_response_bytes=200_000)(WHATEVER["list"])
    assert sandbox.count() == 1


def test_the_bound_is_one_of_the_decoded_body(near):
    packed = gzip.compress(b" " * 10_000_000)
    assert len(packed) < 200_000

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(packed))

    with pytest.raises(TransportError, match="larger than the limit"):
        near(answer=answer, max_response_bytes=200_000)(COMMANDS["create"])


def test_a_compressed_answer_is_read(near):
    packed = gzip.compress(b'{"id": "wf_1"}')
    answer = lambda _: httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(packed))  # noqa: E731
    assert near(answer=answer)(COMMANDS["create"]).id == "wf_1"


def test_a_broken_compression_is_no_answer(near):
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(b"no gzip"))

    with pytest.raises(TransportError, match="content encoding is invalid"):
        near(answer=answer)(COMMANDS["create"])


def test_an_answer_that_drips_for_too_long_is_refused(near, sandbox):
    sandbox.faults.add(Fault("slow", seconds=200))
    with pytest.raises(TransportError, match=r"longer than the limit of 120 s; it may have reached"):
        near()(COMMANDS["create"])
    assert sandbox.count("POST") == 1


def test_an_unreadable_answer_is_not_asked_for_again(near, sandbox):
    sandbox.faults.add(Fault("html"))
    with pytest.raises(UnexpectedResponseError):
        near()(WHATEVER["list"])
    assert sandbox.count() == 1
