"""A server with validators is asked only for the pages that have changed, and not relied upon for long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from techflow_provider.client.paging import CACHE_SECONDS
from techflow_provider.client.reading import PollMemory
from techflow_provider.sandbox import ManualClock, Sandbox
from tests.client.polls import poll_once

Poll = Callable[[], int]


@pytest.fixture
def poll(ask: Any, clock: ManualClock) -> Poll:
    """Poll the history with a cache of the last poll and return the number of executions."""
    memory = PollMemory()

    def poll() -> int:
        history = ask(poll_once(memory=memory))
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
