"""What do lost responses cost: 1,000 deferrable tasks, whose first requests get a 500, and healthy starts beside them?

Runs the real flows, the real budget and the real shared poll on an event loop with virtual time, against a server that
responds with 500 without acting on the first request of each task. Prints how long all of it takes, how long a healthy
start waits for its request, and how long a task occupies a worker slot.

With `--payloads`, each task has a payload of its own, and its first request starts an execution. A task whose execution
cannot be determined is cleared once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import selectors
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from techflow_provider.client.errors import AmbiguousExecutionError, BudgetTimeoutError, RateLimitError, TechFlowError
from techflow_provider.client.flow import Call, FlowContext
from techflow_provider.client.parsing import Json
from techflow_provider.client.retry import Outcome, RetryPolicy
from techflow_provider.client.settings import Settings
from techflow_provider.polling.searches import SharedHistory
from techflow_provider.state.budget import Reservation, SharedBudget
from techflow_provider.state.memory import MemoryStore
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.model import Attempt, SubmissionPolicy, Submitter
from techflow_provider.submission.recovery import LostStartError, search
from techflow_provider.submission.start import finish_search, resolve, send

if TYPE_CHECKING:
    from tests.benchmarks.rows import Row, add_option, hand_over
else:
    from rows import Row, add_option, hand_over

T = TypeVar("T")

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
# What Airflow takes to give a task that resumes a worker again, and what a worker takes beside the flows.
RESUME_SECONDS, WORKER_SECONDS = 1.5, 1.0
ADMISSION_SECONDS = 2.0
HEALTHY_INTERVAL_SECONDS = 6.0


class VirtualSelector(selectors.SelectSelector):
    """Lets time jump where the loop would wait."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        """Let the time pass at once."""
        self.now += max(0.0, timeout or 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with virtual time."""

    def __init__(self) -> None:
        self.virtual = VirtualSelector()
        super().__init__(self.virtual)

    def time(self) -> float:
        """Return the virtual time."""
        return self.virtual.now


class World:
    """The server, the shared state, and what is measured."""

    def __init__(self, loop: VirtualLoop, tasks: int, seed: int, payloads: str | None = None) -> None:
        self.loop = loop
        self.payloads = payloads
        self.random = random.Random(seed)
        self.failing = {f"task-{number}" for number in range(tasks)}
        self.executions: list[dict[str, Any]] = []
        self.requests: Counter[str] = Counter()
        self.slots: dict[str, float] = {}
        self.done: dict[str, float] = {}
        self.failed: list[str] = []
        self.cleared: list[str] = []
        self.healthy: list[float] = []
        self.store = MemoryStore(loop.time)
        self.budget = SharedBudget(self.store, "account", 100, 6, clock=loop.time)
        self.shared = SharedHistory(self.store, "account")

    def context(self, task: str) -> FlowContext:
        """Return what the flows of a task run with."""
        io = VirtualIO(self, task)
        retry = RetryPolicy()
        settings = Settings("key")
        return FlowContext(settings, io, self.budget, retry, self.loop.time, self.random.random, now=self.now)

    def now(self) -> datetime:
        """Return the time of all hosts and the server."""
        return NOON + timedelta(seconds=self.loop.time())

    def respond(self, task: str, request: httpx.Request) -> httpx.Response:
        """Act on a request, and return the response."""
        self.requests[request.method] += 1
        headers = {"date": format_datetime(self.now(), usegmt=True)}
        if request.method == "GET":
            return httpx.Response(
                200, headers=headers, content=json.dumps({"executions": self.executions[::-1]}), request=request
            )
        is_lost = task in self.failing
        self.failing.discard(task)
        if is_lost and self.payloads is None:
            return httpx.Response(500, headers=headers)
        started_at = self.now().isoformat()
        row = {"id": f"ex_{len(self.executions)}", "workflow_id": "wf_1", "status": "running", "started_at": started_at}
        if self.payloads == "shown":
            row["input"] = json.loads(request.content or "null")
        self.executions.append(row)
        return httpx.Response(500 if is_lost else 200, headers=headers, content=json.dumps(row))


class VirtualIO:
    """The `IO` of one task."""

    def __init__(self, world: World, task: str) -> None:
        self.world = world
        self.task = task

    async def send(self, _: Call[Any], request: httpx.Request) -> Outcome:
        """Send a request."""
        await asyncio.sleep(0.1)
        response = self.world.respond(self.task, request)
        await asyncio.sleep(0.1)
        response.elapsed = timedelta(seconds=0.2)
        return response

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def use_state(self, act: Callable[[], T]) -> T:
        """Use the shared state."""
        return act()

    def abandon(self, act: Callable[[], object]) -> None:
        """Give a slot back."""
        act()

    async def decode(self, _: httpx.Response, read: Callable[[], T]) -> T:
        """Read a response."""
        return read()


