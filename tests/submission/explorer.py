"""Explore starts in virtual time: tasks that crash and stop, on servers and deployments that differ from the model.

Each seed is a world with three tasks. Their attempts are the real flows, whose steps are carried out in virtual time: a
step takes a while, and the process may crash or stop before or after it. Prints, for each kind of world, how many tasks
succeeded, how many executions were started beyond one a task, and so on:
`python -m tests.submission.explorer --seeds 200`.
"""

from __future__ import annotations

import argparse
import heapq
import json
import logging
import random
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from itertools import count
from typing import Any

import httpx

from techflow_provider.client import AmbiguousExecutionError, TechFlowError
from techflow_provider.client.errors import TransportError
from techflow_provider.client.flow import FlowContext
from techflow_provider.client.retry import RetryPolicy
from techflow_provider.client.settings import Settings
from techflow_provider.state.memory import MemoryStore
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.legacy import LegacyState
from techflow_provider.submission.model import Attempt, SubmissionPolicy, Submitter
from techflow_provider.submission.start import mark_done, resolve, send
from tests.submission.stepping import OpenBudget, Send, Sleep, SteppingIO, UseState

NOON = datetime(2026, 1, 1, 12, 0, 7, tzinfo=UTC)
TASKS = 3
MOST_ATTEMPTS = 30
# What comes of a request: the response arrives, or it doesn't, with or without an effect.
OUTCOMES = ("response", "response", "lost", "lost", "502", "502 acting", "unreadable", "429", "refused", "late")
CALM = ("response", "response", "lost", "502", "502 acting", "unreadable")


@dataclass(frozen=True)
class World:
    """What differs from the model.

    :param outcomes: what may come of a start
    :param crashes: the probability that a process is killed at a step
    :param stops: the probability that a process stops for minutes at a step
    :param lag: the longest time until the history shows an execution
    :param limit: how many executions the history shows
    :param foreign_seconds: the mean time between two starts of somebody else
    :param date_offset: how far `Date` is ahead of the clock that writes the times of executions, at most
    :param precision: the unit of these times in seconds
    :param zone_hours: how far naive local times are ahead of UTC; None for UTC with its Z
    :param only_dates: whether these times are dates alone
    :param queue: how long an execution is queued at most
    :param queued: what the history shows of a queued one: `listed`, `unlisted` or `untimed`
    :param ids_per_workflow: whether ids are unique within a workflow only
    :param flushes: whether the shared state is emptied
    :param sets_clock: whether the clock of the shared state is set by an hour, and back later
    :param rotates: whether the API key is replaced
    :param deployments: how many deployments run the same tasks
    """

    outcomes: tuple[str, ...] = CALM
    crashes: float = 0.0
    stops: float = 0.0
    lag: float = 0.5
    limit: int | None = None
    foreign_seconds: float | None = None
    date_offset: float = 0.0
    precision: float = 0.0
    zone_hours: float | None = None
    only_dates: bool = False
    queue: float = 0.0
    queued: str = "listed"
    ids_per_workflow: bool = False
    flushes: bool = False
    sets_clock: bool = False
    rotates: bool = False
    deployments: int = 1


CRASHES = 0.04
WORLDS: dict[str, World] = {
    "quiet": World(),
    "crashes": World(OUTCOMES, crashes=CRASHES),
    "stops": World(OUTCOMES, crashes=0.02, stops=0.03),
    "lags of 0-120 s": World(OUTCOMES, lag=120.0),
    "newest 20, a foreign start a second": World(limit=20, foreign_seconds=1.0),
    "Date off by 30 s": World(date_offset=30.0, crashes=0.01),
    "times to the minute": World(precision=60.0, crashes=0.01),
    "naive local times": World(zone_hours=2.0, crashes=0.01),
    "local dates": World(zone_hours=-13.0, only_dates=True, crashes=0.01),
    "queued ones unlisted": World(queue=100.0, queued="unlisted"),
    "queued ones without a time": World(queue=100.0, queued="untimed"),
    "ids per workflow": World(OUTCOMES, ids_per_workflow=True, crashes=CRASHES),
    "foreign starts, half 502": World(("502", "502 acting", "response", "response"), foreign_seconds=60.0),
    "store flushed": World(crashes=CRASHES, flushes=True),
    "the store's clock set": World(OUTCOMES, crashes=CRASHES, sets_clock=True),
    "key rotated": World(OUTCOMES, crashes=CRASHES, rotates=True),
    "two deployments": World(OUTCOMES, crashes=CRASHES, deployments=2),
}


