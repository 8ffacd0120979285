"""A server that offers it is asked only for what has changed, page by page, and never relied upon for long."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from techflow_provider.client import Execution
from techflow_provider.client.history import HistoryFilter
from techflow_provider.client.paging import CACHE_SECONDS, ConditionalCache
from techflow_provider.sandbox import ManualClock, Sandbox

Look = Callable[[], int]


@pytest.fixture
def look(ask: Any, clock: ManualClock) -> Look:
    """Read the history with a memory of the last time and return how many executions came."""
    memory: ConditionalCache[Execution] = ConditionalCache(clock.monotonic)

    def look() -> int:
        history = ask(lambda client: client.executions.poll(60.0, HistoryFilter(everything=True), memory))
        return len(history)

    return look


@pytest.mark.parametrize("page_size", [None, 2])
def test_pages_that_have_not_changed_come_without_items(
    look: Look, sandbox: Sandbox, workflow_id: str, page_size: int | None
) -> None:
    sandbox.etags, sandbox.page_size = True, page_size
    ids = [sandbox.start(workflow_id).id for _ in range(4)]
    assert (look(), look(), look()) == (4, 0, 0)
    sandbox.finish(ids[0])
    assert look() == (page_size or 4)
    assert sandbox.count(path="/executions", status=304) == (2 if page_size is None else 5)


def test_a_server_that_offers_no_validators_is_asked_for_all(look: Look, sandbox: Sandbox, workflow_id: str) -> None:
    sandbox.start(workflow_id)
    assert (look(), look()) == (1, 1)


def test_a_server_is_believed_for_a_minute(look: Look, sandbox: Sandbox, workflow_id: str, clock: ManualClock) -> None:
    sandbox.etags = True
    sandbox.finish(sandbox.start(workflow_id).id)
    assert (look(), look()) == (1, 0)
    clock.advance(CACHE_SECONDS + 1)
    assert (look(), look()) == (1, 0)


@pytest.mark.parametrize(("age", "asked"), [(0, 0), (1, 0), (2, 1), (3600, 1)])
def test_a_date_of_change_is_relied_upon_once_its_second_is_over(
    near: Any, clock: ManualClock, age: int, asked: int
) -> None:
    now = clock.now()
    conditions: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        dates = {"date": format_datetime(now, usegmt=True), "last-modified": format_datetime(changed, usegmt=True)}
        if "if-modified-since" in request.headers:
            conditions.append(request.headers["if-modified-since"])
            return httpx.Response(304, headers=dates)
        return httpx.Response(200, json=[{"id": "ex_1", "status": "running"}], headers=dates)

    changed = now - timedelta(seconds=age)
    memory: ConditionalCache[Execution] = ConditionalCache(clock.monotonic)
    ask = near(answer=answer)
    counts = [
        len(ask(lambda client: client.executions.poll(60.0, HistoryFilter(everything=True), memory))) for _ in "ab"
    ]
    assert counts == [1, 1 - asked]
    assert conditions == [format_datetime(changed, usegmt=True)] * asked
