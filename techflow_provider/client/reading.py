"""Read the execution history as waits do: no further than they need, and a long history over several polls."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import UTC, timedelta
from functools import partial
from typing import Protocol, TypeAlias

from techflow_provider.client.calls import list_executions
from techflow_provider.client.errors import BudgetTimeoutError, TechFlowError
from techflow_provider.client.flow import Call, FlowContext, url_of
from techflow_provider.client.history import History, HistoryFilter
from techflow_provider.client.json_stream import RowMemory
from techflow_provider.client.models import Execution
from techflow_provider.client.paging import Page, next_page, read_page
from techflow_provider.state.budget import RequestClass

PageCall: TypeAlias = Call[Page[Execution]]

# What stands for a value in the query of a poll.
PLACEHOLDER = re.compile(r"\{(workflow_id|since)\}")
# A history may cut its times off to the minute, and be written by another clock.
SERVER_CLOCK_TOLERANCE = timedelta(minutes=2)
DEFAULT_POLL_INTERVAL_SECONDS = 5.0
# However short the intervals of the waits are, one reader stays under 20 polls a minute.
SHORTEST_INTERVAL_SECONDS = 3.0
# A webhook's poll comes this soon after the last one.
WOKEN_INTERVAL_SECONDS = 1.0
LONGEST_POLL_SECONDS = 120.0
# A longer history is read over several polls. Each of them begins with the first page, which lists what is new.
PAGES_PER_POLL = 10


@dataclass(slots=True)
class PollMemory:
    """What a reader of the history remembers from one poll to the next.

    :param pages: of each URL, what its page listed last
    :param following: URL of the page at which the next poll continues; None begins anew
    :param wanted: the executions that were waited for when the history was begun
    :param listed: hashes of the ids of those that have been listed since
    :param is_log: whether the history has several rows for one execution, so that a later page may have the final one
    """

    pages: dict[str, RowMemory] = field(default_factory=dict)
    following: str | None = None
    wanted: frozenset[str] = frozenset()
    listed: set[int] = field(default_factory=set)
    is_log: bool = False

    def unlisted(self, history_filter: HistoryFilter) -> frozenset[str]:
        """Return the executions that a history which was read to its end doesn't list."""
        if history_filter.has_listed(self.listed):
            return frozenset()
        wanted = self.wanted & history_filter.known_statuses.keys()
        return frozenset(each for each in wanted if hash(each) not in self.listed)

    def forget(self) -> None:
        """Forget what was received, since it is needed again."""
        self.pages.clear()

    def rows_of(self, url: str) -> RowMemory:
        """Return what is remembered of a page; pages that were read long ago are forgotten."""
        rows = self.pages.pop(url, None) or RowMemory()
        self.pages[url] = rows
        while len(self.pages) > 2 * PAGES_PER_POLL:
            del self.pages[next(iter(self.pages))]
        return rows

    def restart(self) -> None:
        """Begin the history anew with the next poll."""
        self.following = None
        self.wanted, self.listed = frozenset(), set()


@dataclass(frozen=True, slots=True)
class ReadTerms:
    """What one reader expects of a poll that it may share with others.

    :param within_seconds: how long it waits for the result
    :param interval_seconds: the time between two polls that it would like
    :param max_age_seconds: how long before the call the poll may have begun
    :param keep_seconds: how long others poll for it as well, so that it finds the result when it comes back
    """

    within_seconds: float
    interval_seconds: float = DEFAULT_POLL_INTERVAL_SECONDS
    max_age_seconds: float = 0.0
    keep_seconds: float = 60.0

    @classmethod
    def every(cls, interval_seconds: float, within_seconds: float) -> ReadTerms:
        """Return the terms of a reader that polls all the time."""
        within, interval = min(within_seconds, LONGEST_POLL_SECONDS), max(interval_seconds, SHORTEST_INTERVAL_SECONDS)
        return cls(within, interval, interval_seconds, 60 + 4 * interval_seconds)


class HistoryReader(Protocol):
    """Reads the execution history for several processes."""

    async def read(self, context: FlowContext, history_filter: HistoryFilter, terms: ReadTerms) -> History:
        """Return what a poll shows of what is wanted; see `read_history`."""

    async def sleep(self, context: FlowContext, seconds: float) -> bool:
        """Sleep, and return at once with True when a webhook arrives; the next call reads what is new since."""


async def read_history(
    context: FlowContext, history_filter: HistoryFilter, terms: ReadTerms, memory: PollMemory | None = None
) -> History:
    """Return what a poll of the execution history shows, this process's own or another's (List Executions).

    :param history_filter: what is wanted
    :param memory: of the polls before; a shared reader has its own
    :raises TechFlowError: `BudgetTimeoutError` when there was no poll in time, or what reading the history raises
    """
    if context.reader is None:
        return await poll_history(context, history_filter, terms.within_seconds, memory)
    return await context.reader.read(context, history_filter, terms)


