"""Read a list page by page, and ask a server that offers it only for the pages that have changed.

The reference documents neither paging nor conditional requests. A `next` link is followed on the same origin only. A
server that sends an ETag, or a Last-Modified old enough to be reliable, gets a conditional request the next time and
may return 304; any other server notices nothing.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

import httpx

from techflow_provider.client.errors import UnexpectedResponseError
from techflow_provider.client.flow import Call, FlowContext, exchange, url_of, without_key
from techflow_provider.client.json_stream import RowMemory, keep_all, no_subject, parse_list
from techflow_provider.client.models import Rows, StatusWords
from techflow_provider.client.parsing import DecodeError, Json, http_date, quote
from techflow_provider.client.text import get_logger

T = TypeVar("T")

log: logging.Logger = get_logger(__name__)

MAX_PAGES = 50
# A server may be wrong about what has not changed; after this time everything is requested again.
CACHE_SECONDS = 60.0
# A date has full seconds, so a list may change again within the second that its Last-Modified names.
SETTLED = timedelta(seconds=2)
LONGEST_VALIDATOR = 1000


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list.

    :param items: what the page lists
    :param next_url: the next page's URL as the server wrote it, or None
    :param headers: those of the response
    :param digest: the same for two pages with the same content
    :param listed: hashes of the ids that are waited for and that the page lists, with or without their items
    :param unreadable: how many of its rows can't be read, and are left out
    :param reason: what identifies the first of those, and what is wrong with it
    """

    items: tuple[T, ...]
    next_url: str | None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    digest: int = 0
    listed: frozenset[int] = frozenset()
    unreadable: int = 0
    reason: str | None = None

    @property
    def server_time(self) -> datetime:
        """The server's clock when it responded."""
        return server_time(self.headers)


def server_time(headers: Mapping[str, str]) -> datetime:
    """Return the server's clock when it responded, to the second, or this host's when it sends no Date."""
    return http_date(headers.get("date", "")) or datetime.now(UTC)


def page_reader(
    read: Callable[[Json, StatusWords, int], Rows[T]],
    skips: Callable[[Json], bool] = keep_all,
    memory: RowMemory | None = None,
    subject_of: Callable[[Json], int] = no_subject,
) -> Callable[[httpx.Response, StatusWords], Page[T]]:
    """Return what reads a response as a page.

    :param read: reads the items, given how many were left out
    :param skips: whether an item is left out before it is read
    :param memory: of the items that were read last; those that haven't changed are left out, too
    :param subject_of: returns what the memory records of an item
    """

    def read_page(response: httpx.Response, words: StatusWords) -> Page[T]:
        skipped = 0

        def skip(item: Json) -> bool:
            nonlocal skipped
            skips_it = skips(item)
            skipped += skips_it
            return skips_it

        value = parse_list(response.content, skip, response.headers.get("content-type", ""), memory, subject_of)
        linked = response.links.get("next", {}).get("url")
        following = value.get("next") if isinstance(value, dict) else None
        next_url = linked or (following if isinstance(following, str) and following else None)
        # Without its link, since a server that ignores the parameter repeats the rest.
        content = response.content.replace((next_url or "\0").encode(errors="replace"), b"")
        rows = read(value, words, skipped + (memory.matched if memory else 0))
        return Page(
            rows.items, next_url, response.headers, hash(content), unreadable=rows.unreadable, reason=rows.reason
        )

    return read_page


class ConditionalCache(Generic[T]):
    """The validators of the pages of one list, as they were read last.

    :param clock: monotonic seconds
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pages: dict[str, tuple[Page[T], dict[str, str], float]] = {}

    def __len__(self) -> int:
        return len(self._pages)

    def clear(self) -> None:
        """Forget everything, so that the next requests are unconditional."""
        self._pages.clear()

    def conditional(self, call: Call[Page[T]], url: str) -> Call[Page[T]]:
        """Return the call for a page on condition that it has changed; an unchanged one comes without items."""
        if url not in self._pages:
            return call
        unchanged, validators, read_at = self._pages[url]
        if self._clock() - read_at > CACHE_SECONDS:
            return call
        return replace(call, headers={**call.headers, **validators}, unchanged=unchanged)

    def add(self, url: str, page: Page[T], listed: frozenset[int]) -> Page[T]:
        """Remember a page that was read, and return it with what it lists.

        Pages that weren't read for a while are forgotten, since the URLs may contain cursors that change.
        """
        if url in self._pages and self._pages[url][0] is page:
            return page
        page = replace(page, listed=listed)
        self._pages.pop(url, None)
        validators = _validators(page.headers)
        if validators:
            self._pages[url] = replace(page, items=(), headers={}), validators, self._clock()
        for old in [each for each, (_, _, read_at) in self._pages.items() if self._clock() - read_at > CACHE_SECONDS]:
            del self._pages[old]
        return page


def _validators(headers: Mapping[str, str]) -> dict[str, str]:
    tag = headers.get("etag")
    if tag and _can_be_sent(tag):
        return {"if-none-match": tag}
    modified, now = headers.get("last-modified", ""), http_date(headers.get("date", ""))
    changed = http_date(modified)
    settled = changed is not None and now is not None and now - changed >= SETTLED
    return {"if-modified-since": modified} if settled and _can_be_sent(modified) else {}


def _can_be_sent(value: str) -> bool:
    return value.isascii() and value.isprintable() and len(value) <= LONGEST_VALIDATOR


@functools.lru_cache(maxsize=100)
def _report_unreadable(call: str, reason: str) -> None:
    """Log once per process that a row can't be read."""
    log.warning("%s: rows that can't be read are left out, such as %s", call, reason)


