"""When an execution began, by the clock of the server's `Date` header, as precisely as that is known; pure.

A history may cut its times off to the minute or write them without a time zone, and the clock that writes them may
differ from the one behind `Date`. Executions that the response to their start has named show by how much.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from techflow_provider.client.models import EXECUTION_NAMES, Execution
from techflow_provider.client.parsing import get_first, read_time

# When an execution was requested; `started_at` may be the time at which it left a queue.
CREATED_NAMES = EXECUTION_NAMES["created_at"]
PRECISIONS = (86400.0, 60.0, 1.0)
# Seconds since 1970 have one, too; the end of 2026-01-01 is none.
WITH_ZONE = re.compile(r"(^\d{9,}|z|utc|gmt|(?<!\d-\d\d)[+-]\d\d(:?\d\d)?)$", re.IGNORECASE)
# How far the clocks of a server may be apart that nothing is known about, and how far local times are from UTC.
UNKNOWN_OFFSET_SECONDS = 300.0
LOCAL_OFFSET_SECONDS = 26 * 3600.0
USUAL_OFFSET_SECONDS = 1.0
DRIFT_SECONDS = 5.0
CLOCK_CHANGE_SECONDS = 3600.0
SURE_STARTS = 3


@dataclass(frozen=True, slots=True)
class Span:
    """An interval of time in seconds, or of differences between times.

    :param low: its beginning
    :param high: its end
    """

    low: float
    high: float

    def meets(self, other: Span) -> bool:
        """Whether two spans have a point in common."""
        return self.low <= other.high and other.low <= self.high

    def minus(self, other: Span) -> Span:
        """Return the differences of points of this span and points of another one."""
        return Span(self.low - other.high, self.high - other.low)

    def widened(self, seconds: float) -> Span:
        """Return a span that is longer on both sides."""
        return Span(self.low - seconds, self.high + seconds)

    @property
    def middle(self) -> float:
        """The point in the middle."""
        return (self.low + self.high) / 2


@dataclass(frozen=True, slots=True)
class ServerClock:
    """How the times in a history relate to the `Date` of responses.

    :param precision: the unit that the times are multiples of, in seconds
    :param widest: how far they may be ahead of `Date`
    :param offset: how far they are ahead of it, as far as is known
    :param is_measured: whether an execution shows that
    """

    precision: float
    widest: Span
    offset: Span = Span(-USUAL_OFFSET_SECONDS, USUAL_OFFSET_SECONDS)
    is_measured: bool = False

    @classmethod
    def of(cls, executions: Collection[Execution], started: Iterable[tuple[Execution, Span]]) -> ServerClock:
        """Return what a history shows.

        :param executions: the history
        :param started: executions of it, each with the time of its request and response by `Date`
        """
        times = [at.timestamp() for at in map(began_at, executions) if at is not None]
        precision = next((unit for unit in PRECISIONS if times and all(at % unit == 0 for at in times)), 0.0)
        zone_seconds = 0.0 if all(map(_has_zone, executions)) else LOCAL_OFFSET_SECONDS
        spans = [_written(at, precision).minus(span) for each, span in started if (at := began_at(each)) is not None]
        if not spans:
            return cls(precision, Span(0, 0).widened(zone_seconds or UNKNOWN_OFFSET_SECONDS))
        offset = Span(max(span.low for span in spans), min(span.high for span in spans))
        # A queue delays each start by another time, so that `started_at` proves little until several of them agree.
        is_sure = len(spans) >= SURE_STARTS or any(_names_creation(each) for each in executions)
        may_queue = not is_sure or offset.low > offset.high or len(times) < len(executions)
        if offset.low > offset.high:
            offset = Span(min(span.low for span in spans), max(span.high for span in spans))
        offset = offset.widened(USUAL_OFFSET_SECONDS / 2)
        widest = offset.widened(DRIFT_SECONDS + (CLOCK_CHANGE_SECONDS if zone_seconds else 0.0))
        return cls(precision, Span(widest.low - UNKNOWN_OFFSET_SECONDS * may_queue, widest.high), offset, True)

    def began(self, execution: Execution, offset: Span) -> Span | None:
        """Return when an execution began by `Date`, None when the history doesn't show it.

        :param offset: one of this clock's two
        """
        at = began_at(execution)
        return None if at is None else _written(at, self.precision).minus(offset)


def began_at(execution: Execution) -> datetime | None:
    """Return when an execution was requested or, where the history doesn't show that, when it started."""
    return read_time(execution.raw, *CREATED_NAMES) or execution.started_at


def _written(at: datetime, precision: float) -> Span:
    # Most servers cut off, some round.
    return Span(at.timestamp() - precision / 2, at.timestamp() + precision)


def _names_creation(execution: Execution) -> bool:
    return get_first(execution.raw, *CREATED_NAMES) is not None


def _has_zone(execution: Execution) -> bool:
    text = get_first(execution.raw, *CREATED_NAMES, *EXECUTION_NAMES["started_at"])
    return not isinstance(text, str) or bool(WITH_ZONE.search(text.strip()))
