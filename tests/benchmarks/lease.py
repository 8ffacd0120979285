"""What becomes of the shared poll when the process that polls is killed, stopped, or cut off from the server.

Three triggerers with 50 waits each share a state file and a server. The one that polls is killed, stopped for a minute
(SIGSTOP) and continued, or can't reach the server for a minute; each in a run of its own, all at once. Executions end
all the time. Ends with 1 when a wait is lost, or polls are further apart than two intervals and the lease.

    python tests/benchmarks/lease.py [--seconds 60] [--only killed stopped partitioned]
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx

from techflow_provider.client import Settings
from techflow_provider.client.history import ExecutionSelector, ExecutionTracker
from techflow_provider.polling.poller import Access, Poller
from techflow_provider.polling.shared import SharedReader
from techflow_provider.sandbox import Sandbox
from techflow_provider.state.budget import SharedBudget
from techflow_provider.state.open import open_store

if TYPE_CHECKING:
    from tests.benchmarks.rows import Row, add_option, hand_over
else:
    from rows import Row, add_option, hand_over

KEY = "key-of-the-benchmark"
INTERVAL = 5.0
PROCESSES = 3
WAITS = 50
HOWS = ("killed", "stopped", "partitioned")
# A poll that begins sooner after another one is a duplicate.
DUPLICATE_SECONDS = 2.0
# To reach: two intervals after the last poll should have ended.
LONGEST_GAP_SECONDS = 3 * INTERVAL


@dataclass(frozen=True)
class Outcome:
    """What came of one case.

    :param gap: the longest time between two polls, in seconds
    :param duplicates: polls that began soon after another one
    :param polls: of so many
    :param lost: waits that missed their completion, without those of a killed process
    :param waits: of so many
    :param detection: the longest of another process's waits, in seconds
    """

    gap: float
    duplicates: int
    polls: int
    lost: int
    waits: int
    detection: float


class Partitioned(httpx.AsyncHTTPTransport):
    """A transport that reaches nothing for some time after SIGUSR1."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._until = 0.0
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._begin, seconds)

    def _begin(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if time.monotonic() < self._until:
            await asyncio.sleep(min(30.0, self._until - time.monotonic()))
            raise httpx.ConnectTimeout("partitioned", request=request)
        return await super().handle_async_request(request)


async def wait(base_url: str, state: str, ids: list[str], seconds: float, pipe: Any) -> None:
    """Wait for some executions as a triggerer does, and report each detection."""
    settings, store = Settings(KEY, base_url), open_store(state)
    reader = SharedReader(store, settings.account, f"home/{os.getpid()}")
    access = Access(settings, SharedBudget(store, settings.account), reader, Partitioned(seconds))

    async def connect() -> Access:
        return access

    poller = Poller(access, connect)
    pipe.send(reader.holder)

    async def one(execution_id: str) -> None:
        await poller.wait(ExecutionTracker(ExecutionSelector(execution_id)), INTERVAL)
        pipe.send((execution_id, datetime.now(UTC)))

    await asyncio.gather(*(one(each) for each in ids))


def run(*arguments: Any) -> None:
    """Run the waits of one process."""
    logging.disable(logging.CRITICAL)
    asyncio.run(wait(*arguments))


def measure(how: str, seconds: float) -> Outcome:
    """Run one case."""
    context = multiprocessing.get_context("spawn")
    sandbox = Sandbox(api_keys=(KEY,), limit=100, execution_seconds=10**6, workflows_at_start={"wf_1": "one"})
    with tempfile.TemporaryDirectory() as folder, sandbox.serve() as base_url:
        state, ids, processes, pipes = f"{folder}/state.db", [], [], []
        for _ in range(PROCESSES):
            ids.append([sandbox.start("wf_1").id for _ in range(WAITS)])
            ours, theirs = context.Pipe()
            processes.append(context.Process(target=run, args=(base_url, state, ids[-1], seconds, theirs)))
            processes[-1].start()
            pipes.append(ours)
        holders = [pipe.recv() for pipe in pipes]
        time.sleep(20)
        board = SharedReader(open_store(state), Settings(KEY, base_url).account).board()
        holder = holders.index(board.holder)
        began, ended = datetime.now(UTC), {}
        act(how, processes[holder].pid or 0)
        for number in range(WAITS):
            for each in ids:
                sandbox.finish(each[number], outcome="completed")
                ended[each[number]] = datetime.now(UTC)
            time.sleep(seconds / WAITS)
        if how == "stopped":
            os.kill(processes[holder].pid or 0, signal.SIGCONT)
        time.sleep(30)
        seen: dict[str, float] = {}
        for pipe in pipes:
            while pipe.poll():
                try:
                    execution_id, at = pipe.recv()
                except EOFError:
                    break
                seen[execution_id] = (at - ended[execution_id]).total_seconds()
        for process in processes:
            process.kill()
            process.join()
        polls = [each.at for each in sandbox.requests if each.path == "/executions"]
    gaps = [(after - before).total_seconds() for before, after in pairwise(polls) if after > began]
    alive = [each for number, these in enumerate(ids) if how != "killed" or number != holder for each in these]
    others = [seen[each] for number, these in enumerate(ids) if number != holder for each in these if each in seen]
    duplicates, lost = sum(gap < DUPLICATE_SECONDS for gap in gaps), sum(each not in seen for each in alive)
    return Outcome(max(gaps), duplicates, len(gaps), lost, len(alive), max(others))


def act(how: str, pid: int) -> None:
    """Kill, stop or cut off a process."""
    os.kill(pid, {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP, "partitioned": signal.SIGUSR1}[how])


def main() -> int:
    """Print the figures of each case; 1 when they aren't reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", nargs="+", choices=HOWS, default=HOWS)
    add_option(parser)
    asked = parser.parse_args()
    with ThreadPoolExecutor(len(asked.only)) as threads:
        outcomes = dict(zip(asked.only, threads.map(lambda how: measure(how, asked.seconds), asked.only), strict=True))
    rows: list[Row] = []
    for how, done in outcomes.items():
        sys.stdout.write(
            f"{how:12} longest gap between polls {done.gap:5.1f} s; {done.duplicates} duplicate polls of {done.polls}; "
            f"{done.lost} of {done.waits} waits lost; the others' longest detection {done.detection:.1f} s\n"
        )
        case, n = f"the process that polls is {how}", f"{done.polls} polls, {done.waits} waits, {asked.seconds:g} s"
        rows += (
            Row(f"longest time between two polls, {case}", done.gap, "s", n, limit=LONGEST_GAP_SECONDS),
            Row(f"duplicate polls, {case}", done.duplicates, "", n),
            Row(f"waits lost, {case}", done.lost, "", n, limit=0, bound="="),
        )
    hand_over(asked.rows, *rows)
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
