"""Calls a target with random inputs, and counts what happens: results, errors of other kinds, hangs, memory."""

from __future__ import annotations

import logging
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PAGE_BYTES = 4096
# A call that takes longer hangs, even on a busy machine: this is its own CPU time.
HANG_CPU_SECONDS = 5.0
# Caches and the interpreter's own pools are full by then.
WARM_CALLS = 500


class ViolationError(Exception):
    """A result that should never occur, although nothing was raised."""


# Runs one case, and returns what kind of result it had; raises anything else.
Case = Callable[[random.Random], str]


@dataclass
class Outcome:
    """What a run of a target has shown.

    :param name: the target's
    :param seed: repeats the run
    :param calls: how many cases were run
    :param kinds: how many results of each kind there were
    :param defects: what was raised that shouldn't be and where, with the first case that raised it and its message
    :param hangs: cases that took too long
    :param growth_bytes: by how much the process has grown since it was warm
    """

    name: str
    seed: int
    calls: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    defects: dict[str, tuple[int, str]] = field(default_factory=dict)
    hangs: list[int] = field(default_factory=list)
    growth_bytes: int = 0

    @property
    def passed(self) -> bool:
        """Whether there is nothing to correct."""
        return not self.defects and not self.hangs

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.kinds.most_common())
        counts = f"{len(self.defects)} kinds of errors outside the tree, {len(self.hangs)} hangs"
        growth = f"memory {self.growth_bytes / 1e6:+.1f} MB"
        lines = [f"{self.name}: {self.calls} calls (seed {self.seed}), {counts}, {growth}; {kinds}"]
        lines += [f"  case {number}: {where}: {message}" for where, (number, message) in self.defects.items()]
        lines += [f"  case {number} hangs" for number in self.hangs]
        return "\n".join(lines)


def run(name: str, case: Case, seed: int, *, calls: int = 0, seconds: float = 0.0) -> Outcome:
    """Run a target for a number of calls, or for some seconds."""
    outcome, deadline = Outcome(name, seed), time.monotonic() + seconds
    warm = _resident_bytes()
    while outcome.calls < calls or time.monotonic() < deadline:
        number = outcome.calls
        outcome.calls += 1
        began = time.thread_time()
        try:
            outcome.kinds[case(random.Random(f"{seed}/{number}"))] += 1
        except Exception as error:  # noqa: BLE001  # whatever it is, it is counted
            where, message = _describe(error)
            outcome.defects.setdefault(where, (number, message))
        if time.thread_time() - began > HANG_CPU_SECONDS:
            outcome.hangs.append(number)
        if outcome.calls == WARM_CALLS:
            warm = _resident_bytes()
    outcome.growth_bytes = _resident_bytes() - warm
    return outcome


def _describe(error: Exception) -> tuple[str, str]:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/techflow_provider/" in frame.filename] or frames
    where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
    return f"{type(error).__name__} at {where}", ascii(str(error)[:200])


class _Discard(logging.Handler):
    """Formats records and drops them."""

    def emit(self, record: logging.LogRecord) -> None:
        self.format(record)


@contextmanager
def quiet() -> Iterator[None]:
    """Discard what the package logs."""
    log, handler = logging.getLogger("techflow_provider"), _Discard()
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.propagate = True
        log.removeHandler(handler)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