@dataclass
class Execution:
    """An execution on the server.

    :param job: whose request started it; None for somebody else's
    """

    id: str
    workflow_id: str
    payload: Any
    at: float
    visible_at: float
    starts_at: float
    job: Job | None


@dataclass(eq=False)
class Job:
    """A task, with what it got."""

    name: str
    workflow_id: str
    payload: dict[str, Any] | None
    waits: bool
    attempts: int = 0
    outcome: str = ""
    got: tuple[str, str] | None = None
    saw_payloads: bool = False
    requests: int = 0


class Process:
    """One attempt of a task."""

    def __init__(self, job: Job, flow: Coroutine[Any, Any, Any]) -> None:
        self.job = job
        self.flow = flow
        self.is_alive = True


class Simulation:
    """One world with one seed.

    :param world: what differs from the model
    :param seed: of all random choices
    """

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.echoes = self.random.random() < 0.5
        self.time = 1000.0
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = count()
        self.date_offset = self.random.uniform(-world.date_offset, world.date_offset)
        self.clock_ahead = 0.0
        self.store = MemoryStore(lambda: self.time + self.clock_ahead)
        self.executions: list[Execution] = []
        self.polls = 0
        self.key = "key-1"
        self.jobs = [job for number in range(TASKS) for job in self._jobs(number)]
        self.processes: list[Process] = []
        self.begins: dict[str, float] = {}

    def _jobs(self, number: int) -> Iterable[Job]:
        workflow_id = self.random.choice(("wf_1", "wf_2"))
        payload = {"of": number} if self.random.random() < 0.5 else None
        waits = self.random.random() < 0.5
        for deployment in range(self.world.deployments):
            of = None if payload is None else {**payload, "deployment": deployment}
            yield Job(f"{deployment}/task-{number}", workflow_id, of, waits)

    # Time.

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self.queue, (self.time + seconds, next(self.numbers), act))

    def run(self) -> Simulation:
        """Let everything happen."""
        # The deployment and the account have been in use for a while.
        self._use_before()
        for job in self.jobs:
            self.after(self.random.choice((0.0, self.random.uniform(0, 60.0))), partial(self.spawn, job))
        if self.world.foreign_seconds is not None:
            self.after(0.0, self.start_foreign)
        if self.world.flushes:
            self.after(self.random.uniform(1, 300), self.flush)
        if self.world.sets_clock:
            self.after(self.random.uniform(1, 60), partial(self.set_clock, self.random.choice((-3600.0, 3600.0))))
            self.after(self.random.uniform(60, 300), partial(self.set_clock, 0.0))
        if self.world.rotates:
            self.after(self.random.uniform(1, 300), self.rotate)
        while self.queue and not all(job.outcome for job in self.jobs):
            self.time, _, act = heapq.heappop(self.queue)
            act()
        return self

    def _use_before(self) -> None:
        is_used = self.random.random() < 0.5
        for number in range(3 * is_used):
            job = Job(f"earlier-{number}", "wf_1", None, waits=False)
            flow = self.life(job)
            value = None
            while True:
                try:
                    step = flow.send(value)
                except StopIteration:
                    break
                value = self._carry_out_at_once(step, job)
            self.time += 3600.0
        self.polls = 0

    def _carry_out_at_once(self, step: Any, job: Job) -> Any:
        match step:
            case UseState():
                return step.run()
            case Sleep(seconds):
                self.time += seconds
                return None
            case Send(call, request):
                if call.method == "GET":
                    return self.list(request)
                return self.respond(self.start(request, job), 0.05)
        raise AssertionError(step)

    def set_clock(self, ahead: float) -> None:
        """Set the clock of the shared state."""
        self.clock_ahead = ahead

    def flush(self) -> None:
        """Empty the shared state."""
        vars(self.store).update(vars(MemoryStore(lambda: self.time)))

    def rotate(self) -> None:
        """Replace the API key."""
        self.key = "key-2"

    def start_foreign(self) -> None:
        """Start an execution as somebody else does."""
        payload = {"by": "hand"} if self.random.random() < 0.3 else None
        self.add(self.random.choice(("wf_1", "wf_2")), payload, None)
        assert self.world.foreign_seconds is not None
        self.after(self.random.uniform(0.5, 1.5) * self.world.foreign_seconds, self.start_foreign)

    # The server.

    def add(self, workflow_id: str, payload: Any, job: Job | None) -> Execution:
        """Start an execution."""
        same = [each for each in self.executions if each.workflow_id == workflow_id]
        number = len(same) if self.world.ids_per_workflow else len(self.executions)
        lag = self.random.choice((0.0, self.random.uniform(0, self.world.lag)))
        queued = self.random.choice((0.0, self.random.uniform(0, self.world.queue)))
        visible = self.time + lag + (queued if self.world.queued == "unlisted" else 0.0)
        execution = Execution(f"ex_{number + 1}", workflow_id, payload, self.time, visible, self.time + queued, job)
        self.executions.append(execution)
        return execution

    def start(self, request: httpx.Request, job: Job) -> Execution:
        """Act on a request."""
        payload = json.loads(request.content) if request.content else None
        return self.add(request.url.path.split("/")[-2], payload, job)

    def respond(self, execution: Execution, elapsed: float) -> httpx.Response:
        """Return the response to a start."""
        return self.response(200, self.render(execution), elapsed)

    def list(self, request: httpx.Request) -> httpx.Response:
        """Return the history."""
        self.polls += 1
        shown = [each for each in reversed(self.executions) if each.visible_at <= self.time][: self.world.limit]
        return self.response(200, {"executions": [self.render(each) for each in shown]}, 0.05)

    def response(self, status: int, value: Any, elapsed: float) -> httpx.Response:
        """Return a response of now."""
        date = format_datetime(
            (NOON + timedelta(seconds=self.time + self.date_offset)).replace(microsecond=0), usegmt=True
        )
        request = httpx.Request("GET", "https://api.techflow.com/v2/executions")
        found = httpx.Response(status, headers={"date": date}, content=json.dumps(value), request=request)
        found.elapsed = timedelta(seconds=elapsed)
        return found

    def render(self, execution: Execution) -> dict[str, Any]:
        """Return an execution as the history shows it."""
        started = self.timestamp(execution.starts_at)
        is_queued = execution.starts_at > self.time
        row = {
            "id": execution.id,
            "workflow_id": execution.workflow_id,
            "status": "queued" if is_queued else "running",
            "started_at": None if is_queued and self.world.queued != "listed" else started,
        }
        if self.echoes:
            row["input"] = execution.payload
        return row

    def timestamp(self, at: float) -> str:
        """Return a time as the server writes it."""
        seconds = at // self.world.precision * self.world.precision if self.world.precision else at
        moment = NOON.replace(second=0) + timedelta(seconds=seconds + (7 if not self.world.precision else 0))
        if self.world.zone_hours is None:
            return moment.isoformat().replace("+00:00", "Z")
        text = (moment + timedelta(hours=self.world.zone_hours)).replace(tzinfo=None).isoformat()
        return text[: len("2026-01-01")] if self.world.only_dates else text

    # Tasks.

    def spawn(self, job: Job) -> None:
        """Begin another attempt of a task."""
        if job.outcome:
            return
        job.attempts += 1
        if job.attempts > MOST_ATTEMPTS:
            job.outcome = "failed"
            return
        process = Process(job, self.life(job))
        self.processes.append(process)
        self.resume(process, None)

    async def life(self, job: Job) -> tuple[str, str]:
        """What the operator does in one attempt."""
        settings = Settings(self.key)
        context = FlowContext(
            settings, SteppingIO(), OpenBudget(), RetryPolicy(), lambda: self.time, self.random.random, now=self.now
        )
        legacy = LegacyState(self.store, settings.account, job.name)
        attempts = AttemptStore(self.store, settings.site, job.name, legacy=legacy)
        began = NOON + timedelta(seconds=self.time if job.attempts <= 1 else self.begins[job.name])
        self.begins.setdefault(job.name, self.time)
        submitter = Submitter(job.name, "1", is_retry=job.attempts > 1, began=began)
        policy = SubmissionPolicy(wait_for_completion=job.waits)
        attempt = Attempt(context, submitter, attempts, policy, job.workflow_id, job.payload)
        # As `ExecutionStarter` does: a first attempt has nothing to resolve.
        submission = (await resolve(attempt) if job.attempts > 1 else None) or await send(attempt)
        if job.waits:
            await SteppingIO().sleep(self.random.uniform(0, 60))
            await mark_done(context, attempts, submission.execution.id)
        return submission.execution.workflow_id or job.workflow_id, submission.execution.id

    def now(self) -> datetime:
        """Return the time of every host."""
        return NOON + timedelta(seconds=self.time)

    def resume(self, process: Process, value: Any) -> None:
        """Let a process take its next step."""
        if not process.is_alive:
            return
        try:
            step = process.flow.send(value)
        except StopIteration as finished:
            self.end(process, "success", finished.value)
        except AmbiguousExecutionError:
            self.end(process, "ambiguous", None)
        except TechFlowError:
            self.end(process, "", None)
            self.after(self.random.uniform(5, 60), lambda: self.spawn(process.job))
        else:
            self.carry_out(process, step)

    def end(self, process: Process, outcome: str, got: tuple[str, str] | None) -> None:
        """Report the outcome of an attempt to Airflow, which ignores one that it has given up."""
        process.is_alive = False
        if process in self.processes and outcome and not process.job.outcome:
            process.job.outcome, process.job.got = outcome, got
            process.job.saw_payloads = self.echoes and any(
                each.payload is not None and each.visible_at < self.time for each in self.executions
            )
        self.processes = [each for each in self.processes if each is not process]

    def carry_out(self, process: Process, step: Any) -> None:
        """Carry out a step; the process may crash or stop around it."""
        is_post = isinstance(step, Send) and step.call.method == "POST"
        # A process that stops right before its request leaves, after the last check, is beyond any client.
        if not is_post and self.is_interrupted(process, step, lambda: self.carry_out(process, step)):
            return
        match step:
            case UseState():
                seconds, value = self.random.uniform(0, 0.02), step.run()
            case Sleep(pause):
                seconds, value = pause, None
            case Send(_, request) if is_post:
                self.post(process, request)
                return
            case Send(_, request):
                response = self.list(request)
                seconds, value = 0.05, response
            case _:
                raise AssertionError(step)
        self.continue_after(process, seconds, value)

    def continue_after(self, process: Process, seconds: float, value: Any) -> None:
        """Hand over the result of a step."""
        if self.random.random() < self.world.crashes:
            self.after(self.random.uniform(0, seconds), lambda: self.kill(process))
        if self.random.random() < self.world.stops:
            self.stop(process)
            seconds += self.random.uniform(10, 600)
        self.after(seconds, lambda: self.resume(process, value))

    def is_interrupted(self, process: Process, step: Any, again: Callable[[], None]) -> bool:
        """Whether the process is killed before the step, or stops and takes it later."""
        del step
        if self.random.random() < self.world.crashes / 2:
            self.kill(process)
            return True
        if self.random.random() < self.world.stops / 2:
            self.stop(process)
            self.after(self.random.uniform(10, 600), lambda: again() if process.is_alive else None)
            return True
        return False

    def kill(self, process: Process) -> None:
        """Kill a process; Airflow notices it some time later."""
        if process.is_alive:
            process.is_alive = False
            process.flow.close()
            self.after(self.random.uniform(5, 300), lambda: self.spawn_again(process))

    def stop(self, process: Process) -> None:
        """Stop a process; Airflow may take it for dead, and try again, while it continues later."""
        self.after(self.random.uniform(60, 400), lambda: self.spawn_again(process))

    def spawn_again(self, process: Process) -> None:
        """Try again, if the process is still the task's latest and hasn't ended."""
        latest = [each for each in self.processes if each.job is process.job]
        if latest and latest[-1] is process:
            self.processes.remove(process)
            self.spawn(process.job)

    def post(self, process: Process, request: httpx.Request) -> None:
        """Carry out a start: it takes effect or not, and is responded to or not."""
        process.job.requests += 1
        outcome = self.random.choice(self.world.outcomes)
        call = "POST …/execute"
        delay, wait = self.random.uniform(0.01, 0.3), self.random.uniform(0.05, 3.0)
        if outcome == "late":
            delay, wait = self.random.uniform(0.0, 28.0), 0.0
        if outcome not in ("502", "429", "refused"):
            self.after(delay, lambda: self.act(process, request, outcome, wait, delay))
        if outcome in ("response", "502 acting", "unreadable"):
            return
        failures: dict[str, Any] = {
            "502": lambda: self.response(502, {}, delay + wait),
            "429": lambda: httpx.Response(429, headers={"retry-after": "1"}),
            "refused": lambda: TransportError(call, "refused", maybe_sent=False),
        }
        failure = failures.get(outcome, lambda: TransportError(call, "lost", maybe_sent=True))
        self.after(delay + wait, lambda: self.continue_after(process, 0.0, failure()))
        if self.random.random() < self.world.crashes:
            self.after(self.random.uniform(0, delay + wait), lambda: self.kill(process))

    def act(self, process: Process, request: httpx.Request, outcome: str, wait: float, delay: float) -> None:
        """Let a start take effect."""
        execution = self.start(request, process.job)
        results: dict[str, Callable[[], Any]] = {
            "response": lambda: self.respond(execution, delay + wait),
            "502 acting": lambda: self.response(502, {}, delay + wait),
            "unreadable": lambda: httpx.Response(200, headers=self.response(200, {}, 0).headers, content=b"<html>"),
        }
        if outcome in results:
            self.after(wait, lambda: self.continue_after(process, 0.0, results[outcome]()))

    # The result.

    def count(self) -> Counter[str]:
        """Return what came of it."""
        counts = Counter(job.outcome for job in self.jobs)
        counts["tasks"], counts["polls"] = len(self.jobs), self.polls
        by_id = {(each.workflow_id, each.id): each for each in self.executions}
        got = [by_id[job.got] for job in self.jobs if job.got is not None]
        counts["foreign"] = sum(each.job is None for each in got)
        groups = {(job.workflow_id, json.dumps(job.payload)) for job in self.jobs}
        for workflow_id, payload in groups:
            wanted = sum((job.workflow_id, json.dumps(job.payload)) == (workflow_id, payload) for job in self.jobs)
            started = [each for each in self.executions if each.job in self.jobs and each.workflow_id == workflow_id]
            counts["duplicates"] += max(0, sum(json.dumps(each.payload) == payload for each in started) - wanted)
        shared = sum(many - 1 for many in Counter(map(id, got)).values())
        wrong = sum(
            by_id[job.got].job is not None and by_id[job.got].payload != job.payload for job in self.jobs if job.got
        )
        counts["losses"] = shared + wrong
        # Where nothing has shown a payload, one on the same workflow can't be distinguished from a start without.
        with_payload = {job.workflow_id for job in self.jobs if job.payload is not None}
        counts["avoidable"] = sum(
            job.outcome == "ambiguous"
            and (job.saw_payloads or (job.payload is None and job.workflow_id not in with_payload))
            for job in self.jobs
        )
        return counts


