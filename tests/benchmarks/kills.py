"""Does a task that is killed at any time, and meets faults at any step, ever start two executions or none?

Tasks run in processes of their own against a sandbox over a socket: each starts one execution, several at once on a
few workflows, and is run again until it succeeds. Requests meet random faults before, during and after their effect,
and processes are killed with SIGKILL at random times. Prints the seed, executions, tasks, duplicates and losses, and
ends with 1 when there is one of the latter two.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from techflow_provider.client.client import Client
from techflow_provider.client.errors import AmbiguousExecutionError, TechFlowError
from techflow_provider.client.history import ExecutionSelector
from techflow_provider.client.settings import Settings
from techflow_provider.state.budget import LocalBudget, SharedBudget
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.model import Attempt, SubmissionPolicy, Submitter
from techflow_provider.submission.start import resolve, send

if TYPE_CHECKING:
    from tests.benchmarks.places import ACCOUNT, KEY, open_place
    from tests.benchmarks.rows import Row, add_option, hand_over
else:
    from places import ACCOUNT, KEY, open_place
    from rows import Row, add_option, hand_over

SHARED_WORKFLOWS = 4
AT_ONCE = 12
MOST_KILLS = 6
# The exit code of a task that can't determine what it has started.
AMBIGUOUS = 2
# A server that is slower than this under load, or a process stopped for longer, would break what the package assumes.
LAG_SECONDS = 4.0
START = {"method": "POST", "path": "/workflows/*/execute"}
LOOK = {"method": "GET", "path": "/executions"}
FAULTS: tuple[dict[str, Any], ...] = (
    {**START, "kind": "lost_response", "probability": 0.08},
    {**START, "kind": "status", "status": 502, "when": "before", "probability": 0.04},
    {**START, "kind": "status", "status": 502, "when": "after", "probability": 0.08},
    {**START, "kind": "reset", "when": "before", "probability": 0.03},
    {**START, "kind": "hang", "when": "before", "seconds": 1.5, "probability": 0.04},
    {**START, "kind": "hang", "when": "after", "seconds": 1.5, "probability": 0.04},
    {**START, "kind": "truncated", "probability": 0.04},
    {**START, "kind": "html", "when": "after", "probability": 0.04},
    {**START, "kind": "status", "status": 429, "when": "before", "retry_after": "1", "probability": 0.04},
    {**LOOK, "kind": "status", "status": 500, "when": "before", "probability": 0.1},
    {**LOOK, "kind": "truncated", "probability": 0.05},
)


@dataclass
class Trial:
    """One task.

    :param name: its identity
    :param workflow_id: what it starts
    :param payload: what it sends; a task with one has a workflow of its own
    :param kills: how often its process was killed
    """

    name: str
    workflow_id: str
    payload: dict[str, Any] | None
    kills: int = 0
    pid: int = 0
    dies_at: float = field(default=float("inf"))


@dataclass(frozen=True)
class World:
    """Where tasks run.

    :param base_url: of the sandbox
    :param results: the folder in which tasks leave what they got
    :param url: of their shared state
    :param requests_per_minute: the limit that they keep; None for none
    :param wait_seconds: how long they wait for completion; 0: not at all
    """

    base_url: str
    results: Path
    url: str
    requests_per_minute: int | None = None
    wait_seconds: float = 0.0


@contextlib.contextmanager
def sandbox(workflows: list[str], seed: int, lag: float, *more: str) -> Iterator[str]:
    """Serve a sandbox in a process of its own and give its base URL.

    :param more: further options of its command line
    """
    options = [f"--workflow={each}" for each in workflows]
    command = [
        sys.executable,
        "-m",
        "techflow_provider.sandbox.server",
        "--port",
        "0",
        "--limit",
        "100000000",
        "--quiet",
    ]
    limits = ["--execution-seconds", "100000", "--history-lag", str(lag), "--seed", str(seed), "--key", KEY]
    process = subprocess.Popen([*command, *limits, *options, *more], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        greeting = process.stdout.readline()
        yield re.search(r"http://\S+/v2", greeting)[0]  # type: ignore[index]
    finally:
        process.terminate()
        process.wait(10)


def run_once(trial: Trial, world: World) -> None:
    """What one process of a task does."""
    store = open_place(world.url)
    limit = world.requests_per_minute
    budget = LocalBudget(10**8, 10**7) if limit is None else SharedBudget(store, ACCOUNT, limit)
    settings = Settings(KEY, world.base_url, timeout_seconds=1.0, response_seconds=2.0, verify=False)
    submitter, attempts = Submitter(trial.name, "1"), AttemptStore(store, ACCOUNT, trial.name)
    policy = SubmissionPolicy(history_lag_seconds=LAG_SECONDS)
    with Client(settings=settings, budget=budget) as client:
        attempt = Attempt(client.context, submitter, attempts, policy, trial.workflow_id, trial.payload)
        started = client.run(resolve(attempt)) or client.run(send(attempt))
        if world.wait_seconds:
            client.executions.wait(ExecutionSelector(started.execution.id), 3.0, world.wait_seconds)
    leave(world, trial.name, started.execution.id)


def leave(world: World, name: str, text: str) -> None:
    """Write a result whole."""
    half = world.results / f"{name}.half"
    half.write_text(text)
    half.rename(world.results / name)


def spawn(trial: Trial, world: World, chance: random.Random) -> None:
    """Run a task in a fork, and decide when it is killed."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run_once(trial, world)
            status = 0
        except AmbiguousExecutionError as error:
            status = AMBIGUOUS
            leave(world, f"{trial.name}.ambiguous", str(error))
        except TechFlowError as error:
            leave(world, f"{trial.name}.error", str(error))
        finally:
            os._exit(status)
    doomed = trial.kills < MOST_KILLS and chance.random() < 0.5
    trial.pid = pid
    longest = chance.choice([0.05, 0.2, 1.0, 5.0])
    trial.dies_at = time.monotonic() + chance.uniform(0, longest) if doomed else float("inf")


