"""A server with validators is asked only for the pages that have changed, and not relied upon for long."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from techflow_provider.client.history import HistoryFilter
from techflow_provider.client.paging import CACHE_SECONDS
from techflow_provider.client.reading import PollMemory
from techflow_provider.sandbox import ManualClock, Sandbox

Poll = Callable[[], int]


@pytest.fixture
def poll(ask: Any, clock: ManualClock) -> Poll:
    """Poll the history with a cache of the last poll and return the number of executions."""
    memory = PollMemory(clock.monotonic)

    def poll() -> int:
        history = ask(lambda client: client.executions.poll(60.0, HistoryFilter(everything=True), memory))
        return len(history)

    return poll


@pytest.mark.parametrize("page_size", [None, 2])
def test_pages_that_have_not_changed_come_without_items(
    poll: Poll, sandbox: Sandbox, workflow_id: str, page_size: int | None
) -> None:
    sandbox.etags, sandbox.page_size = True, page_size
    ids = [sandbox.start(workflow_id).id for _ in range(4)]
    assert (poll(), poll(), poll()) == (4, 0, 0)
    sandbox.finish(ids[0])
    assert poll() == 1
    assert sandbox.count(path="/executions", status=304) == (2 if page_size is None else 5)


def test_a_server_without_validators_is_asked_for_everything(poll: Poll, sandbox: Sandbox, workflow_id: str) -> None:
    sandbox.start(workflow_id)
    assert (poll(), poll()) == (1, 0)
    assert sandbox.count(path="/executions", status=200) == 2


def test_the_cache_is_relied_upon_for_a_minute(
    poll: Poll, sandbox: Sandbox, workflow_id: str, clock: ManualClock
) -> None:
    sandbox.etags = True
    sandbox.finish(sandbox.start(workflow_id).id)
    assert (poll(), poll()) == (1, 0)
    assert sandbox.count(path="/executions", status=200) == 1
    clock.advance(CACHE_SECONDS + 1)
    assert (poll(), poll()) == (0, 0)
    assert sandbox.count(path="/executions", status=200) == 2


@pytest.mark.parametrize(("age", "conditional"), [(0, 0), (1, 0), (2, 1), (3600, 1)])
def test_a_date_of_change_is_relied_upon_once_its_second_is_over(
    connect: Any, clock: ManualClock, age: int, conditional: int
) -> None:
    now = clock.now()
    conditions: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        dates = {"date": format_datetime(now, usegmt=True), "last-modified": format_datetime(changed, usegmt=True)}
        if "if-modified-since" in request.headers:
            conditions.append(request.headers["if-modified-since"])
            return httpx.Response(304, headers=dates)
        return httpx.Response(200, json=[{"id": "ex_1", "status": "running"}], headers=dates)

    changed = now - timedelta(seconds=age)
    memory = PollMemory(clock.monotonic)
    ask = connect(respond=respond)
    counts = [
        len(ask(lambda client: client.executions.poll(60.0, HistoryFilter(everything=True), memory))) for _ in "ab"
    ]
    assert counts == [1, 0]
    assert conditions == [format_datetime(changed, usegmt=True)] * conditional
