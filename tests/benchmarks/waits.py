"""Whether one poll carries all waits of an event loop, beside what others do at the numbers they can carry.

N deferred waits, each for an execution of its own, with the ends spread over a minute and a server that allows 100
requests a minute. Server and waits have a process each. "all CPU" is the CPU time of the waits' process with the
beginning and the completion of each wait; "CPU" is that of waiting alone, and the memory is what a wait holds:
both are measured in runs of their own, once the history has been read. The stalls are the longest ones of the loop
while the waits begin and while nothing ends, in CPU time, without Python's full garbage collections, which go through
all objects of the process; "GC ms" is the longest of those.

    python tests/benchmarks/waits.py [--quick] [--waits 10 100 1000 10000 100000] [--holding 10000] [--only ours ...]

`--quick` takes up to 1,000 waits with ends spread over 15 seconds, `--spread` says how long they are spread;
`--holding` measures CPU and memory of waiting for these numbers alone. HttpSensorTrigger needs
apache-airflow-providers-http; it can't read the history, so its server responds with 429 to show its behaviour.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.benchmarks.rows import Row, add_option, hand_over, line, percentile
    from tests.benchmarks.server import served
    from tests.benchmarks.waiters import INTERVAL, Report, process_of
else:
    from rows import Row, add_option, hand_over, line, percentile
    from server import served
    from waiters import INTERVAL, Report, process_of

# The first end comes this long after the start, so that all waits are there.
FIRST_END = 10.0
HTTP_SECONDS = 10.0
NAMES = {"ours": "one poll for all", "each": "one poll per wait", "http": "HttpSensorTrigger"}
EACH_WAITS = (10, 100, 1000)
HTTP_WAITS = (1, 10)
WIDTHS = (18, 7, 9, 7, 7, 9, 7, 13, 15, 7, 14, 8, 6)
COLUMNS = (
    "what",
    "waits",
    "a minute",
    "429",
    "seen",
    "median s",
    "p99 s",
    "all CPU s/min",
    "CPU us/wait/min",
    "B/wait",
    "begin stall ms",
    "stall ms",
    "GC ms",
)
# To reach; memory and CPU time from MANY waits on, the time to the event up to so many: more are only shown.
MANY = 10_000
MOST_A_MINUTE = 20
MOST_SECONDS = INTERVAL + 1
MOST_BYTES = 2500
MOST_MICROSECONDS = 25
MOST_STALL_MS = 50


@dataclass(frozen=True)
class Line:
    """What came of some waits.

    :param counts: responses of the server by status
    """

    kind: str
    waits: int
    counts: dict[int | None, int]
    report: Report

    @property
    def a_minute(self) -> float:
        """Requests a minute."""
        return sum(self.counts.values()) / self.report.seconds * 60

    @property
    def refused(self) -> int:
        """How many 429s there were."""
        return self.counts.get(429, 0)

    @property
    def seen(self) -> int:
        """How many waits learnt of their end."""
        return len(self.report.latencies)

    @property
    def latency(self) -> tuple[float, float]:
        """Median and 99th percentile from an end to its event, in seconds; what no history was read for has none."""
        latencies = self.report.latencies
        if not latencies or self.kind == "http":
            return math.nan, math.nan
        return statistics.median(latencies), percentile(latencies, 99)


def measure(kind: str, count: int, spread: float, *, holding: bool) -> Line:
    """Run one line."""
    last = FIRST_END + spread
    if kind == "http":
        with process_of(kind) as start, served(count, 3600, 3600) as server:
            server.fault(kind="status", status=429)
            report = start(server, HTTP_SECONDS)
            return Line(kind, count, server.counts(), report)
    with process_of(kind) as start, served(count, FIRST_END, last) as server:
        report = start(server, last + 30)
        counts = server.counts()
    if holding:
        with process_of("held") as start, served(count, 3600, 3600) as server:
            report.wait_bytes = start(server, last).wait_bytes
        with process_of("steady") as start, served(count, 3600, 3600) as server:
            steady = start(server, last)
        report.wait_cpu, report.beginning, report.waiting = steady.wait_cpu, steady.beginning, steady.waiting
    return Line(kind, count, counts, report)


def show(each: Line) -> None:
    """Print a line."""
    report, holds = each.report, each.report.wait_cpu > 0
    latencies = ("-" if math.isnan(seconds) else f"{seconds:.2f}" for seconds in each.latency)
    line(
        WIDTHS,
        NAMES[each.kind],
        each.waits,
        f"{each.a_minute:.1f}",
        each.refused,
        each.seen,
        *latencies,
        f"{report.cpu_seconds / report.seconds * 60:.2f}",
        f"{report.wait_cpu:.0f}" if holds else "-",
        f"{report.wait_bytes:.0f}" if holds else "-",
        f"{report.beginning.busy:.1f}" if holds else "-",
        f"{report.waiting.busy:.1f}" if holds else "-",
        f"{report.beginning.collecting:.0f}" if holds else "-",
    )


def rows_of(lines: list[Line], spread: float) -> Iterator[Row]:
    """Say how each number of our waits did, beside the others with as many."""
    for each in lines:
        if each.kind == "ours":
            others = {NAMES[other.kind]: other for other in lines if other.waits == each.waits and other != each}
            yield from rows_of_waits(each, others, f"ends over {spread:g} s")


def rows_of_waits(ours: Line, others: dict[str, Line], n: str) -> Iterator[Row]:
    """Say how our waits did."""
    of = f"{ours.waits:,} waits"
    polls = {name: each for name, each in others.items() if each.kind == "each"}
    peers = {name: each.a_minute for name, each in others.items()}
    yield Row(f"requests a minute of {of}", ours.a_minute, "", n, limit=MOST_A_MINUTE, peers=peers)
    refused = {name: float(each.refused) for name, each in others.items()}
    yield Row(f"429s that {of} meet", ours.refused, "", n, limit=0, bound="=", peers=refused)
    seen = {name: float(each.seen) for name, each in polls.items()}
    yield Row(f"completions seen by {of}", ours.seen, "", n, limit=ours.waits, bound="≥", peers=seen)
    latest = MOST_SECONDS if ours.waits <= MANY else None
    for name, index, limit in (("median", 0, None), ("99th percentile", 1, latest)):
        peers = {peer: each.latency[index] for peer, each in polls.items()}
        yield Row(f"{name} from completion to event of {of}", ours.latency[index], "s", n, limit=limit, peers=peers)
    # What a poll takes by itself is nothing beside so many waits alone.
    many, report = ours.waits >= MANY, ours.report
    if report.wait_bytes:
        yield Row(f"memory of one of {of}", report.wait_bytes, "B", "1 run", limit=MOST_BYTES if many else None)
    if report.wait_cpu:
        what = f"CPU time of one of {of}, a minute"
        yield Row(what, report.wait_cpu, "µs", "1 run", limit=MOST_MICROSECONDS if many else None)
        for when, stalls in (("begin", report.beginning), ("wait", report.waiting)):
            what = f"longest stall of the loop while {of} {when}"
            yield Row(what, stalls.busy, "ms", "1 run", limit=MOST_STALL_MS)
        what = f"longest full garbage collection while {of} begin"
        yield Row(what, report.beginning.collecting, "ms", "1 run")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--spread", type=float, default=60.0)
    parser.add_argument("--waits", type=int, nargs="+", default=[10, 100, 1000, 10_000, 100_000])
    parser.add_argument("--holding", type=int, nargs="*")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=tuple(NAMES))
    add_option(parser)
    asked = parser.parse_args()
    spread = 15.0 if asked.quick else asked.spread
    sys.stdout.write(f"interval {INTERVAL:g} s, ends spread over {spread:g} s, load {os.getloadavg()[0]:.2f}\n")
    line(WIDTHS, *COLUMNS)
    fitting, lines = {"ours": asked.waits, "each": EACH_WAITS, "http": HTTP_WAITS}, []
    for kind in asked.only:
        for count in fitting[kind]:
            if (kind == "http" or count in asked.waits) and not (asked.quick and count > 1000):
                holding = kind == "ours" and (asked.holding is None or count in asked.holding)
                lines.append(measure(kind, count, spread, holding=holding))
                show(lines[-1])
    hand_over(asked.rows, *rows_of(lines, spread))


if __name__ == "__main__":
    main()
