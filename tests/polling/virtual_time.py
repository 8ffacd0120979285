"""Run a test in an event loop whose clock jumps from timer to timer, so that hours of polling take milliseconds."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

P = ParamSpec("P")

MOST_TURNS = 100_000
TURN_SECONDS = 1e-6


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for nothing: what it is asked to wait is added to the clock.

    :ivar now: seconds
    :ivar turns: how often the loop has turned without waiting
    """

    now = 0.0
    turns = 0

    def select(self, timeout: float | None = None) -> Any:
        self.turns = 0 if timeout else self.turns + 1
        if timeout is None or self.turns > MOST_TURNS:
            raise RuntimeError("the test hangs: nothing is scheduled, or a task never waits")
        # As on a real machine, every turn takes some time, or a timer that fires a rounding error early fires for ever.
        self.now += max(TURN_SECONDS, timeout)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time; what would run in a thread runs at once in this one."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]  # without its generic types
        async def run() -> Any:
            return func(*args)

        return self.create_task(run())


def virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an asynchronous test in virtual time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run
