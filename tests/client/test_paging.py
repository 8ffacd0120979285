"""What has not changed since the last poll is left out of the next one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from techflow_provider.client.reading import PollMemory
from techflow_provider.sandbox import Sandbox
from tests.client.polls import poll_once

Poll = Callable[[], int]


@pytest.fixture
def poll(ask: Any) -> Poll:
    """Poll the history with what is remembered of the last poll, and return the number of executions."""
    memory = PollMemory()

    def poll() -> int:
        history = ask(poll_once(memory=memory))
        return len(history)

    return poll


@pytest.mark.parametrize("page_size", [None, 2])
def test_pages_that_have_not_changed_come_without_items(
    poll: Poll, sandbox: Sandbox, workflow_id: str, page_size: int | None
) -> None:
    sandbox.page_size = page_size
    ids = [sandbox.start(workflow_id).id for _ in range(4)]
    assert (poll(), poll(), poll()) == (4, 0, 0)
    sandbox.finish(ids[0])
    assert poll() == 1
