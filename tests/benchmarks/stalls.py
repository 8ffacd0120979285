"""How long an event loop was held up: by how much the latest tick of a task in it was late."""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

TICK_SECONDS = 0.005
# A tick alone takes no more.
TICK_CPU_SECONDS = 0.0002
# The oldest generation of the garbage collector.
FULL = len(gc.get_threshold()) - 1


@dataclass
class Stalls:
    """The longest stalls of a loop, as its ticks saw them; in milliseconds.

    :param late: on the clock, which a busy machine adds to
    :param busy: in CPU time of this process, all threads together, without full garbage collections
    :param collecting: the longest full garbage collection, in CPU time; it goes through all objects of the process
    :param ticking: CPU time that all ticks took together, in seconds
    """

    late: float = 0.0
    busy: float = 0.0
    collecting: float = 0.0
    ticking: float = 0.0
    _collected: float = 0.0
    _collecting_since: float = math.nan

    async def measure(self, seconds: float) -> None:
        """Let the running loop tick for some seconds."""
        end = time.monotonic() + seconds
        gc.callbacks.append(self._collect)
        try:
            while time.monotonic() < end:
                await self._tick()
        finally:
            gc.callbacks.remove(self._collect)

    async def _tick(self) -> None:
        began, own, spent = time.monotonic(), time.thread_time(), self._spent()
        await asyncio.sleep(TICK_SECONDS)
        self.late = max(self.late, (time.monotonic() - began - TICK_SECONDS) * 1000)
        self.busy = max(self.busy, (self._spent() - spent) * 1000)
        self.ticking += min(time.thread_time() - own, TICK_CPU_SECONDS)

    def _spent(self) -> float:
        """Return the CPU time until now without full collections, one of which may be under way in another thread."""
        now = time.process_time()
        present = 0.0 if math.isnan(self._collecting_since) else now - self._collecting_since
        return now - self._collected - present

    def _collect(self, phase: str, collection: Mapping[str, int]) -> None:
        """Note what a full collection takes."""
        if collection["generation"] != FULL:
            return
        if phase == "start":
            self._collecting_since = time.process_time()
            return
        taken, self._collecting_since = time.process_time() - self._collecting_since, math.nan
        self._collected += taken
        self.collecting = max(self.collecting, taken * 1000)
