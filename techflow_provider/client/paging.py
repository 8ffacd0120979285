"""Remember which pages of a list were read lately, so that a server that offers it is asked only for what has changed.

The reference documents no conditional requests. A server that sends an ETag, or a Last-Modified that is old enough to
be relied upon, is asked with it the next time, and may answer 304; any other server notices nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Generic, TypeVar

from techflow_provider.client.calls import Call, Page
from techflow_provider.client.parsing import http_date

T = TypeVar("T")

# A server may be wrong about what has not changed; after this time it is asked for everything again.
MEMORY_SECONDS = 60.0
# A date has full seconds, so a list may change again within the second that its Last-Modified names.
SETTLED = timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class _Read(Generic[T]):
    unchanged: Page[T]
    headers: Mapping[str, str]
    at: float


class ConditionalCache(Generic[T]):
    """The pages of one list as they were read last.

    :param clock: monotonic seconds
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pages: dict[str, _Read[T]] = {}

    def clear(self) -> None:
        """Forget everything, so that all is asked for again."""
        self._pages.clear()

    def conditional(self, call: Call[Page[T]], url: str) -> Call[Page[T]]:
        """Return the call for a page with the condition that it has changed; unchanged, it comes without items."""
        known = self._pages.get(url)
        if known is None or self._clock() - known.at > MEMORY_SECONDS:
            return call
        return replace(call, headers={**call.headers, **known.headers}, unchanged=known.unchanged)

    def note(self, url: str, page: Page[T]) -> None:
        """Remember a page that was read."""
        known = self._pages.get(url)
        if known is not None and known.unchanged is page:
            return
        headers = _conditions(page.headers)
        if headers:
            self._pages[url] = _Read(replace(page, items=(), headers={}), headers, self._clock())
        else:
            self._pages.pop(url, None)


def _conditions(headers: Mapping[str, str]) -> dict[str, str]:
    tag = headers.get("etag")
    if tag:
        return {"if-none-match": tag}
    modified, now = headers.get("last-modified", ""), http_date(headers.get("date", ""))
    changed = http_date(modified)
    settled = changed is not None and now is not None and now - changed >= SETTLED
    return {"if-modified-since": modified} if settled else {}
