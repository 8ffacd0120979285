"""What a fault of the server does to 100 waits: whether one ends wrongly, or learns late of an end, or floods.

Each fault lasts `--seconds` (two minutes), begins a little after the waits, and has a server and a process of its own;
all run at once. The ends are spread over the time of the fault. "missed" is by how much the slowest wait learnt of its
end after it: the fault's length and two intervals are allowed. "late" counts from the fault's end where that was later.
Where a request is answered by nothing,
the connection's time-out comes on top, since the last such request may begin just before the fault's end; a storm of
429s without Retry-After leaves a pause of up to a minute.

    python tests/benchmarks/faults.py [--quick] [--seconds 120] [--only truncated huge]
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))

from techflow_provider.client import Settings, TechFlowError
from techflow_provider.client.history import Target, Watch
from techflow_provider.state.budget import SharedBudget
from techflow_provider.state.store import open_store
from techflow_provider.triggers.poller import Access, Poller

if TYPE_CHECKING:
    from tests.benchmarks.judges import worst_window
    from tests.benchmarks.server import KEY, served
else:
    from judges import worst_window
    from server import KEY, served

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
    """

    missed: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


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
                execution = await poller.wait(Watch(Target(execution_id)), INTERVAL)
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


def one_fault(name: str, seconds: float) -> tuple[object, ...]:
    """Run one fault and return its row."""
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
        arrivals = server.arrivals()
        seconds_to = [f"{max(each, default=0.0):.1f}" for each in (outcome.missed, outcome.late)]
        return name, len(outcome.late), len(outcome.wrong), *seconds_to, len(arrivals), worst_window(arrivals, 60.0)


def main() -> int:
    """Print the table; 1 when a wait ended wrongly or not at all, or there were too many requests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="faults of 15 seconds")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS))
    asked = parser.parse_args()
    # A hundred waits tell of each fault in a log of their own.
    logging.disable(logging.CRITICAL)
    seconds = 15.0 if asked.quick else asked.seconds
    sys.stdout.write(
        f"{WAITS} waits, interval {INTERVAL:g} s, time-out {TIMEOUT:g} s, faults of {seconds:g} s, "
        f"load {os.getloadavg()[0]:.2f}\n"
    )
    row("fault", "seen", "wrong", "missed s", "late s", "requests", "in a minute")
    with ThreadPoolExecutor(len(asked.only)) as threads:
        rows = list(threads.map(lambda name: one_fault(name, seconds), asked.only))
    for cells in rows:
        row(*cells)
    return 1 if any(cells[1] != WAITS or cells[2] or int(str(cells[6])) > LIMIT for cells in rows) else 0


def row(*cells: object) -> None:
    """Print a row of the table."""
    widths = (17, 5, 6, 9, 7, 9, 11)
    sys.stdout.write(" ".join(f"{cell!s:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
