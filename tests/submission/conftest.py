"""A client of the sandbox in-process, and the submitters whose attempts it makes; no test really waits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from techflow_provider.client import Client, Settings
from techflow_provider.client.flow import Flow
from techflow_provider.sandbox import ManualClock, Sandbox
from techflow_provider.state.budget import LocalBudget
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.store import StoreError
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.legacy import LegacyState
from techflow_provider.submission.model import Attempt, Submission, SubmissionPolicy, Submitter
from techflow_provider.submission.start import resolve, send

ACCOUNT = "account"
SITE = "site"
TASK = "dag/run/task/-1"


class FailingStore(MemoryStore):
    """A store that fails while it is broken, after as many updates as are allowed."""

    broken = False
    updates_left = float("inf")

    def update(self, namespace: str, name: str, change: Any) -> Any:
        """Update an entry."""
        self.updates_left -= 1
        if self.broken or self.updates_left < 0:
            raise StoreError("the disk is full")
        return super().update(namespace, name, change)


class TaskState:
    """A task's own state, as Airflow 3.3 keeps it."""

    def __init__(self) -> None:
        self.value: Any = None
        self.broken = False

    def read(self) -> Any:
        """Return the value."""
        self._check()
        return self.value

    def write(self, value: dict[str, Any]) -> None:
        """Write a value."""
        self._check()
        self.value = value

    def drop(self) -> None:
        """Delete the value."""
        self._check()
        self.value = None

    def _check(self) -> None:
        if self.broken:
            raise StoreError("no supervisor")


class Starter:
    """Makes the attempts of tasks, each with one client.

    :param client: sends the requests
    :param store: the shared state
    :param clock: that of all hosts
    """

    def __init__(self, client: Client, store: FailingStore, clock: ManualClock) -> None:
        self.client = client
        self.store = store
        self.context = replace(client.context, now=clock.now)

    def run(self, flow: Flow[Any]) -> Any:
        """Run a flow."""
        return self.client.run(flow)

    def attempt(
        self,
        task: str = TASK,
        *,
        generation: int = 1,
        policy: SubmissionPolicy | None = None,
        payload: Any = None,
        task_state: TaskState | None = None,
        workflow_id: str = "wf_1",
    ) -> Attempt:
        """Return the next attempt of a task."""
        attempts = AttemptStore(self.store, SITE, task, task_state, legacy=LegacyState(self.store, ACCOUNT, task))
        submitter = Submitter(task, str(generation))
        return Attempt(self.context, submitter, attempts, policy or SubmissionPolicy(), workflow_id, payload)

    def start(self, task: str = TASK, **options: Any) -> Submission:
        """Start an execution as an attempt of a task does."""
        attempt = self.attempt(task, **options)
        found: Submission = self.run(resolve(attempt)) or self.run(send(attempt))
        return found


@pytest.fixture
def store(clock: ManualClock) -> FailingStore:
    """The shared state."""
    return FailingStore(clock.monotonic)


@pytest.fixture
def starter(sandbox: Sandbox, clock: ManualClock, api_key: str, store: FailingStore) -> Iterator[Starter]:
    """Make attempts against a sandbox with one workflow."""
    sandbox.add_workflow("My Workflow", id="wf_1")
    with Client(
        settings=Settings(api_key, sandbox.base_url, verify=False),
        budget=LocalBudget(100_000, 50_000, clock.monotonic),
        transport=sandbox.transport(),
        clock=clock.monotonic,
        sleep=clock.advance,
    ) as client:
        yield Starter(client, store, clock)
