"""Decide whether and when a request is sent again, and read what responses state about that; no clock, no waiting.

Rate limits are stated by `RateLimit` and `RateLimit-Policy` as in the IETF's draft
(draft-ietf-httpapi-ratelimit-headers), or by one header for each number, with or without `X-`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias, TypeGuard

import httpx

from techflow_provider.client.errors import ResponseSizeError, TransportError
from techflow_provider.client.parsing import http_date, read_time
from techflow_provider.state.learning import Quota

Outcome: TypeAlias = httpx.Response | TransportError

PREFIXES = ("ratelimit-", "x-ratelimit-", "x-rate-limit-")
# From this on, a reset is an instant, such as a number of seconds since 1970, and not a number of seconds from now.
EARLIEST_INSTANT = 1e9
# `"name";r=50;t=30` in the draft; `limit=100, remaining=50, reset=30` in its version 7.
PARAMETER = re.compile(r"([a-z]+) *= *(\d{1,15}(?:\.\d{1,9})?)")
NUMBER = re.compile(r"\d{1,15}(?:\.\d{1,9})?")
# Longer headers are not read.
MAX_LENGTH = 1000


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


def quota_of(response: httpx.Response) -> Quota | None:
    """Return what a response states, the tightest of several quotas; None where it states none that can be read."""
    quotas = [*_from_items(response.headers), *_from_numbers(response.headers)]
    return max(quotas, key=lambda quota: quota.reset_seconds / (quota.remaining + 1), default=None)


def _from_items(headers: httpx.Headers) -> Iterator[Quota]:
    text = headers.get("ratelimit", "")
    if not text:
        return
    policies = dict(_items(headers.get("ratelimit-policy", "")))
    for name, found in _items(text.replace(",", ";") if "remaining" in text else text):
        policy = policies.get(name) or policies.get(f"{found.get('limit', 0):.0f}") or {}
        remaining = found.get("r", found.get("remaining"))
        reset = found.get("t", found.get("reset", policy.get("w")))
        if remaining is not None and reset is not None:
            yield Quota(found.get("limit", policy.get("q", remaining)), remaining, reset, policy.get("w", 0.0))


def _items(text: str) -> Iterator[tuple[str, dict[str, float]]]:
    for item in text[:MAX_LENGTH].lower().split(","):
        parameters = {name: float(value) for name, value in PARAMETER.findall(item)}
        yield item.partition(";")[0].strip().strip('"'), parameters


def _from_numbers(headers: httpx.Headers) -> Iterator[Quota]:
    for prefix in PREFIXES:
        limit = headers.get(f"{prefix}limit", "")
        first, left = NUMBER.match(limit), NUMBER.match(headers.get(f"{prefix}remaining", ""))
        if first and left and (seconds := _reset_seconds(headers.get(f"{prefix}reset", ""), headers)) is not None:
            # It may name its windows: `100, 100;w=60`.
            window = dict(_items(limit)).get(first[0], {}).get("w", 0.0)
            yield Quota(float(first[0]), float(left[0]), seconds, window)


def _reset_seconds(text: str, headers: httpx.Headers) -> float | None:
    """Return the seconds until a reset, which is a number of seconds, or an instant as a number or a date."""
    number = NUMBER.fullmatch(text.strip())
    if number and float(number[0]) < EARLIEST_INSTANT:
        return float(number[0])
    moment = read_time({"reset": text.strip()}, "reset")
    now = http_date(headers.get("date", "")) or datetime.now(UTC)
    return None if moment is None else max(0.0, (moment - now).total_seconds())