async def collect(call: Call[Page[T]], context: FlowContext) -> list[T]:
    """Carry out a call that lists, page by page, and return all items.

    :raises TechFlowError: every way in which it can fail, more than 50 pages among them
    """
    return [item for page in await read_pages(call, context) for item in page.items]


async def read_pages(call: Call[Page[T]], context: FlowContext) -> list[Page[T]]:
    """Carry out a call that lists, and return its pages, up to one that was read before.

    :raises TechFlowError: every way in which it can fail, more than 50 pages among them
    """
    page, following = await read_page(call, context)
    read, visited = [page], Visited(page, call, context)
    while following is not None and len(read) < MAX_PAGES:
        current = following
        page, following = await read_page(current, context)
        if visited.has(page, current, context):
            return read
        read.append(page)
    if following is None:
        return read
    items = sum(len(page.items) for page in read)
    detail = f"expected at most {MAX_PAGES} pages, got a link to a further one after {items} items"
    raise UnexpectedResponseError(str(call), httpx.codes.OK, detail)


async def read_page(
    call: Call[Page[T]], context: FlowContext, cache: ConditionalCache[T] | None = None
) -> tuple[Page[T], Call[Page[T]] | None]:
    """Read one page of a list, and return it with the call for the next one, or None when it is the last.

    :param cache: the pages of the last time; one that the server says is unchanged comes without items
    :raises TechFlowError: every way in which it can fail
    """
    url = url_of(call, context.settings)
    page = await exchange(cache.conditional(call, url) if cache is not None else call, context)
    if page.reason is not None:
        hidden = context.settings.holds_key(page.reason.encode(errors="replace"))
        _report_unreadable(str(call), "one that contains the API key" if hidden else page.reason)
    try:
        return page, next_page(call, page, url)
    except DecodeError as error:
        source = (page.next_url or "").encode(errors="replace")
        detail = without_key(str(error), error.received, source, context.settings)
        # Not chained: the cause quotes the response as it was received.
        raise UnexpectedResponseError(str(call), httpx.codes.OK, detail) from None


class Visited:
    """The pages of one list that were read: a server may repeat one for ever, under one URL or several.

    :param page: the first one
    :param call: that read it
    """

    def __init__(self, page: Page[T], call: Call[Page[T]], context: FlowContext) -> None:
        self._seen: set[str | int] = {url_of(call, context.settings), page.digest}

    def has(self, page: Page[T], call: Call[Page[T]], context: FlowContext) -> bool:
        """Whether a page was read before; it has been from now on."""
        before = len(self._seen)
        self._seen |= {url_of(call, context.settings), page.digest}
        return len(self._seen) < before + 2


def next_page(call: Call[Page[T]], page: Page[T], current_url: str) -> Call[Page[T]] | None:
    """Return the call for the page after this one, or None when this is the last.

    :param current_url: the URL of this page, against which the next one's is resolved
    :raises DecodeError: it isn't a URL, or is on another origin, where the key must not go
    """
    if page.next_url is None:
        return None
    current = httpx.URL(current_url)
    try:
        following = current.join(page.next_url)
        # The host is decoded only when it is read.
        same_origin = (following.scheme, following.host, following.port) == (current.scheme, current.host, current.port)
    except (httpx.InvalidURL, ValueError) as error:
        raise DecodeError("the URL of a next page", quote(page.next_url)) from error
    if not same_origin:
        raise DecodeError("a next page on the same origin", quote(page.next_url))
    return replace(call, url=str(following), params=None)
