"""Read what the headers of a response state about the rate limit, in any of the usual spellings.

`RateLimit` and `RateLimit-Policy` as in the drafts of the IETF (draft-ietf-httpapi-ratelimit-headers: a dictionary in
07, items since 08), and their older form of one header for each number, with or without `X-`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx

from techflow_provider.client.parsing import http_date, read_time
from techflow_provider.state.learning import Quota

SEPARATE_HEADERS = ("ratelimit-", "x-ratelimit-", "x-rate-limit-")
# From this on, a reset is an instant, such as a number of seconds since 1970, and not a number of seconds from now.
EARLIEST_INSTANT = 1e9
PARAMETER = re.compile(r"([a-z]+) *= *(\d{1,15}(?:\.\d{1,9})?)")
NUMBER = re.compile(r"\d{1,15}(?:\.\d{1,9})?")
# Longer headers are not read.
MAX_LENGTH = 1000


def quota_of(response: httpx.Response) -> Quota | None:
    """Return what a response states, the tightest of several quotas; None where it states none that can be read."""
    headers = response.headers
    if "ratelimit" in headers:
        quotas = _from_items(headers["ratelimit"], headers.get("ratelimit-policy", ""))
    else:
        prefix = next((each for each in SEPARATE_HEADERS if f"{each}remaining" in headers), None)
        if prefix is None:
            return None
        quotas = _from_numbers(prefix, headers)
    try:
        return max(quotas, key=lambda quota: quota.reset_seconds / (quota.remaining + 1), default=None)
    except (ValueError, OverflowError):
        return None


def _from_items(text: str, policy: str) -> Iterator[Quota]:
    """Read `RateLimit` with its policies: `"name";r=50;t=30`, or `limit=100, remaining=50, reset=30`."""
    policies = {_name(item): _parameters(item) for item in policy[:MAX_LENGTH].split(",")}
    whole = _parameters(text)
    items = [text] if "remaining" in whole else text[:MAX_LENGTH].split(",")
    for item in items:
        found = _parameters(item)
        limits = policies.get(_name(item)) or policies.get(f"{found.get('limit', 0):.0f}") or {}
        limit = found.get("limit", limits.get("q"))
        remaining, reset = found.get("remaining", found.get("r")), found.get("reset", found.get("t", limits.get("w")))
        if remaining is not None and reset is not None:
            yield Quota(remaining if limit is None else limit, remaining, reset, limits.get("w", 0.0))


def _from_numbers(prefix: str, headers: httpx.Headers) -> Iterator[Quota]:
    """Read one header for each number; the limit may name its windows: `100, 100;w=60`."""
    limit = headers.get(f"{prefix}limit", "")
    first, left = NUMBER.match(limit), NUMBER.match(headers[f"{prefix}remaining"])
    seconds = _reset_seconds(headers.get(f"{prefix}reset", ""), headers)
    if first and left and seconds is not None:
        windows = {_name(item): _parameters(item) for item in limit[:MAX_LENGTH].split(",")}
        yield Quota(float(first[0]), float(left[0]), seconds, windows.get(first[0], {}).get("w", 0.0))


def _name(item: str) -> str:
    return item.partition(";")[0].strip().strip('"')


def _parameters(item: str) -> dict[str, float]:
    return {name: float(value) for name, value in PARAMETER.findall(item[:MAX_LENGTH].lower())}


def _reset_seconds(text: str, headers: httpx.Headers) -> float | None:
    """Return the seconds until a reset, which is a number of seconds, or an instant as a number or a date."""
    number = NUMBER.fullmatch(text.strip())
    if number and float(number[0]) < EARLIEST_INSTANT:
        return float(number[0])
    moment = read_time({"reset": text.strip()}, "reset")
    now = http_date(headers.get("date", "")) or datetime.now(UTC)
    return None if moment is None else max(0.0, (moment - now).total_seconds())
