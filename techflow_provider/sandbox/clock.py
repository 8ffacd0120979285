"""The time that a sandbox lives in: the real one, or one that a test moves."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

MANUAL_START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """The real time."""

    def now(self) -> datetime:
        """Return the present as an aware datetime in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds on a clock that never jumps."""
        return time.monotonic()

    def elapse(self, seconds: float) -> None:
        """Let simulated time pass; real time passes by itself."""


class ManualClock(Clock):
    """A time that stands still until it is advanced.

    :param start: the first present
    """

    def __init__(self, start: datetime = MANUAL_START) -> None:
        self._start = start
        self._elapsed = 0.0

    def now(self) -> datetime:
        """Return the present as an aware datetime."""
        return self._start + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        """Return the seconds since the start."""
        return self._elapsed

    def elapse(self, seconds: float) -> None:
        """Let simulated time pass, as a slow answer does in-process."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move the present ahead."""
        if seconds < 0:
            raise ValueError(f"seconds: received {seconds!r}, expected 0 or more")
        self._elapsed += seconds
