"""Decide whether and when a call is sent again; a pure function of what happened, without clock or waiting."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx

from techflow_provider.client.calls import Call
from techflow_provider.client.errors import ResponseSizeError, TransportError
from techflow_provider.client.parsing import http_date

Outcome = httpx.Response | TransportError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to send a call again.

    A 429 was not executed (assumption: a refused request has no effect), so it is repeated whatever the method, until
    the caller's deadline; how long everybody waits then is for the rate budget to say. A 5xx or a broken connection is
    repeated only when the call is idempotent or surely never reached the server; one that is too large never is.
    Everything else is an answer.

    :param max_attempts: requests sent for one call at most; 429s are not counted
    :param backoff_seconds: delay before the second request, doubled each time
    :param max_backoff_seconds: bound of that delay
    :param max_retry_after_seconds: bound of what a Retry-After may ask for
    """

    max_attempts: int = 4
    backoff_seconds: float = 0.5
    max_backoff_seconds: float = 30.0
    max_retry_after_seconds: float = 300.0

    def delay(self, call: Call[Any], outcome: Outcome, attempt: int, jitter: float) -> float | None:
        """Return the seconds to wait before the next request, or None when the outcome stands.

        :param attempt: 1 after the first request; 429s are not counted
        :param jitter: a random number from 0 to 1
        """
        if attempt >= self.max_attempts or not _may_repeat(call, outcome):
            return None
        backoff = min(self.backoff_seconds * 2.0 ** min(attempt - 1, 30), self.max_backoff_seconds)
        return backoff * (0.5 + jitter / 2)

    def asked_seconds(self, outcome: Outcome) -> float | None:
        """Return the pause that a 429 asks for, within the bound, or None when it names none."""
        asked = retry_after_seconds(outcome)
        return None if asked is None else min(asked, self.max_retry_after_seconds)


def is_rate_limited(outcome: Outcome) -> bool:
    """Whether the outcome is a 429."""
    return isinstance(outcome, httpx.Response) and outcome.status_code == httpx.codes.TOO_MANY_REQUESTS


def _may_repeat(call: Call[Any], outcome: Outcome) -> bool:
    if isinstance(outcome, ResponseSizeError):
        return False
    if isinstance(outcome, TransportError):
        return call.idempotent or not outcome.maybe_sent
    return outcome.is_server_error and call.idempotent


def retry_after_seconds(outcome: Outcome) -> float | None:
    """Return the seconds of a Retry-After, given as a number or an HTTP date, or None when there is no usable one.

    A date is read against the response's own Date, so that a wrong clock on either side does not matter.
    """
    if isinstance(outcome, TransportError):
        return None
    value = outcome.headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        moment, now = http_date(value), http_date(outcome.headers.get("date", ""))
        seconds = (moment - (now or datetime.now(UTC))).total_seconds() if moment else math.nan
    return max(0.0, seconds) if math.isfinite(seconds) else None