async def sleep_until_woken(context: FlowContext, seconds: float) -> bool:
    """Sleep, and return at once with True when a webhook says that there may be something new."""
    if context.reader is not None:
        return await context.reader.sleep(context, seconds)
    await context.io.sleep(seconds)
    return False


async def poll_history(
    context: FlowContext, history_filter: HistoryFilter, within_seconds: float, memory: PollMemory | None = None
) -> History:
    """Poll the execution history with the priority of polls, after the commands (List Executions).

    :param history_filter: what is wanted; the pages are read until all of it has been found
    :param within_seconds: how long to wait for slots in the budget, and for retries
    :param memory: of the polls before; rows that have not changed since are left out
    :raises TechFlowError: the first page can't be read
    """
    memory = memory or PollMemory()
    if history_filter.has_new:
        memory.forget()
    if memory.following is None:
        memory.wanted = frozenset(history_filter.known_statuses)
    began = context.clock()
    deadline = began + min(max(within_seconds, 0.001), LONGEST_POLL_SECONDS)
    call = replace(list_executions(RequestClass.POLL), params=_query(context.settings.history_query, history_filter))
    pages, following, failure = await _read_pages(call, context, deadline, history_filter, memory)
    unlisted = memory.unlisted(history_filter) if following is None and failure is None else frozenset()
    memory.following = following.url if following else None
    if following is None or _has_all(history_filter, memory, pages):
        memory.restart()
    return History(
        (item for each in pages for item in each.items),
        at=pages[0].at,
        began=began,
        unlisted=unlisted,
        failure=failure,
        unreadable=sum(each.unreadable for each in pages),
        reason=next((each.reason for each in pages if each.reason), None),
    )


async def _read_pages(
    call: PageCall, context: FlowContext, deadline: float, history_filter: HistoryFilter, memory: PollMemory
) -> tuple[list[Page[Execution]], PageCall | None, TechFlowError | None]:
    """Return the pages of one poll, the call for the next one if there is any, and why that can't be read."""
    pages, seen = list[Page[Execution]](), set[str | int]()
    following: PageCall | None = call
    while following is not None and len(pages) < PAGES_PER_POLL:
        if pages and _has_all(history_filter, memory, pages):
            break
        try:
            page = await _read(following, context, deadline, history_filter, memory)
            if page.marks & seen:
                return pages, None, None
            seen |= page.marks
            pages.append(page)
            following = next_page(following, page, context.settings)
        except TechFlowError as error:
            if not pages:
                raise
            return (pages, following, None) if isinstance(error, BudgetTimeoutError) else (pages, None, error)
        if len(pages) == 1 and following is not None and memory.following is not None:
            following = replace(call, url=memory.following, params=None)
    return pages, following, None


def _query(query: tuple[tuple[str, str], ...], history_filter: HistoryFilter) -> tuple[tuple[str, str], ...] | None:
    """Return what is sent with a poll: a filter for less than what is wanted is left out."""
    values: dict[str, str] = {}
    workflows = history_filter.workflow_ids
    if workflows and not history_filter.everything and not history_filter.known_statuses:
        since = [each for each in workflows.values() if each is not None]
        if len(workflows) == 1:
            values["workflow_id"] = next(iter(workflows))
        if len(since) == len(workflows):
            begin = min(since).astimezone(UTC) - SERVER_CLOCK_TOLERANCE
            values["since"] = begin.isoformat(timespec="seconds").replace("+00:00", "Z")
    sent = [(name, text) for name, text in query if all(each in values for each in PLACEHOLDER.findall(text))]
    return tuple((name, PLACEHOLDER.sub(lambda match: values[match[1]], text)) for name, text in sent) or None


async def _read(
    call: PageCall, context: FlowContext, deadline: float, history_filter: HistoryFilter, memory: PollMemory
) -> Page[Execution]:
    left = max(deadline - context.clock(), 0.001)
    context = replace(context, settings=replace(context.settings, deadline_seconds=left))
    url = url_of(call, context.settings)
    rows = memory.rows_of(url)
    rows.select = partial(history_filter.select, names=context.settings.names["execution"])
    try:
        page = await read_page(replace(call, read=list_executions(memory=rows).read), context)
    except TechFlowError:
        # It may have been read in part.
        memory.pages.pop(url)
        raise
    memory.is_log |= rows.has_repeats
    memory.listed |= page.subjects
    return page


def _has_all(history_filter: HistoryFilter, memory: PollMemory, pages: list[Page[Execution]]) -> bool:
    """Whether no further page is needed."""
    if history_filter.everything or history_filter.workflow_ids or not history_filter.has_listed(memory.listed):
        return False
    return not memory.is_log or history_filter.known_statuses.keys() <= {
        item.id for page in pages for item in page.items if item.ended
    }