def run_all(
    trials: list[Trial],
    world: World,
    chance: random.Random,
    until: float,
    tick: Callable[[], object] = lambda: None,
    *,
    final: Collection[int] = (0,),
) -> int:
    """Run tasks until all have succeeded or the time is over, and return how many processes were started.

    :param tick: called again and again meanwhile
    :param final: the exit codes after which a task isn't run again
    """
    waiting, running, processes = list(reversed(trials)), list[Trial](), 0
    try:
        while (waiting or running) and time.monotonic() < until:
            tick()
            while waiting and len(running) < AT_ONCE:
                running.append(waiting.pop())
                spawn(running[-1], world, chance)
                processes += 1
            for trial in tuple(running):
                if time.monotonic() > trial.dies_at:
                    os.kill(trial.pid, signal.SIGKILL)
                    trial.kills += 1
                    trial.dies_at = float("inf")
                pid, status = os.waitpid(trial.pid, os.WNOHANG)
                if pid:
                    running.remove(trial)
                    if os.waitstatus_to_exitcode(status) not in final:
                        waiting.insert(chance.randint(0, len(waiting)), trial)
            time.sleep(0.002)
    finally:
        for trial in running:
            os.kill(trial.pid, signal.SIGKILL)
            os.waitpid(trial.pid, 0)
    return processes


def report(trials: list[Trial], executions: list[dict[str, Any]], state: Path) -> tuple[int, int, int]:
    """Return the tasks that ended, the executions beyond one a task, and the tasks without one of their own."""
    got = {trial.name: (state / trial.name).read_text() for trial in trials if (state / trial.name).exists()}
    owners = Counter(got.values())
    payloads = {each["id"]: each["payload"] for each in executions}
    wrong = [trial for trial in trials if trial.name in got and payloads.get(got[trial.name], "?") != trial.payload]
    shared = sum(count - 1 for count in owners.values())
    return len(got), max(0, len(executions) - len(trials)), len(trials) - len(got) + shared + len(wrong)


def main() -> int:
    """Run the trials."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--seconds", type=float, default=560.0)
    add_option(parser)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    chance = random.Random(options.seed)
    trials = [
        Trial(f"task-{number}", f"own-{number}", {"of": number})
        if chance.random() < 0.25
        else Trial(f"task-{number}", f"shared-{chance.randrange(SHARED_WORKFLOWS)}", None)
        for number in range(options.trials)
    ]
    workflows = sorted({trial.workflow_id for trial in trials})
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, sandbox(workflows, options.seed, lag=0.5) as base_url:
        control = base_url.removesuffix("/v2") + "/_sandbox"
        for fault in FAULTS:
            httpx.post(f"{control}/faults", json=fault).raise_for_status()
        world = World(base_url, Path(folder), str(Path(folder) / "state.db"))
        processes = run_all(trials, world, chance, began + options.seconds)
        executions = httpx.get(f"{control}/state", timeout=60).json()["executions"]
        ended, duplicates, losses = report(trials, executions, Path(folder))
    kills = sum(trial.kills for trial in trials)
    print(f"seed {options.seed}, {time.monotonic() - began:.0f} s: {processes} processes, {kills} of them killed")
    print(
        f"tasks {len(trials)} (ended {ended}), executions {len(executions)}, duplicates {duplicates}, losses {losses}"
    )
    n = f"{len(trials)} tasks, {kills} processes killed, seed {options.seed}"
    hand_over(
        options.rows,
        Row("executions beyond one a task, killed and with faults", duplicates, "", n, limit=0, bound="="),
        Row("tasks without an execution of their own", losses, "", n, limit=0, bound="="),
    )
    return 1 if duplicates or losses else 0


if __name__ == "__main__":
    sys.exit(main())
