"""Read what the headers of a response state about the rate limit.

`RateLimit` and `RateLimit-Policy` as in the IETF's draft (draft-ietf-httpapi-ratelimit-headers), or one header for each
number, with or without `X-`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx

from techflow_provider.client.parsing import http_date, read_time
from techflow_provider.state.learning import Quota

PREFIXES = ("ratelimit-", "x-ratelimit-", "x-rate-limit-")
# From this on, a reset is an instant, such as a number of seconds since 1970, and not a number of seconds from now.
EARLIEST_INSTANT = 1e9
# `"name";r=50;t=30` in the draft; `limit=100, remaining=50, reset=30` in its version 7.
PARAMETER = re.compile(r"([a-z]+) *= *(\d{1,15}(?:\.\d{1,9})?)")
NUMBER = re.compile(r"\d{1,15}(?:\.\d{1,9})?")
# Longer headers are not read.
MAX_LENGTH = 1000


def quota_of(response: httpx.Response) -> Quota | None:
    """Return what a response states, the tightest of several quotas; None where it states none that can be read."""
    quotas = [*_from_items(response.headers), *_from_numbers(response.headers)]
    return max(quotas, key=lambda quota: quota.reset_seconds / (quota.remaining + 1), default=None)


def _from_items(headers: httpx.Headers) -> Iterator[Quota]:
    policies = dict(_items(headers.get("ratelimit-policy", "")))
    text = headers.get("ratelimit", "")
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
