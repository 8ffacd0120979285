"""Do pods, each a fresh process with an empty home, keep to the limit of one key together?

First as many pods as `--pods`, some at a time, start one execution each. Then `--saturating` pods send all they may at
once for `--seconds`. Between, the same with the store away for a minute. TechFlow is a sandbox that admits 100 requests
in any 60 s. Prints the 429s, the most requests in any 60 s, the executions, and the time beside the time that the limit
requires; ends with 1 when there is a 429, an execution too few or one too many.

    python tests/benchmarks/pods.py [--place postgresql] [--pods 300] [--saturating 30] [--seconds 100] [--away 60]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from techflow_provider.client.client import Client
from techflow_provider.client.errors import TechFlowError
from techflow_provider.client.settings import Settings
from techflow_provider.sandbox import Sandbox
from techflow_provider.state.budget import SharedBudget
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.model import Attempt, SubmissionPolicy, Submitter
from techflow_provider.submission.start import resolve, send

if TYPE_CHECKING:
    from tests.benchmarks.algorithms import worst_window
    from tests.benchmarks.places import ACCOUNT, KEY, PLACES, Place, open_place, place
    from tests.benchmarks.rows import Row, add_option, hand_over, line
else:
    from algorithms import worst_window
    from places import ACCOUNT, KEY, PLACES, Place, open_place, place
    from rows import Row, add_option, hand_over, line

LIMIT, BURST = 100, 6
AT_ONCE = 12
# A worker's attempts before its task fails.
ATTEMPTS = 5
WIDTHS = (34, 12, 8, 10, 12, 11, 10, 12)
HEADS = ("", "store", "429s", "in 60 s", "executions", "of tasks", "seconds", "at least")


def run_pod(url: str, base_url: str, name: str, seconds: float) -> None:
    """What one pod does: start one execution, or send requests for some seconds."""
    logging.basicConfig(level=logging.WARNING)
    budget = SharedBudget(open_place(url), ACCOUNT, LIMIT, BURST)
    settings = Settings(KEY, base_url, timeout_seconds=10, deadline_seconds=600)
    with Client(settings=settings, budget=budget) as client:
        if not seconds:
            attempts, policy = AttemptStore(open_place(url), ACCOUNT, name), SubmissionPolicy(history_lag_seconds=5)
            attempt = Attempt(client.context, Submitter(name, "1"), attempts, policy, "wf_1", None)
            started = client.run(resolve(attempt)) or client.run(send(attempt))
            sys.stdout.write(started.execution.id)
            return
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            client.workflows.get("wf_1")


def command(url: str, base_url: str, name: str, seconds: float = 0.0) -> list[str]:
    """Return a pod's command line."""
    asked = {"url": url, "base_url": base_url, "name": name, "seconds": seconds}
    return [sys.executable, __file__, "--pod", json.dumps(asked)]


