"""All benchmarks in one run, with one table: our figures, those of others, what is to be reached, and the ratio.

Each benchmark is a program of its own and runs here with parameters that let all of them together end in about half
an hour; one that fails is named in the table, and the others run. Those whose figures a busy machine would change run
alone, and the others some at once. The table is written to RESULTS.md beside this file, unless some benchmarks alone
or a quick run were asked for. The logs of the programs stay below .cache/benchmarks.

Not here: `limiters.py` needs nginx, HAProxy and packages of npm and takes an hour; `state_attacks.py` and `forged.py`
try attacks, and what they show is tested.

    python tests/benchmarks/table.py [--quick] [--only parse waits] [--to FILE]

`--quick` shows in some minutes that everything runs: with tiny parameters, and several benchmarks at once, so its
figures say nothing. Ends with 1 when a benchmark failed or a figure is not reached.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.benchmarks.machine import machine, versions
    from tests.benchmarks.rows import Row, handed_over, shown
else:
    from machine import machine, versions
    from rows import Row, handed_over, shown

HERE = Path(__file__).parent
LOGS = HERE.parents[1] / ".cache" / "benchmarks"
RESULTS = HERE / "RESULTS.md"
# All of them take an hour.
STATE_FAULTS = "restart-redis restart-postgresql partition-api-server flushall-redis sentinel-redis"
# The programs with the parameters of a full run and of a quick one. Of these, some run at once.
TOGETHER = {
    "parse": ("parse.py", "parse.py --runs 1"),
    "pods": (
        "pods.py --place api-server --pods 100 --saturating 16 --seconds 60 --away 0 30",
        "pods.py --place redis --pods 6 --saturating 2 --seconds 5 --away 0",
    ),
    "state_faults": (
        f"state_faults.py --away 20 --tasks 30 --only {STATE_FAULTS}",
        "state_faults.py --only restart-redis --tasks 6 --away 2",
    ),
    "state_cost": ("state_cost.py", "state_cost.py --waits 20 --starts 5 --seconds 5"),
    "start_cost": ("start_cost.py", "start_cost.py"),
    "capacity": ("capacity.py", "capacity.py --workers 100 --keys 2 --minutes 2"),
    # Its cool-downs are too short to be distinguished in shorter minutes.
    "storm": ("budget.py --real --only storm", "budget.py --minute 4 --only storm --store sqlite"),
    "one_poll": ("one_poll.py", "one_poll.py --minutes 5 --waits 8"),
    "lease": ("lease.py", "lease.py --seconds 20 --only killed"),
    "paging": ("paging.py", "paging.py"),
    "faults": ("faults.py", "faults.py --seconds 5 --only 500s 429 truncated"),
    "kills": ("kills.py", "kills.py --trials 20"),
    "exactly_once": ("exactly_once.py", "exactly_once.py"),
    "recovery": ("recovery.py", "recovery.py --tasks 20"),
}
# A busy machine would change their figures.
ALONE = {
    "reserve": ("reserve.py --seconds 3", "reserve.py --times 200 --seconds 0.5 --rounds 1"),
    "stores": ("stores.py --seconds 2", "stores.py --places file redis --callers 1 2 --seconds 0.5"),
    "budget": (
        "budget.py --minute 5 --seconds 15 --only rate classes",
        "budget.py --minute 2 --seconds 4 --only rate classes --store redis --callers 4 '200 in loop'",
    ),
    "waits": (
        "waits.py --spread 20 --waits 10 1000 10000 100000 --holding 10000 100000",
        "waits.py --quick --waits 10 --holding 10",
    ),
    "history": ("history.py --seconds 15", "history.py --sizes 1000 --seconds 4"),
    # More webhooks than the 12 polls a minute that they may cause would measure that bound.
    "webhooks": ("webhooks.py --count 11 --spacing 5.5", "webhooks.py --only sqlite --count 3 --spacing 1"),
    # A scheduler that is slow fails tasks that resume soon.
    "admission": ("admission.py --tasks 60", "admission.py --tasks 8"),
}
COMMANDS = TOGETHER | ALONE
AT_ONCE = 3
QUICK_AT_ONCE = 4
# No program takes as long, and one that hangs ends then.
LONGEST_SECONDS = 1200.0
ENDING_SECONDS = 60.0
HEADS = ("what", "ours", "peers", "to reach", "ratio", "n", "program")


@dataclass(frozen=True)
class Done:
    """What came of a benchmark.

    :param command: with its parameters
    :param code: its exit code, or None when it took too long
    :param seconds: how long it took
    :param rows: what it handed over
    """

    command: str
    code: int | None
    seconds: float
    rows: list[Row]

    @property
    def failed(self) -> bool:
        """Whether it broke off, which is not that a figure isn't reached."""
        return not self.rows or (self.code != 0 and all(row.met for row in self.rows))

    @property
    def result(self) -> str:
        """What became of it, for people to read."""
        ended = {0: "", None: ", took too long"}.get(self.code, f", exit code {self.code}")
        missed = sum(not row.met for row in self.rows)
        return f"failed{ended}" if self.failed else f"{missed} not reached{ended}" if missed else "reached"


