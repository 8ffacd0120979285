"""Any interleaving of starts, lost responses, crashes, retries, clears and tasks on one workflow, step by step.

Every attempt of a task is a coroutine whose steps are carried out one at a time, in an order and with outcomes that
hypothesis chooses; a crash can come between any two. Finally there are as many executions as were needed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from techflow_provider.client import AmbiguousExecutionError, TechFlowError
from techflow_provider.client.flow import FlowContext
from techflow_provider.client.retry import RetryPolicy
from techflow_provider.client.settings import Settings
from techflow_provider.client.transport import transport_error
from techflow_provider.sandbox import ManualClock, Sandbox
from techflow_provider.sandbox.state import Execution
from techflow_provider.state.memory import MemoryStore
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.model import Attempt, SubmissionPolicy, Submitter
from techflow_provider.submission.records import AttemptRecord
from techflow_provider.submission.start import discard, mark_done, resolve, send
from tests.submission.conftest import TaskState
from tests.submission.stepping import OpenBudget, Send, Sleep, SteppingIO, UseState, step

WORKFLOWS = ("wf_1", "wf_2")
KEY = "k"
# What may happen to a start; a `late` one takes effect after the client has given up.
OUTCOMES = ("response", "slow", "lost", "502", "502 acting", "unreadable", "429", "refused", "late")
SECONDS = st.floats(0, 60)


@dataclass(frozen=True)
class WaitForCompletion:
    """A step of an attempt: wait until an execution is over; the result is whether it completed."""

    execution_id: str


@dataclass(frozen=True)
class Report:
    """The last step of an attempt: report its outcome to Airflow."""

    completed: bool


@dataclass(eq=False)
class Job:
    """A task, with how many executions it has needed and those that it got."""

    name: str
    workflow_id: str
    payload: dict[str, Any] | None
    waits: bool
    generation: int = 1
    needed: int = 1
    got: set[str] = field(default_factory=set)
    task_state: TaskState | None = None
    done: bool = False
    unclear: bool = False

    def __repr__(self) -> str:
        return f"{self.name}.{self.generation}"


@dataclass(eq=False)
class Process:
    """One attempt: a flow, the step it waits for, and the result of that step once there is one."""

    job: Job
    flow: Coroutine[Any, Any, None]
    step: Any = None
    performed: bool = False
    result: Any = None
    wakes_at: float = 0.0

    def __repr__(self) -> str:
        return f"{self.job}@{type(self.step).__name__}{'!' if self.performed else ''}"

    @property
    def about_to_post(self) -> bool:
        return isinstance(self.step, Send) and self.step.call.method == "POST" and not self.performed


class Starts(RuleBasedStateMachine):
    """The world: a server, the shared state, jobs and their processes."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.sandbox = Sandbox(api_keys=(KEY,), clock=self.clock, limit=10**6, seed=1, execution_seconds=math.inf)
        for workflow_id in WORKFLOWS:
            self.sandbox.add_workflow(workflow_id, id=workflow_id)
        self.http = httpx.Client(transport=self.sandbox.transport(), verify=False)
        self.store = MemoryStore(self.clock.monotonic)
        self.context = FlowContext(
            Settings(KEY),
            SteppingIO(),
            OpenBudget(),
            RetryPolicy(),
            self.clock.monotonic,
            lambda: 0.5,
            now=self.clock.now,
        )
        self.tasks_have_state = False
        self.jobs: list[Job] = []
        self.processes: list[Process] = []
        self.late: list[tuple[float, httpx.Request]] = []

    @initialize(
        lag=st.sampled_from([0.0, 3.0, 60.0]), times=st.sampled_from(["iso", "iso_seconds"]), stateful=st.booleans()
    )
    def set_up(self, lag, times, stateful) -> None:
        self.tasks_have_state = stateful
        self.sandbox.history_lag_seconds = lag
        self.sandbox.times = times

    # What people and Airflow do.

    @precondition(lambda self: len(self.jobs) < 4)
    @rule(workflow=st.sampled_from(WORKFLOWS), payload=st.sampled_from([False, False, True]), waits=st.booleans())
    def a_task_begins(self, workflow, payload, waits) -> None:
        name = f"task-{len(self.jobs)}"
        self.jobs.append(Job(name, workflow, {"of": name} if payload else None, waits))
        self.jobs[-1].task_state = TaskState() if self.tasks_have_state else None
        self.spawn(self.jobs[-1])

    @precondition(lambda self: self.retriable())
    @rule(data=st.data())
    def a_task_is_retried(self, data) -> None:
        """Because its process is gone, or is taken for dead and is not."""
        self.spawn(data.draw(st.sampled_from(self.retriable())))

    @precondition(lambda self: self.finished())
    @rule(data=st.data())
    def a_finished_task_is_cleared(self, data) -> None:
        job = data.draw(st.sampled_from(self.finished()))
        job.needed += 1
        self.clear(job)

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def a_running_task_is_cleared(self, data) -> None:
        job = data.draw(st.sampled_from(self.processes)).job
        for process in self.of(job):
            self.processes.remove(process)
        record = self.attempts(job).read()
        if record is not None and record.generation == str(job.generation) and self.is_served(record):
            job.needed += 1
            job.got.add(str(record.execution_id))
        self.clear(job)

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def a_process_is_killed(self, data) -> None:
        self.processes.remove(data.draw(st.sampled_from(self.processes)))

    @rule(seconds=st.floats(0.1, 400))
    def time_passes(self, seconds) -> None:
        self.advance(seconds)

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), steps=st.integers(1, 25))
    def a_process_continues(self, data, steps) -> None:
        process = data.draw(st.sampled_from(self.processes))
        for _ in range(steps):
            if process not in self.processes:
                return
            outcome = data.draw(st.sampled_from(OUTCOMES)) if process.about_to_post else "response"
            self.resume(process, outcome, data.draw(SECONDS) if outcome in ("slow", "late") else 0.0)
            if isinstance(process.step, WaitForCompletion) and not process.performed:
                self.finish(process.step.execution_id, process.job, completed=data.draw(st.booleans()))

    @invariant()
    def no_workflow_has_more_executions_than_were_needed(self) -> None:
        for workflow_id in WORKFLOWS:
            assert len(self.executions(workflow_id)) <= sum(each.needed for each in self.jobs_of(workflow_id))

    def teardown(self) -> None:
        """Let everything continue without further faults, and count."""
        self.advance(1000)
        for job in self.jobs:
            for _ in range(5000):
                if job.done:
                    break
                if not self.of(job):
                    self.spawn(job)
                process = self.of(job)[0]
                self.resume(process, "response", 0.0)
                if isinstance(process.step, WaitForCompletion) and not process.performed:
                    self.finish(process.step.execution_id, job, completed=True)
            assert job.done
        for workflow_id in WORKFLOWS:
            self.check(workflow_id)

    def check(self, workflow_id: str) -> None:
        jobs, started = self.jobs_of(workflow_id), {each.id: each for each in self.executions(workflow_id)}
        got = [execution_id for job in jobs for execution_id in job.got]
        assert len(got) == len(set(got)), "two tasks have the same execution"
        # What a cleared task has given up is like an execution that somebody else started.
        if not any(job.unclear for job in jobs):
            assert all(started[each].payload == job.payload for job in jobs for each in job.got)
            assert len(started) == sum(job.needed for job in jobs)
            assert [len(job.got) for job in jobs] == [job.needed for job in jobs]

    # How it is done.

    def retriable(self) -> list[Job]:
        return [job for job in self.jobs if not job.done and len(self.of(job)) < 2]

    def finished(self) -> list[Job]:
        return [job for job in self.jobs if job.done and not job.unclear]

    def of(self, job: Job) -> list[Process]:
        return [process for process in self.processes if process.job is job]

    def jobs_of(self, workflow_id: str) -> list[Job]:
        return [job for job in self.jobs if job.workflow_id == workflow_id]

    def executions(self, workflow_id: str) -> list[Execution]:
        return [each for each in self.sandbox.executions if each.workflow_id == workflow_id]

    def execution(self, execution_id: str) -> Execution:
        return next(each for each in self.sandbox.executions if each.id == execution_id)

    def attempts(self, job: Job) -> AttemptStore:
        return AttemptStore(self.store, KEY, job.name, job.task_state)

    def is_served(self, record: AttemptRecord) -> bool:
        """Whether nothing is left to a task but to report its success, so that clearing it asks for another."""
        known = record.execution_id is not None
        return record.done or (known and self.execution(str(record.execution_id)).status == "completed")

    def clear(self, job: Job) -> None:
        job.generation += 1
        job.done = False
        self.spawn(job)

    def spawn(self, job: Job) -> None:
        process = Process(job, self.life(job))
        process.step = process.flow.send(None)
        self.processes.append(process)

    async def life(self, job: Job) -> None:
        """What the operator does in one attempt."""
        submitter, attempts = Submitter(job.name, str(job.generation)), self.attempts(job)
        policy = SubmissionPolicy(wait_for_completion=job.waits)
        attempt = Attempt(self.context, submitter, attempts, policy, job.workflow_id, job.payload)
        before = self.attempts(job).read()
        known = await resolve(attempt)
        if known is None and before is not None and before.execution_id is None and not before.failed:
            # A task that was cleared starts another execution where it can't be determined what the earlier start did.
            is_cleared = before.generation != str(job.generation)
            job.needed, job.unclear = job.needed + is_cleared, job.unclear or is_cleared
        execution_id = (known or await send(attempt)).execution.id
        job.got.add(execution_id)
        completed = (await step(WaitForCompletion(execution_id))) if job.waits else True
        if job.waits:
            await (mark_done if completed else discard)(self.context, attempts, execution_id)
        await step(Report(completed))

    def resume(self, process: Process, outcome: str, seconds: float) -> None:
        """Perform a process's step, or hand its result over."""
        if not process.performed:
            process.result, process.performed = self.perform(process, outcome, seconds), True
            return
        if process.wakes_at > self.clock.monotonic():
            self.advance(process.wakes_at - self.clock.monotonic())
        process.performed = False
        try:
            process.step = process.flow.send(process.result)
        except StopIteration:
            self.processes.remove(process)
        except AmbiguousExecutionError:
            process.job.unclear = process.job.done = True
            self.processes = [each for each in self.processes if each.job is not process.job]
        except TechFlowError:
            self.processes.remove(process)

    def perform(self, process: Process, outcome: str, seconds: float) -> Any:  # noqa: PLR0911 - one return a step
        match process.step:
            case UseState():
                return process.step.run()
            case Sleep(pause):
                process.wakes_at = self.clock.monotonic() + pause
                return None
            case Send(call, request) if call.method == "POST":
                return self.post(process, request, outcome, seconds)
            case Send(_, request):
                return self.deliver(request)
            case WaitForCompletion(execution_id):
                return self.execution(execution_id).status == "completed"
            case Report(completed):
                self.report(process, completed)
                return None
        return 1.0

    def report(self, process: Process, completed: bool) -> None:
        if completed:
            process.job.done = True
            self.processes = [each for each in self.processes if each.job is not process.job or each is process]

    def finish(self, execution_id: str, job: Job, *, completed: bool) -> None:
        if self.execution(execution_id).finished_at is None:
            # What ends has been seen to begin, or clearing its task would be a clear while it runs.
            self.advance(self.sandbox.history_lag_seconds)
            self.sandbox.finish(execution_id, outcome="completed" if completed else "failed")
            job.needed += not completed

    def post(  # noqa: PLR0911 - one return an outcome
        self, process: Process, request: httpx.Request, outcome: str, seconds: float
    ) -> Any:
        call = str(process.step.call)
        match outcome:
            case "502":
                return httpx.Response(502)
            case "429":
                return httpx.Response(429, headers={"retry-after": "1"})
            case "refused":
                return transport_error(call, httpx.ConnectError("refused"))
            case "late":
                self.late.append((self.clock.monotonic() + seconds, request))
                return transport_error(call, httpx.ReadTimeout("slow"))
        response = self.deliver(request)
        match outcome:
            case "lost":
                return transport_error(call, httpx.ReadError("reset"))
            case "502 acting":
                return httpx.Response(502)
            case "unreadable":
                return httpx.Response(200, content=b"<html>")
        process.wakes_at = self.clock.monotonic() + seconds
        return response

    def deliver(self, request: httpx.Request) -> httpx.Response:
        sent = httpx.Request(request.method, request.url, headers=request.headers, content=request.content)
        response = self.http.send(sent)
        response.elapsed = timedelta(0)
        return response

    def advance(self, seconds: float) -> None:
        """Let time pass. A request that is recorded is sent at once, or never."""
        for process in tuple(self.processes):
            if process.about_to_post:
                self.resume(process, "response", 0.0)
        end = self.clock.monotonic() + seconds
        for due, request in sorted((each for each in self.late if each[0] <= end), key=lambda each: each[0]):
            self.clock.advance(max(0.0, due - self.clock.monotonic()))
            self.deliver(request)
        self.late = [each for each in self.late if each[0] > end]
        self.clock.advance(max(0.0, end - self.clock.monotonic()))


Starts.TestCase.settings = settings(
    max_examples=int(os.environ.get("START_EXAMPLES", "50")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestStarts = Starts.TestCase
