"""Read a list page by page. The reference documents no paging; a `next` link is followed on the same origin only."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

import httpx

from techflow_provider.client.errors import UnexpectedResponseError
from techflow_provider.client.flow import Call, FlowContext, exchange, url_of
from techflow_provider.client.json_stream import RowMemory, parse_list
from techflow_provider.client.models import Rows, StatusWords
from techflow_provider.client.parsing import DecodeError, Json, Names, http_date, quote
from techflow_provider.client.settings import Settings
from techflow_provider.client.text import get_logger

T = TypeVar("T")

log: logging.Logger = get_logger(__name__)

MAX_PAGES = 50


@dataclass(frozen=True, slots=True)
class Page(Rows[T]):
    """One page of a list.

    :param next_url: the next page's URL as the server wrote it, or None
    :param at: the server's clock when it responded
    :param marks: its URL, and a hash of its content; a page that shares one with another is the same
    :param subjects: hashes of the ids that are waited for and that the page lists, with or without their rows
    """

    next_url: str | None
    at: datetime
    marks: frozenset[str | int]
    subjects: frozenset[int]


def server_time(headers: Mapping[str, str]) -> datetime:
    """Return the server's clock when it responded, to the second, or this host's when it sends no Date."""
    return http_date(headers.get("date", "")) or datetime.now(UTC)


def page_reader(
    kind: str, read: Callable[[Json, StatusWords, Names, int], Rows[T]], memory: RowMemory | None = None
) -> Callable[[httpx.Response, Settings], Page[T]]:
    """Return what reads a response as a page.

    :param kind: what the rows are: `execution` or `workflow`
    :param read: reads the rows, given this TechFlow's words and names, and how many were left out
    :param memory: of the rows that were read last
    """

    def read_page(response: httpx.Response, settings: Settings) -> Page[T]:
        rows_read = memory or RowMemory()
        value = parse_list(response.content, response.headers.get("content-type", ""), rows_read)
        linked = response.links.get("next", {}).get("url")
        following = value.get("next") if isinstance(value, dict) else None
        next_url = linked or (following if isinstance(following, str) and following else None)
        # Without its link, since a server that ignores the parameter repeats the rest.
        content = response.content.replace((next_url or "\0").encode(errors="replace"), b"")
        rows = read(value, settings.status_words, settings.names[kind], rows_read.left_out)
        marks: frozenset[str | int] = frozenset({str(response.request.url), hash(content)})
        subjects = frozenset(rows_read.subjects)
        return Page(rows.items, rows.unreadable, rows.reason, next_url, server_time(response.headers), marks, subjects)

    return read_page


@functools.lru_cache(maxsize=100)
def _report_unreadable(call: str, reason: str) -> None:
    """Log once per process that a row can't be read."""
    log.warning("%s: rows that can't be read are left out, such as %s", call, reason)


async def collect(call: Call[Page[T]], context: FlowContext) -> list[T]:
    """Carry out a call that lists, page by page up to one that was read before, and return all items.

    :raises TechFlowError: every way in which it can fail, more than 50 pages among them
    """
    items: list[T] = []
    seen: set[str | int] = set()
    for _ in range(MAX_PAGES):
        page = await read_page(call, context)
        if page.marks & seen:
            return items
        seen |= page.marks
        items += page.items
        following = next_page(call, page, context.settings)
        if following is None:
            return items
        call = following
    detail = f"expected at most {MAX_PAGES} pages, got a link to a further one after {len(items)} items"
    raise UnexpectedResponseError(str(call), httpx.codes.OK, detail)


async def read_page(call: Call[Page[T]], context: FlowContext) -> Page[T]:
    """Read one page of a list.

    :raises TechFlowError: every way in which it can fail
    """
    page = await exchange(call, context)
    if page.reason is not None:
        hidden = context.settings.holds_key(page.reason.encode(errors="replace"))
        _report_unreadable(str(call), "one that contains the API key" if hidden else page.reason)
    return page


def next_page(call: Call[Page[T]], page: Page[T], settings: Settings) -> Call[Page[T]] | None:
    """Return the call for the page after this one, or None when this is the last.

    :raises UnexpectedResponseError: it isn't a URL, or is on another origin, where the key must not go
    """
    if page.next_url is None:
        return None
    current = httpx.URL(url_of(call, settings))
    try:
        following = current.join(page.next_url)
        # The host is decoded only when it is read.
        same_origin = (following.scheme, following.host, following.port) == (current.scheme, current.host, current.port)
        expected = None if same_origin else "a next page on the same origin"
    except (httpx.InvalidURL, ValueError):
        expected = "the URL of a next page"
    if expected is None:
        return replace(call, url=str(following), params=None)
    error = DecodeError(expected, quote(page.next_url))
    detail = settings.without_key(str(error), error.received, page.next_url.encode(errors="replace"))
    raise UnexpectedResponseError(str(call), httpx.codes.OK, detail)