class StartTask:
    """A task of the trigger operator, as a worker and the triggerer run it."""

    def __init__(self, world: World, name: str, *, deferrable: bool = True) -> None:
        self.world = world
        self.name = name
        self.deferrable = deferrable
        self.context = world.context(name)
        self.slot_seconds = 0.0
        self.is_admitted = False
        self.clears = 0
        self.polls = SharedHistory(world.store, "account")

    def attempt(self, polls: SharedHistory | None = None) -> Attempt:
        """Return an attempt of the task; in a worker, it shares what polls show through the state alone."""
        attempts = AttemptStore(self.world.store, "site", self.name)
        submitter = Submitter(
            self.name, str(self.clears), is_retry=False, attempt_id=f"{self.name}-{self.clears}", clears=self.clears
        )
        policy = SubmissionPolicy(defers_search=self.deferrable)
        payload: dict[str, Json] | None = {"of": self.name} if self.world.payloads else None
        return Attempt(self.context, submitter, attempts, policy, "wf_1", payload, polls or self.polls)

    async def run(self) -> None:
        """Start an execution; a person clears the task once if it can't be determined which."""
        try:
            await self.start()
        except AmbiguousExecutionError:
            self.world.cleared.append(self.name)
            self.clears = 1
            await self.start()

    async def start(self) -> None:
        """Start an execution, or fail."""
        sent, submission, found, lost = 0, None, None, None
        attempt = self.attempt()
        while submission is None:
            began = self.world.loop.time()
            try:
                if found is not None and lost is not None:
                    attempt = self.attempt()
                    submission = await finish_search(attempt, lost, found)
                    found = None
                if self.clears and submission is None:
                    submission = await resolve(attempt)
                submission = submission or await self.send(attempt, sent)
            except LostStartError as error:
                lost, sent = error.start, error.start.sent
                self.occupy(began)
                self.is_admitted = False
                found = await search(self.attempt(self.world.shared), lost)
                await asyncio.sleep(RESUME_SECONDS)
            except (BudgetTimeoutError, RateLimitError):
                self.occupy(began)
                await self.be_admitted()
            else:
                self.occupy(began)

    async def send(self, attempt: Attempt, sent: int) -> Any:
        """Send the request if a slot is near."""
        if self.deferrable and not self.is_admitted and not self.world.budget.admit(ADMISSION_SECONDS).granted:
            raise BudgetTimeoutError("POST", 0.0, 0.0)
        return await send(attempt, within_seconds=ADMISSION_SECONDS if self.deferrable else 600.0, sent=sent)

    async def be_admitted(self) -> None:
        """Wait in the triggerer for a slot."""
        earlier: Reservation | None = None
        while earlier is None or not earlier.may_send:
            earlier = self.world.budget.admit(10**6, earlier)
            if not earlier.may_send:
                await asyncio.sleep(earlier.wait_seconds)
        self.is_admitted = True
        await asyncio.sleep(RESUME_SECONDS)

    def occupy(self, began: float) -> None:
        """Count the time in a worker slot."""
        self.slot_seconds += self.world.loop.time() - began + WORKER_SECONDS


async def run_task(world: World, name: str) -> None:
    """Run a task, and note when it succeeded."""
    task = StartTask(world, name)
    try:
        await task.run()
        world.done[name] = world.loop.time()
    except TechFlowError:
        logging.getLogger(__name__).exception(name)
        world.failed.append(name)
    world.slots[name] = task.slot_seconds


async def one_healthy(world: World, number: int) -> None:
    """Start one execution in a worker, and note how long that took."""
    began = world.loop.time()
    await StartTask(world, f"healthy-{number}", deferrable=False).run()
    world.healthy.append(world.loop.time() - began)


def percentile(values: list[float], share: float) -> float:
    """Return a percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def main() -> int:
    """Run the tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--payloads", choices=("shown", "hidden"), help="whether the history shows them")
    add_option(parser)
    options = parser.parse_args()
    logging.getLogger("techflow_provider").setLevel(logging.CRITICAL)
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    world = World(loop, options.tasks, options.seed, options.payloads)

    async def everything() -> None:
        tasks = [asyncio.ensure_future(run_task(world, f"task-{number}")) for number in range(options.tasks)]
        healthy = asyncio.ensure_future(keep_starting())
        await asyncio.gather(*tasks)
        healthy.cancel()
        await asyncio.gather(healthy, return_exceptions=True)

    async def keep_starting() -> None:
        for number in range(10**6):
            running.append(asyncio.ensure_future(one_healthy(world, number)))
            await asyncio.sleep(HEALTHY_INTERVAL_SECONDS)

    running: list[Any] = []
    loop.run_until_complete(everything())
    minutes = max(world.done.values(), default=0.0) / 60
    slots, waits = list(world.slots.values()), world.healthy
    print(f"{options.tasks} tasks: {len(world.done)} succeeded, {len(world.failed)} failed, in {minutes:.1f} min")
    print(f"{len(world.cleared)} were cleared; {len(world.executions)} executions")
    print(f"requests: {world.requests['POST']} POSTs, {world.requests['GET']} polls; healthy starts {len(waits)}")
    print(f"a healthy start takes {percentile(waits, 0.5):.1f} s, p95 {percentile(waits, 0.95):.1f} s")
    median, high = percentile(slots, 0.5), percentile(slots, 0.95)
    print(f"worker slot: {median:.1f} s a task, p95 {high:.1f} s, at most {max(slots):.1f} s")
    n = f"{options.tasks} tasks, one 500 each, virtual time"
    hand_over(
        options.rows,
        Row("tasks that succeed after a lost response", len(world.done), "", n, limit=options.tasks, bound="="),
        Row("time until all have succeeded", minutes, "min", n, limit=25),
        Row("a healthy start beside them, p95", percentile(waits, 0.95), "s", n, limit=10),
        Row("worker slot of a task, p95", percentile(slots, 0.95), "s", n, limit=10),
    )
    return 0 if len(world.done) == options.tasks else 1


if __name__ == "__main__":
    sys.exit(main())
