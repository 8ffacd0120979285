"""An `IO` that hands every step of a flow to whoever drives it, so that a test decides what comes of it, and when."""

from __future__ import annotations

import types
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from techflow_provider.client.flow import Call
from techflow_provider.state.budget import Budget
from techflow_provider.state.gcra import Reservation
from techflow_provider.state.store import StoreError

T = TypeVar("T")


@dataclass(frozen=True)
class Send:
    """Send a request; the result is a response or a `TransportError`."""

    call: Call[Any]
    request: httpx.Request


@dataclass(frozen=True)
class Sleep:
    """Wait."""

    seconds: float


@dataclass(frozen=True)
class UseState:
    """Run an operation on the shared state; the result is what it returns, or its `StoreError`."""

    act: Callable[[], Any]

    def run(self) -> Any:
        """Run it."""
        try:
            return self.act()
        except StoreError as error:
            return error


@types.coroutine
def step(value: Any) -> Generator[Any, Any, Any]:
    """Suspend with a step, and return what its driver sends."""
    return (yield value)


class SteppingIO:
    """Suspends at every step."""

    async def send(self, call: Call[Any], request: httpx.Request) -> Any:
        """Send a request."""
        return await step(Send(call, request))

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await step(Sleep(seconds))

    def abandon(self, act: Callable[[], object]) -> None:
        """Drop what a cancelled flow would do."""

    async def use_state(self, act: Callable[[], T]) -> T:
        """Use the shared state."""
        outcome = await step(UseState(act))
        if isinstance(outcome, StoreError):
            raise outcome
        result: T = outcome
        return result

    async def decode(self, response: httpx.Response, read: Callable[[], T]) -> T:
        """Read a response, which isn't a step of its own."""
        return read()


class OpenBudget(Budget):
    """A budget in which every request may be sent at once."""

    def __init__(self) -> None:
        """Keep nothing."""

    def reserve(self, *_: Any) -> Reservation:
        """Grant a slot."""
        return Reservation(0.0, granted=True, due=0.0)

    def cool_down(self, *_: Any) -> float:
        """Return how long everybody waits after a 429."""
        return 1.0

    def settle(self, *_: Any) -> None:
        """Take note of nothing."""

    def observe(self, *_: Any) -> None:
        """Heed nothing."""

    def release(self, *_: Any) -> None:
        """Take nothing back."""

    def snapshot(self) -> Any:
        """Nobody asks for it here."""
        raise NotImplementedError
