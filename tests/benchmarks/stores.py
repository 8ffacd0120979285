"""How many operations a second does each store carry out, how long does one take, and is any caller starved?

Callers are threads of up to four processes, each with connections of its own. `reserve` takes a slot of one budget for
all callers; `claim` writes an entry of its own each time, durably; `read` reads an entry that exists. `version` asks
Airflow's API server for its version with the same client, which shows how fast a request that does nothing is.

    python tests/benchmarks/stores.py [--places postgresql api-server] [--callers 1 16 100] [--seconds 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin
from uuid import uuid4

import httpx

from techflow_provider.state.budget import RequestClass, SharedBudget
from techflow_provider.state.store import Entry, Store, Write, read_only

if TYPE_CHECKING:
    from tests.benchmarks.load import Gate, Run, in_processes
    from tests.benchmarks.places import ACCOUNT, PLACES, open_place, place
    from tests.benchmarks.rows import Row, add_option, hand_over, line, percentile
else:
    from load import Gate, Run, in_processes
    from places import ACCOUNT, PLACES, open_place, place
    from rows import Row, add_option, hand_over, line, percentile

PROCESSES = 4
# Three times what a prototype reached with one caller.
LEAST = {"postgresql": 3 * 840, "api-server": 3 * 181}
HEADS = ("store", "operation", "callers", "a second", "median ms", "p99 ms", "longest ms", "fewest/most")
WIDTHS = (12, 10, 8, 9, 10, 8, 11, 12)
# What separates the reports of the threads of a process.
END = -1.0


def reserve(store: Store) -> Callable[[], object]:
    """Take a slot of a budget that never makes anybody wait."""
    budget = SharedBudget(store, ACCOUNT, 10_000_000)
    return lambda: budget.reserve(RequestClass.COMMAND, 1.0)


def claim(store: Store) -> Callable[[], object]:
    """Claim an execution that nobody has claimed."""
    prefix, numbers = uuid4().hex, count()

    def change(entry: Entry | None, _: float) -> tuple[Write | None, str]:
        return (Write("submission", 3600.0), "submission") if entry is None else (None, entry.value)

    return lambda: store.update(f"{ACCOUNT}/claims", f"{prefix}{next(numbers)}", change)


def read(store: Store) -> Callable[[], object]:
    """Read an entry."""
    store.update(f"{ACCOUNT}/attempts", "task", lambda _, __: (Write("x" * 300, 3600.0), None))
    return lambda: store.update(f"{ACCOUNT}/attempts", "task", read_only)


def version(store: Store) -> Callable[[], object]:
    """Ask the API server for Airflow's version."""
    client, url = httpx.Client(), urljoin(store.location, "/api/v2/version")
    return lambda: client.get(url).raise_for_status()


OPERATIONS = {"reserve": reserve, "claim": claim, "read": read, "version": version}


def call(operation: str, threads: int, run: Run, gate: Gate) -> list[float]:
    """Let threads call as often as they can, and report the milliseconds of each call."""
    acts = [OPERATIONS[operation](open_place(run.place)) for _ in range(threads)]
    for act in acts:
        act()
    spent: list[list[float]] = [[] for _ in acts]
    end = gate() + run.seconds

    def repeat(act: Callable[[], object], times: list[float]) -> None:
        while time.monotonic() < end:
            began = time.perf_counter()
            act()
            times.append((time.perf_counter() - began) * 1000)

    callers = [threading.Thread(target=repeat, args=pair) for pair in zip(acts, spent, strict=True)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return [each for times in spent for each in (*times, END)]


@dataclass(frozen=True)
class Outcome:
    """What callers did.

    :param times: milliseconds of each call
    :param counts: calls of each caller
    """

    times: list[float]
    counts: list[int]

    @classmethod
    def of(cls, reports: list[list[float]]) -> Outcome:
        """Read the reports of processes."""
        times, counts = [], [0]
        for each in (each for report in reports for each in report):
            if each == END:
                counts.append(0)
            else:
                counts[-1] += 1
                times.append(each)
        return cls(times, counts[:-1])


def measure(url: str, operation: str, callers: int, seconds: float) -> Outcome:
    """Let callers call for some seconds."""
    processes = min(PROCESSES, callers)
    run = Run("", url, 60.0, seconds)
    threads = [callers // processes + (number < callers % processes) for number in range(processes)]
    return Outcome.of(in_processes([(partial(call, operation, each), run) for each in threads]))


def show(name: str, operation: str, callers: int, outcome: Outcome, seconds: float) -> Row:
    """Print the figures, and return the row of the table of all benchmarks."""
    rate, n = len(outcome.times) / seconds, f"{len(outcome.times):,} calls, {callers} callers"
    figures = statistics.median(outcome.times), percentile(outcome.times, 99), max(outcome.times)
    texts = f"{figures[0]:.2f}", f"{figures[1]:.1f}", f"{figures[2]:.0f}"
    line(WIDTHS, name, operation, callers, f"{rate:.0f}", *texts, f"{min(outcome.counts)}/{max(outcome.counts)}")
    limit = LEAST.get(name) if callers == 1 and operation == "reserve" else None
    return Row(f"{operation} a second, {name}, {callers} callers", rate, "/s", n, limit=limit, bound="≥")


def main() -> None:
    """Print the figures of each store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", nargs="+", choices=PLACES, default=list(PLACES))
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 16, 100])
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--seconds", type=float, default=5.0)
    add_option(parser)
    asked = parser.parse_args()
    line(WIDTHS, *HEADS)
    for name in asked.places:
        with tempfile.TemporaryDirectory() as folder, place(name, Path(folder)) as store:
            for operation in asked.operations:
                if operation == "version" and name != "api-server":
                    continue
                for callers in asked.callers:
                    outcome = measure(store.url, operation, callers, asked.seconds)
                    hand_over(asked.rows, show(name, operation, callers, outcome, asked.seconds))


if __name__ == "__main__":
    main()
