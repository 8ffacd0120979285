"""The sandbox in a process of its own, with executions that end at times spread over a while, for the benchmarks."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

from techflow_provider.sandbox import Sandbox

KEY = "key-of-the-benchmarks"


@dataclass(frozen=True)
class Served:
    """A sandbox that is served.

    :param base_url: where
    :param ids: its executions
    :param control: reaches its control API
    """

    base_url: str
    ids: list[str]
    control: httpx.Client

    def arrivals(self) -> list[float]:
        """Return when each request arrived, as seconds since 1970."""
        return sorted(datetime.fromisoformat(each["at"]).timestamp() for each in self._get("requests")["requests"])

    def counts(self) -> dict[int | None, int]:
        """Return the number of responses with each status; None counts requests without a response."""
        counts: dict[int | None, int] = {}
        for row in self._get("stats")["requests"]:
            counts[row["status"]] = counts.get(row["status"], 0) + row["count"]
        return counts

    def fault(self, **fault: Any) -> None:
        """Let something go wrong from now on."""
        self.control.post("faults", json=fault).raise_for_status()

    def clear_faults(self) -> None:
        """Let nothing go wrong any more."""
        self.control.delete("faults").raise_for_status()

    def _get(self, what: str) -> Any:
        return self.control.get(what).raise_for_status().json()


@contextlib.contextmanager
def served(executions: int, first_seconds: float, last_seconds: float, **settings: Any) -> Iterator[Served]:
    """Serve a sandbox while the context lasts.

    :param executions: how many are running when it begins
    :param first_seconds: when the first of them ends
    :param last_seconds: and the last
    :param settings: of the sandbox
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, executions, first_seconds, last_seconds, settings))
    process.start()
    try:
        base_url, ids = ours.recv()
        control = base_url.removesuffix("/v2") + "/_sandbox/"
        with httpx.Client(base_url=control, timeout=60) as client:
            yield Served(base_url, ids, client)
    finally:
        ours.send("stop")
        process.join(10)
        process.kill()


def _serve(pipe: Any, executions: int, first: float, last: float, settings: dict[str, Any]) -> None:
    chance = random.Random(1)
    sandbox = Sandbox(api_keys=(KEY,), workflows_at_start={"wf_1": "one"}, seed=1, **settings)
    with sandbox.serve() as base_url:
        ids = []
        for _ in range(executions):
            sandbox.plan("wf_1", seconds=chance.uniform(first, last))
            ids.append(sandbox.start("wf_1").id)
        pipe.send((base_url, ids))
        pipe.recv()
