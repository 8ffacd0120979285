"""Decide whether and when a request is sent again; pure functions of what happened, without clock or waiting."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias, TypeGuard

import httpx

from techflow_provider.client.errors import ResponseSizeError, TransportError
from techflow_provider.client.parsing import http_date
from techflow_provider.client.quota import quota_of

Outcome: TypeAlias = httpx.Response | TransportError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to send a request again.

    A 429 was not executed (assumption: a refused request has no effect), so it is retried whatever the method, until
    the caller's deadline; the rate budget decides how long everybody waits then. A 5xx or a broken connection is
    retried only when the method is idempotent or the request certainly never reached the server. A response that is
    too large is never requested again. Everything else is a result.

    >>> client = Client(api_key="your_key", retry=RetryPolicy(max_attempts=1))

    :param max_attempts: requests sent for one call at most; 429s are not counted
    :param backoff_seconds: delay before the second request, doubled each time
    :param max_backoff_seconds: upper bound of that delay
    :param max_retry_after_seconds: upper bound of what a Retry-After may ask for
    """

    max_attempts: int = 4
    backoff_seconds: float = 0.5
    max_backoff_seconds: float = 30.0
    max_retry_after_seconds: float = 300.0

    def delay(self, outcome: Outcome, attempt: int, jitter: float, *, idempotent: bool) -> float | None:
        """Return the seconds to wait before the next request, or None when there is no retry.

        :param attempt: 1 after the first request; 429s are not counted
        :param jitter: a random number from 0 to 1
        :param idempotent: whether sending the request twice does the same as sending it once
        """
        if isinstance(outcome, ResponseSizeError) or attempt >= self.max_attempts:
            return None
        if isinstance(outcome, TransportError):
            safe = idempotent or not outcome.maybe_sent
        else:
            safe = idempotent and outcome.is_server_error
        if not safe:
            return None
        backoff = min(self.backoff_seconds * 2.0 ** min(attempt - 1, 30), self.max_backoff_seconds)
        return backoff * (0.5 + jitter / 2)

    def requested_seconds(self, response: httpx.Response) -> float | None:
        """Return the cool-down that a 429 asks for, within the bound, or None when it names none."""
        requested = retry_after_seconds(response)
        if requested is None and (quota := quota_of(response)) is not None and quota.remaining < 1:
            requested = quota.reset_seconds
        return None if requested is None else min(requested, self.max_retry_after_seconds)


def backoff_seconds(interval_seconds: float, failures: int, longest_seconds: float = 60.0) -> float:
    """Return the delay before the next attempt: the interval, doubled with each failure in a row, up to a bound."""
    return min(interval_seconds * 2.0 ** min(failures, 30), max(interval_seconds, longest_seconds))


def is_rate_limited(outcome: Outcome) -> TypeGuard[httpx.Response]:
    """Whether the outcome is a 429."""
    return isinstance(outcome, httpx.Response) and outcome.status_code == httpx.codes.TOO_MANY_REQUESTS


def retry_after_seconds(response: httpx.Response) -> float | None:
    """Return the seconds of a Retry-After, given as a number or an HTTP date, or None when there is no usable one.

    A date is read against the response's own Date, so that a wrong clock on either side does not matter.
    """
    value = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        moment, now = http_date(value), http_date(response.headers.get("date", ""))
        seconds = (moment - (now or datetime.now(UTC))).total_seconds() if moment else math.nan
    return max(0.0, seconds) if math.isfinite(seconds) else None