COLUMNS = ("tasks", "success", "duplicates", "losses", "foreign", "ambiguous", "avoidable", "failed")


def explore(name: str, seeds: Iterable[int]) -> Counter[str]:
    """Return what came of a kind of world with some seeds."""
    total: Counter[str] = Counter()
    for seed in seeds:
        found = Simulation(WORLDS[name], seed).run().count()
        total += found
        if found["duplicates"] or found["losses"]:
            total["seeds"] += 1
            logging.getLogger(__name__).error("%s, seed %d: %s", name, seed, dict(found))
    return total


def main() -> int:
    """Explore all kinds of worlds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO if options.verbose else logging.ERROR, format="%(message)s")
    if not options.verbose:
        logging.getLogger("techflow_provider").setLevel(logging.CRITICAL)
    sys.stdout.write(f"{'world':38}" + "".join(f"{column:>11}" for column in (*COLUMNS, "polls")) + "\n")
    failed = False
    for name in WORLDS:
        if options.only in name:
            total = explore(name, range(options.first, options.first + options.seeds))
            polls = total["polls"] / max(1, total["tasks"])
            sys.stdout.write(
                f"{name:38}" + "".join(f"{total[column]:>11}" for column in COLUMNS) + f"{polls:>11.1f}" + "\n"
            )
            sys.stdout.flush()
            failed = failed or bool(total["duplicates"] or total["losses"])
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
