"""One poll for all searches of an event loop that use the same API key."""

from __future__ import annotations

import asyncio

from techflow_provider.client import AsyncClient
from techflow_provider.client.history import History
from techflow_provider.submission.recovery import read_whole

# Few enough polls that the starts which are sent again meanwhile have nearly all of the limit.
INTERVAL_SECONDS = 10.0


class SharedHistory:
    """Polls the whole history for the searches of one event loop.

    :param client: what it polls with
    """

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self.users: int = 0
        self._lock = asyncio.Lock()
        self._last: History | None = None

    async def poll(self, since: float) -> History:
        """Return what a poll showed that began at some time or later, on the client's clock.

        :raises TechFlowError: what reading the history raises
        """
        async with self._lock:
            last = self._last
            if last is None or last.began < since:
                if last is not None:
                    clock = self.client.context.clock
                    await asyncio.sleep(max(0.0, last.began + INTERVAL_SECONDS - clock()))
                last = self._last = await read_whole(self.client.context)
            return last
