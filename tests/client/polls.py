"""A poll of the execution history, for this client alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from techflow_provider.client.history import HistoryFilter
from techflow_provider.client.reading import PollMemory, poll_history


def poll_once(
    wanted: HistoryFilter | None = None, memory: PollMemory | None = None, within_seconds: float = 60.0
) -> Callable[[Any], Any]:
    """Return the operation of a client, which polls for everything without a filter."""
    wanted = wanted or HistoryFilter(everything=True)
    return lambda client: client.run(poll_history(client.context, wanted, within_seconds, memory))