def spawn(words: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a pod in an empty home."""
    home = Path(tempfile.mkdtemp(dir=folder))
    own = {"HOME": str(home), "AIRFLOW_HOME": str(home), "TMPDIR": str(home), "HOSTNAME": home.name}
    with (home / "output").open("wb") as output, (home / "errors").open("wb") as errors:
        return subprocess.Popen(words, env={**os.environ, **own}, cwd=home, stdout=output, stderr=errors)


@dataclass
class Outcome:
    """What pods did.

    :param seconds: how long they took
    :param failed: attempts that ended with an error
    """

    seconds: float
    failed: int


def start_one_each(pods: int, url: str, base_url: str, folder: Path) -> Outcome:
    """Let as many tasks start one execution each; a pod that fails is followed by another one."""
    began, failed = time.monotonic(), 0
    # Of each run other tasks: the store still knows what those of the runs before have started.
    run = uuid4().hex
    tries = dict.fromkeys((f"{run}-{number}" for number in range(pods)), 0)
    waiting, running = list(reversed(tries)), dict[str, subprocess.Popen[bytes]]()
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            name = waiting.pop()
            tries[name] += 1
            running[name] = spawn(command(url, base_url, name), folder)
        for name, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[name]
            if process.returncode:
                failed += 1
                if tries[name] < ATTEMPTS:
                    waiting.append(name)
        time.sleep(0.02)
    return Outcome(time.monotonic() - began, failed)


def saturate(pods: int, seconds: float, url: str, base_url: str, folder: Path) -> Outcome:
    """Let pods send all that they may."""
    began = time.monotonic()
    processes = [spawn(command(url, base_url, f"pod-{number}", seconds), folder) for number in range(pods)]
    failed = sum(bool(process.wait()) for process in processes)
    return Outcome(time.monotonic() - began, failed)


@contextmanager
def away(store: Place, after_seconds: float, seconds: float) -> Iterator[None]:
    """Let the store's server be away for a while."""

    def interrupt() -> None:
        if not over.wait(after_seconds):
            store.stop()
            over.wait(seconds)
            store.start()

    over = threading.Event()
    thread = threading.Thread(target=interrupt)
    if seconds:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if seconds:
            thread.join()


@dataclass
class Runs:
    """Runs pods against one store, each time with a new sandbox."""

    store: Place
    folder: Path
    file: Path | None
    met: bool = True

    def show(self, what: str, tasks: int, run: Callable[[str], Outcome]) -> None:
        """Run pods, and print and hand over what they did."""
        sandbox = Sandbox(api_keys=(KEY,), limit=LIMIT, algorithm="sliding_log", workflows_at_start={"wf_1": "one"})
        with sandbox.serve() as base_url:
            done = run(base_url)
        times = sorted(record.at.timestamp() for record in sandbox.requests)
        rejected, worst = sandbox.count(status=429), worst_window(times, 60.0)
        executions, least = len(sandbox.executions), max(0.0, len(times) - BURST) * 60 / LIMIT
        cells = (rejected, worst, executions, tasks, f"{done.seconds:.0f}", f"{least:.0f}")
        line(WIDTHS, what, self.store.name, *cells)
        if done.failed:
            sys.stdout.write(f"  {done.failed} attempts failed and were repeated\n")
        self.met = self.met and not rejected and executions == tasks
        name, n = f"{what}, {self.store.name}", f"{len(times)} requests in {done.seconds:.0f} s"
        hand_over(
            self.file,
            Row(f"429s of {name}", rejected, "", n, limit=0, bound="="),
            Row(f"most requests in 60 s of {name}", worst, "", n, limit=LIMIT),
            Row(f"executions of {name}", executions, "", n, limit=tasks, bound="="),
        )


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", choices=PLACES[1:], default="postgresql")
    parser.add_argument("--pods", type=int, default=300)
    parser.add_argument("--saturating", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--away", type=float, nargs="+", default=[0.0, 60.0], help="seconds without the store; 0: none")
    parser.add_argument("--pod", type=json.loads, help=argparse.SUPPRESS)
    add_option(parser)
    asked = parser.parse_args()
    if asked.pod:
        try:
            run_pod(**asked.pod)
        except TechFlowError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        return 0
    line(WIDTHS, *HEADS)
    with tempfile.TemporaryDirectory() as name, place(asked.place, Path(name)) as store:
        runs = Runs(store, Path(name), asked.rows)
        for seconds in asked.away:
            during = f", {seconds:g} s without the store" if seconds else ""
            with away(store, asked.pods * 0.2, seconds):
                runs.show(
                    f"{asked.pods} pods{during}",
                    asked.pods,
                    lambda base_url: start_one_each(asked.pods, store.url, base_url, runs.folder),
                )
            with away(store, asked.seconds * 0.2, seconds):
                runs.show(
                    f"{asked.saturating} pods for {asked.seconds:g} s{during}",
                    0,
                    lambda base_url: saturate(asked.saturating, asked.seconds, store.url, base_url, runs.folder),
                )
    return 0 if runs.met else 1


if __name__ == "__main__":
    sys.exit(main())