async def run(name: str, command: str, folder: Path, turn: asyncio.Semaphore) -> Done:
    """Run a benchmark when it is its turn."""
    rows, (program, *parameters) = folder / f"{name}.jsonl", shlex.split(command)
    words = [sys.executable, str(HERE / program), *parameters, "--rows", str(rows)]
    async with turn:
        log(f"{command} …")
        began = time.monotonic()
        code = await end_of(words, LOGS / f"{name}.log")
        done = Done(command, code, time.monotonic() - began, handed_over(rows))
        log(f"{command}: {done.result}, {done.seconds:.0f} s")
    return done


async def end_of(words: list[str], log: Path) -> int | None:
    """Run a program with all that it starts, and return its exit code; None when it took too long."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*words, stdout=output, stderr=output, start_new_session=True)
    try:
        return await asyncio.wait_for(process.wait(), LONGEST_SECONDS)
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            # It ends what it started itself.
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), ENDING_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


async def run_all(names: list[str], *, quick: bool) -> list[Done]:
    """Run benchmarks, some at once, and in a full run those that have to be alone one after the other."""
    LOGS.mkdir(parents=True, exist_ok=True)
    results: list[Done] = []
    with tempfile.TemporaryDirectory() as folder:
        for some, at_once in ((TOGETHER, AT_ONCE), (ALONE, 1)):
            turn = asyncio.Semaphore(QUICK_AT_ONCE if quick else at_once)
            chosen = (run(each, some[each][quick], Path(folder), turn) for each in some if each in names)
            results += await asyncio.gather(*chosen)
    return results


def log(words: str) -> None:
    """Print a line of progress."""
    sys.stdout.write(f"· {datetime.now(UTC):%H:%M:%S} {words}\n")
    sys.stdout.flush()


def cells(row: Row, program: str) -> tuple[str, ...]:
    """Return a row as the table shows it."""
    peers = ", ".join(f"{name} {shown(value)}" for name, value in row.peers.items())
    reach = "-" if row.limit is None else f"{row.bound} {shown(row.limit)}{'' if row.met else ', **not reached**'}"
    return row.what, f"{shown(row.ours)} {row.unit}".rstrip(), peers or "-", reach, row.ratio, row.n, program


def table(*lines: tuple[str, ...]) -> str:
    """Return a Markdown table, its heads first."""
    heads, *others = lines
    rule = tuple("---" for _ in heads)
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, rule, *others))


def report(results: list[Done], seconds: float, load: float, *, quick: bool) -> str:
    """Return the whole page."""
    figures: list[tuple[str, ...]] = [HEADS]
    for done in results:
        program = done.command.split(" ", 1)[0]
        figures += [cells(row, program) for row in done.rows]
        if done.failed:
            figures.append((f"**{program} {done.result}**", *"-----", program))
    commands = (("program", "s", "result"), *((each.command, f"{each.seconds:.0f}", each.result) for each in results))
    kind = "A quick run, whose figures say nothing" if quick else "A run"
    return f"""# Benchmarks

{kind}, by `make bench` on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, in {seconds / 60:.0f} minutes.
Machine: {machine()}; load before the run {load:.1f}.
Versions: {versions()}.

"ours" is this package, "peers" are the same figure of others in the same run. The ratio is the best peer's figure
divided by ours (ours by the best peer's where more is better), or without peers ours divided by what is to be reached.

{table(*figures)}

The programs, which stand beside this page, with their parameters:

{table(*commands)}
"""


def main() -> int:
    """Run what was asked for and write the table; 1 when a benchmark failed or a figure is not reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="tiny parameters, several at once; the figures say nothing"
    )
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--to", type=Path, metavar="FILE", help="where the table goes, beside the screen")
    asked = parser.parse_args()
    whole = not asked.quick and asked.only == list(COMMANDS)
    # A shell lets what it starts in the background ignore it, and so would all that is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    to, load, began = asked.to or (RESULTS if whole else None), os.getloadavg()[0], time.monotonic()
    results = asyncio.run(run_all(asked.only, quick=asked.quick))
    text = report(results, time.monotonic() - began, load, quick=asked.quick)
    sys.stdout.write(text)
    if to is not None:
        to.write_text(text)
    return 0 if all(done.result == "reached" for done in results) else 1


if __name__ == "__main__":
    sys.exit(main())
