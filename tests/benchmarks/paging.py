"""What a wait takes of a history of 100,000 executions in pages of 100: requests, and CPU time with the server's.

Ten waits are for the newest executions, or spread over the whole history, whose pages are then read over many polls.

    python tests/benchmarks/paging.py
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx

from techflow_provider.client import AsyncClient, Settings
from techflow_provider.client.history import HistoryFilter
from techflow_provider.client.reading import PollMemory, poll_history
from techflow_provider.state.budget import LocalBudget

if TYPE_CHECKING:
    from tests.benchmarks.rows import Row, add_option, hand_over
else:
    from rows import Row, add_option, hand_over

PAGES = 1000
SIZE = 100
WAITS = 10
IDS = {
    "the newest": [f"ex_{number}" for number in range(WAITS)],
    "spread": [f"ex_{(number * PAGES + PAGES // 2) * SIZE // WAITS}" for number in range(WAITS)],
}


def respond(request: httpx.Request) -> httpx.Response:
    """Return a page."""
    page = int(request.url.params.get("page", 0))
    rows = [
        {"id": f"ex_{page * SIZE + number}", "workflow_id": "wf_1", "status": "completed"} for number in range(SIZE)
    ]
    return httpx.Response(200, json={"executions": rows, "next": f"?page={page + 1}" if page + 1 < PAGES else None})


async def measure(name: str) -> tuple[Row, Row]:
    """Poll until all waits have their executions; print and return what it took."""
    requests = 0

    def count(request: httpx.Request) -> httpx.Response:
        nonlocal requests
        requests += 1
        return respond(request)

    history_filter, memory, polls, spent = HistoryFilter(), PollMemory(), 0, time.process_time()
    for each in IDS[name]:
        history_filter.add_execution(each)
    settings = Settings("key-of-the-benchmark", "https://techflow.example", verify=False)
    async with AsyncClient(
        settings=settings, budget=LocalBudget(100_000, 50_000), transport=httpx.MockTransport(count)
    ) as client:
        while history_filter.known_statuses:
            polls += 1
            for execution in await poll_history(client.context, history_filter, 60.0, memory):
                history_filter.known_statuses.pop(execution.id, None)
    milliseconds = (time.process_time() - spent) / requests * 1000
    sys.stdout.write(f"{WAITS} waits, {name}: {polls} polls, {requests} requests, {milliseconds:.1f} ms each\n")
    of, n = f"{WAITS} waits in {PAGES:,} pages of {SIZE}, {name}", f"{polls} polls"
    # Those that are spread need the pages up to the last one with one of them, and the first page with each poll.
    return Row(f"requests of {of}", requests, "", n), Row(f"CPU time of a request of {of}", milliseconds, "ms", n)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_option(parser)
    asked = parser.parse_args()
    for each in IDS:
        hand_over(asked.rows, *asyncio.run(measure(each)))


if __name__ == "__main__":
    main()
