"""A start that is killed, or loses the shared state, at each of its steps: a later attempt leaves one execution.

A step is one operation on the shared state or the task's own state, or the request; each is interrupted before it has
an effect and after.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import httpx
import pytest

from techflow_provider.client import AmbiguousExecutionError, Client, Settings
from techflow_provider.sandbox import ManualClock, Sandbox
from techflow_provider.state.budget import LocalBudget
from techflow_provider.state.memory import MemoryStore
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.model import Attempt, Submission, SubmissionPolicy, Submitter
from techflow_provider.submission.start import resolve, send
from tests.submission.conftest import ACCOUNT, TASK, TaskState

KEY = "key-of-the-step-tests"
WAITS = SubmissionPolicy(wait_for_completion=True)
# More than there are in a start.
MOST_MOMENTS = 60


class KilledError(BaseException):
    """The process is killed here."""


class Steps:
    """Interrupts a start at numbered moments: there is one before and one after each step.

    :param interrupts: what happens at a moment
    """

    def __init__(self, interrupts: dict[int, Callable[[], None]] | None = None) -> None:
        self._interrupts = interrupts or {}
        self._moments = count()
        self.reached: set[int] = set()

    def around(self, act: Callable[..., Any]) -> Callable[..., Any]:
        """Return an operation with a moment before it and one after."""

        def run(*arguments: Any) -> Any:
            self._pass()
            result = act(*arguments)
            self._pass()
            return result

        return run

    def _pass(self) -> None:
        moment = next(self._moments)
        if moment in self._interrupts:
            self.reached.add(moment)
            self._interrupts[moment]()


class World:
    """One task, a server, the shared state, and the task's own state on Airflow 3.3.

    :param has_own_state: whether Airflow keeps a state for the task
    """

    def __init__(self, *, has_own_state: bool) -> None:
        self.clock = ManualClock()
        self.sandbox = Sandbox(api_keys=(KEY,), clock=self.clock, workflows_at_start={"wf_1": "one"})
        self.task_state = TaskState() if has_own_state else None
        self.kept = MemoryStore(self.clock.monotonic)

    def lose_shared_state(self) -> None:
        """Empty the shared state."""
        vars(self.kept).update(vars(MemoryStore(self.clock.monotonic)))

    def start(self, steps: Steps, payload: dict[str, Any] | None = None) -> Submission:
        """Start an execution as one attempt does."""
        store, own, inner = MemoryStore(), None, self.sandbox.transport()
        store.update = steps.around(self.kept.update)  # type: ignore[method-assign]
        store.entries = steps.around(self.kept.entries)  # type: ignore[method-assign]
        if self.task_state is not None:
            own = TaskState()
            for name in ("read", "write", "drop"):
                setattr(own, name, steps.around(getattr(self.task_state, name)))
        handle: Any = steps.around(inner.handle_request)
        with Client(
            settings=Settings(KEY, self.sandbox.base_url, verify=False),
            budget=LocalBudget(100_000, 50_000, self.clock.monotonic),
            transport=httpx.MockTransport(handle),
            clock=self.clock.monotonic,
            sleep=self.clock.advance,
        ) as client:
            context, attempts = replace(client.context, now=self.clock.now), AttemptStore(store, ACCOUNT, TASK, own)
            attempt = Attempt(context, Submitter(TASK, "1"), attempts, WAITS, "wf_1", payload)
            found: Submission | None = client.run(resolve(attempt))
            return found or client.run(send(attempt))


def kill() -> None:
    raise KilledError


@pytest.mark.parametrize("payload", [None, {"a": 1}])
@pytest.mark.parametrize("has_own_state", [False, True])
def test_a_start_that_is_killed_at_any_two_steps_leaves_one_execution(has_own_state, payload):
    for first in range(MOST_MOMENTS):
        for second in range(0, MOST_MOMENTS, 5):
            world, steps = World(has_own_state=has_own_state), Steps({first: kill})
            for each in (steps, Steps({second: kill})):
                with contextlib.suppress(KilledError):
                    world.start(each, payload)
                world.clock.advance(20)
            world.start(Steps(), payload)
            assert len(world.sandbox.executions) == 1, (first, second)
        if not steps.reached:
            return
    pytest.fail("a start has more steps than were interrupted")


@pytest.mark.parametrize("later", [0, 1, 2, 4])
def test_a_task_that_is_killed_after_the_shared_state_was_emptied_at_any_step_leaves_one_execution(later):
    for moment in range(MOST_MOMENTS):
        world = World(has_own_state=True)
        steps = Steps(
            {moment + later: kill, moment: world.lose_shared_state} if later else {moment: world.lose_shared_state}
        )
        with contextlib.suppress(KilledError):
            world.start(steps)
        world.clock.advance(20)
        # Claims may be lost with the record, so that an execution that fits may be another task's.
        with contextlib.suppress(AmbiguousExecutionError):
            world.start(Steps())
        assert len(world.sandbox.executions) == 1, moment
        if not steps.reached:
            return
    pytest.fail("a start has more steps than were interrupted")
