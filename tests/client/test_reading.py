"""What waits read of a history that is long, repeats itself, or lists an execution more than once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from techflow_provider.client.history import ExecutionSelector, HistoryFilter
from techflow_provider.client.reading import PAGES_PER_POLL, PollMemory
from techflow_provider.sandbox import ManualClock
from tests.client.polls import poll_once

Rows = list[dict[str, Any]]
Connect = Callable[..., Any]


def row(execution_id: str, status: str | None, **fields: str) -> dict[str, Any]:
    return {
        "id": execution_id,
        "workflow_id": "wf_1",
        "status": status,
        "started_at": "2026-01-01T00:00:00Z",
        **fields,
    }


class Pages:
    """A server that lists pages, which a test may change.

    :param rows: those of each page
    :param url_of: returns the URL of the page that follows one
    """

    def __init__(self, rows: list[Rows], url_of: Callable[[int], str] = "/executions?page={}".format) -> None:
        self.rows = rows
        self.requested: list[int] = []
        self.failing: dict[int, int] = {}
        self._url_of = url_of

    def __call__(self, request: httpx.Request) -> httpx.Response:
        number = int(request.url.params.get("page", 0))
        self.requested.append(number)
        if number in self.failing:
            return httpx.Response(self.failing[number])
        following = self._url_of(number + 1) if number + 1 < len(self.rows) else None
        return httpx.Response(200, json={"executions": self.rows[number], "next": following})


def filler(pages: int) -> list[Rows]:
    return [[row(f"other_{page}_{number}", "running") for number in range(100)] for page in range(pages)]


def wait(execution_id: str) -> Callable[[Any], Any]:
    return lambda client: client.executions.wait(ExecutionSelector(execution_id), 3.0, 12.0)


@pytest.mark.parametrize("page", [0, 1])
def test_a_page_that_links_to_itself_is_read_once(connect: Connect, page: int) -> None:
    pages = Pages([*filler(page), [row("ex_1", "completed")], []], url_of=lambda number: f"?page={min(number, page)}")
    assert connect(respond=pages)(wait("ex_1")).ended
    assert pages.requested == list(range(page + 1))


@pytest.mark.parametrize("wanted", [wait("ex_none"), lambda client: client.executions.list()])
def test_a_server_that_ignores_the_page_is_read_up_to_the_repetition(connect: Connect, wanted: Any) -> None:
    requested: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        requested.append(str(request.url))
        return httpx.Response(200, json={"executions": [row("ex_1", "running")], "next": f"?page={len(requested)}"})

    memory: list[int] = []
    ask = connect(respond=respond)
    for _ in range(3):
        ask(poll_once())
        memory.append(len(requested))
    assert memory == [2, 4, 6]


def test_a_wait_reads_no_page_after_the_one_that_lists_its_execution(connect: Connect) -> None:
    pages = Pages([[row("ex_1", "completed")], *filler(59)])
    assert connect(respond=pages)(wait("ex_1")).ended
    assert pages.requested == [0]


def test_polls_of_a_running_execution_read_no_page_after_it(connect: Connect) -> None:
    pages = Pages([*filler(1), [row("ex_1", "running")], *filler(58)])
    ask = connect(respond=pages)
    memory = PollMemory()
    history_filter = HistoryFilter()
    history_filter.add(ExecutionSelector("ex_1"), "running")
    for _ in range(3):
        history = ask(poll_once(history_filter, memory=memory))
        assert (len(history), history.unlisted) == (0, frozenset())
    assert pages.requested == [0, 1] * 3


def test_a_long_history_is_read_over_several_polls_that_each_begin_with_the_first_page(connect: Connect) -> None:
    pages = Pages([*filler(64), [row("ex_1", "completed")]])
    assert connect(respond=pages)(lambda client: client.executions.wait(ExecutionSelector("ex_1"), 3.0, 3600.0)).ended
    assert pages.requested.count(0) == 8
    assert sorted(set(pages.requested)) == list(range(65))
    assert len(pages.requested) == 8 - 1 + 65


def test_an_execution_is_missing_only_when_all_pages_were_read(connect: Connect) -> None:
    pages = Pages(filler(25))
    ask, memory, history_filter = connect(respond=pages), PollMemory(), HistoryFilter()
    history_filter.add(ExecutionSelector("ex_1"))
    unlisted = []
    for _ in range(4):
        history_filter.add(ExecutionSelector("ex_2"))
        unlisted.append(ask(poll_once(history_filter, memory=memory)).unlisted)
        assert len(pages.requested) <= PAGES_PER_POLL * (len(unlisted))
    assert unlisted == [frozenset(), frozenset(), frozenset({"ex_1", "ex_2"}), frozenset()]


@pytest.mark.parametrize("status", [500, 404, 410])
def test_a_page_that_cannot_be_read_hides_no_other_and_ends_no_wait(
    connect: Connect, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    pages = Pages([[row("other", "running")], [row("ex_2", "running")], [row("ex_1", "completed")]])
    pages.failing[1] = status

    def respond(request: httpx.Request) -> httpx.Response:
        if len(pages.requested) > 6:
            pages.failing.clear()
        return pages(request)

    assert connect(respond=respond)(lambda client: client.executions.wait(ExecutionSelector("ex_1"), 3.0, 3600.0)).ended
    assert "A part of the execution history can't be read" in caplog.text


@pytest.mark.parametrize("url", ["https://elsewhere.example/executions?page=1", "http://["])
def test_a_link_that_is_not_followed_hides_no_row_of_its_page(connect: Connect, url: str) -> None:
    pages = Pages([[row("ex_1", "completed"), row("ex_2", "running")], []], url_of=lambda _: url)
    history = connect(respond=pages)(poll_once())
    assert [each.id for each in history] == ["ex_1", "ex_2"]
    assert "a next page" in str(history.failure)


LINES = [row("ex_1", "completed", finished_at="2026-01-01T00:10:00Z"), row("ex_1", "running"), row("ex_1", "queued")]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_the_final_one_of_several_rows_for_an_execution_counts(connect: Connect, order: list[int]) -> None:
    ask = connect(respond=Pages([[LINES[each] for each in order]]))
    assert ask(wait("ex_1")).ended
    assert ask(lambda client: client.executions.get("ex_1")).ended


def test_a_later_page_may_have_the_final_one_of_several_rows(connect: Connect) -> None:
    pages = Pages([[LINES[2], LINES[1]], *filler(2), [LINES[0]]])
    assert connect(respond=pages)(wait("ex_1")).ended


def test_pages_whose_urls_change_are_forgotten(connect: Connect, clock: ManualClock) -> None:
    count: Iterator[int] = iter(range(10**6))

    def respond(request: httpx.Request) -> httpx.Response:
        following = f"/executions?cursor={next(count)}" if "cursor" not in request.url.params else None
        body = json.dumps({"executions": [row("ex_1", "running")], "next": following})
        return httpx.Response(200, text=body)

    memory = PollMemory()
    ask = connect(respond=respond)
    for _ in range(100):
        ask(poll_once(memory=memory))
        clock.advance(5.0)
    assert len(memory.pages) <= 2 * PAGES_PER_POLL


QUERY = (("limit", "200"), ("workflow_id", "{workflow_id}"), ("since", "{since}"))
SINCE = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        (ExecutionSelector("ex_1"), {"limit": "200"}),
        (
            ExecutionSelector(workflow_id="wf_1", started_after=SINCE),
            {"limit": "200", "workflow_id": "wf_1", "since": "2025-12-31T23:58:00Z"},
        ),
        (None, {"limit": "200"}),
    ],
)
def test_a_query_is_sent_with_a_poll_as_far_as_it_hides_nothing_that_is_wanted(
    connect: Connect, wanted: ExecutionSelector | None, sent: dict[str, str]
) -> None:
    requests: list[dict[str, str]] = []

    def respond(request: httpx.Request) -> httpx.Response:
        requests.append(dict(request.url.params))
        following = "/executions?page=1" if "page" not in request.url.params else None
        return httpx.Response(200, json={"executions": [row("other", "running")], "next": following})

    history_filter = HistoryFilter(everything=wanted is None)
    if wanted is not None:
        history_filter.add(wanted)
    ask = connect(respond=respond, history_query=QUERY)
    ask(poll_once(history_filter))
    assert requests == [sent, {"page": "1"}]
    ask(lambda client: client.executions.list())
    assert requests[2:] == [{}, {"page": "1"}]


def test_the_next_execution_is_found_beside_one_without_a_status(connect: Connect) -> None:
    pages = Pages([[row("ex_1", None), row("ex_2", "completed")]])
    selector = ExecutionSelector(workflow_id="wf_1", started_after=datetime(2025, 1, 1, tzinfo=UTC))
    assert connect(respond=pages)(lambda client: client.executions.wait(selector, 3.0, 12.0)).id == "ex_2"
