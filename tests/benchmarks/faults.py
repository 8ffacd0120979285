"""What a fault of the server does to 100 waits: whether one ends wrongly, or sees a completion late, or floods.

Each fault lasts `--seconds` (two minutes), begins a little after the waits, and has a server and a process of its own;
all run at once. The ends are spread over the time of the fault. "missed" is by how much the slowest wait learnt of its
end after it: the fault's length and two intervals are allowed, in the table of all benchmarks. "late" counts from the
fault's end where that was later. Where a request gets no response, the connection's timeout comes on top, since
the last such request may begin just before the fault's end. After 429s a cool-down comes on top, which has grown to
48 s at most by then, so that a storm of 429s costs few requests.

    python tests/benchmarks/faults.py [--quick] [--seconds 120] [--only truncated huge]
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))

from techflow_provider.client import Settings, TechFlowError
from techflow_provider.client.history import ExecutionSelector, ExecutionTracker
from techflow_provider.polling.poller import Access, Poller
from techflow_provider.state.budget import SharedBudget
from techflow_provider.state.gcra import LONGEST_COOL_DOWN_SECONDS
from techflow_provider.state.open import open_store

if TYPE_CHECKING:
    from tests.benchmarks.algorithms import worst_window
    from tests.benchmarks.rows import Row, add_option, hand_over, line
    from tests.benchmarks.server import KEY, served
else:
    from algorithms import worst_window
    from rows import Row, add_option, hand_over, line
    from server import KEY, served

WIDTHS = (17, 5, 6, 9, 7, 9, 11)
WAITS = 100
INTERVAL = 5.0
TIMEOUT = 10.0
LIMIT = 100
FAULTS: dict[str, dict[str, Any]] = {
    "500s at 30 %": {"kind": "status", "status": 500, "probability": 0.3},
    "500s": {"kind": "status", "status": 500},
    "reset": {"kind": "reset"},
    "hang": {"kind": "hang"},
    "truncated": {"kind": "truncated"},
    "429": {"kind": "status", "status": 429},
    "429, Retry-After": {"kind": "status", "status": 429, "retry_after": "2"},
    "slow bytes": {"kind": "slow", "seconds": 600.0},
    "200 MB": {"kind": "huge", "size": 200 * 1024 * 1024},
}


@dataclass
class Outcome:
    """What became of the waits of one run.

    :param missed: seconds from an end to the event, of each wait
    :param late: the same from the fault's end where that was later
    :param wrong: errors that ended a wait
    :param arrivals: when each request arrived
    """

    missed: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)

    @property
    def most(self) -> int:
        """The most requests in any minute."""
        return worst_window(self.arrivals, 60.0)


async def wait_for_all(base_url: str, ids: list[str], fault_ends: float, until: float, outcome: Outcome) -> None:
    """Wait in one poller for every execution."""
    with tempfile.TemporaryDirectory() as folder:
        budget = SharedBudget(open_store(f"{folder}/state.db"), "benchmark")
        access = Access(Settings(KEY, base_url, timeout_seconds=TIMEOUT), budget)

        async def connect() -> Access:
            return access

        poller = Poller(access, connect)

        async def wait(execution_id: str) -> None:
            try:
                execution = await poller.wait(ExecutionTracker(ExecutionSelector(execution_id)), INTERVAL)
            except TechFlowError as error:
                outcome.wrong.append(str(error))
            else:
                assert execution.finished_at is not None
                ended = execution.finished_at.timestamp()
                outcome.missed.append(time.time() - ended)
                outcome.late.append(time.time() - max(fault_ends, ended))

        tasks = [asyncio.ensure_future(wait(each)) for each in ids]
        await asyncio.wait(tasks, timeout=until - time.time())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def one_fault(name: str, seconds: float) -> Outcome:
    """Run one fault and return what became of its waits."""
    with served(WAITS, INTERVAL, INTERVAL + seconds, limit=LIMIT, algorithm="sliding_log") as server:
        began = time.time() + INTERVAL
        ends = began + seconds
        outcome = Outcome()
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(asyncio.run, wait_for_all(server.base_url, server.ids, ends, ends + 120, outcome))
            time.sleep(began - time.time())
            server.fault(**FAULTS[name])
            time.sleep(ends - time.time())
            server.clear_faults()
            waiting.result()
        outcome.arrivals = server.arrivals()
        return outcome


def main() -> int:
    """Print the table; 1 when a wait ended wrongly or not at all, or there were too many requests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="faults of 15 seconds")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS))
    add_option(parser)
    asked = parser.parse_args()
    # A hundred waits each log every fault.
    logging.disable(logging.CRITICAL)
    seconds = 15.0 if asked.quick else asked.seconds
    sys.stdout.write(
        f"{WAITS} waits, interval {INTERVAL:g} s, timeout {TIMEOUT:g} s, faults of {seconds:g} s, "
        f"load {os.getloadavg()[0]:.2f}\n"
    )
    line(WIDTHS, "fault", "seen", "wrong", "missed s", "late s", "requests", "in a minute")
    with ThreadPoolExecutor(len(asked.only)) as threads:
        outcomes = dict(zip(asked.only, threads.map(lambda name: one_fault(name, seconds), asked.only), strict=True))
    for name, outcome in outcomes.items():
        longest = (f"{max(each, default=0.0):.1f}" for each in (outcome.missed, outcome.late))
        line(WIDTHS, name, len(outcome.late), len(outcome.wrong), *longest, len(outcome.arrivals), outcome.most)
    all_waits = waits_rows(list(outcomes.values()), seconds)
    hand_over(asked.rows, *all_waits, *missed_rows(outcomes, seconds))
    return 0 if all(row.met for row in all_waits) else 1


def waits_rows(outcomes: list[Outcome], seconds: float) -> list[Row]:
    """Return what must hold of the waits of all faults together."""
    n = f"{len(outcomes)} faults of {seconds:g} s, {WAITS} waits each"
    wrong, seen = sum(len(each.wrong) for each in outcomes), sum(len(each.missed) for each in outcomes)
    most = max(each.most for each in outcomes)
    return [
        Row("waits that a fault ended wrongly", wrong, "", n, limit=0, bound="="),
        Row("completions that waits have seen", seen, "", n, limit=WAITS * len(outcomes), bound="="),
        Row("most requests in a minute through a fault", most, "", n, limit=LIMIT),
    ]


def missed_rows(outcomes: dict[str, Outcome], seconds: float) -> Iterator[Row]:
    """Return by how much the slowest wait of each fault learnt late of its end."""
    for name, outcome in outcomes.items():
        missed, n = max(outcome.missed, default=math.nan), f"{len(outcome.missed)} waits, fault of {seconds:g} s"
        cool_down = LONGEST_COOL_DOWN_SECONDS if name.startswith("429") else 0.0
        limit = seconds + 2 * INTERVAL + cool_down
        yield Row(f"slowest wait from completion to event, {name}", missed, "s", n, limit=limit)


if __name__ == "__main__":
    sys.exit(main())
