"""Whether one budget keeps all callers of a key within the limit, whatever the server counts by, and uses most of it.

Prints, for each store and number of callers: requests a minute, the most in any window of a minute, what each of five
server algorithms would have rejected, and the fewest and most grants of equal processes; beside it pyrate-limiter and
limits where they are installed (pip install pyrate-limiter filelock limits). Then the classes' shares, and a server
that answers 429 to everything for 90 seconds. A minute lasts `--minute` seconds (default 6), or 60 with `--real`.

    python tests/benchmarks/budget.py [--real] [--seconds N] [--only rate|classes|storm] [--callers 16]
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from tests.benchmarks.judges import JUDGES, worst_window
    from tests.benchmarks.load import LIMIT, Run, in_processes, loop_of_coroutines, now_and_then, redis_server, saturate
    from tests.benchmarks.storm import storm
else:
    from judges import JUDGES, worst_window
    from load import LIMIT, Run, in_processes, loop_of_coroutines, now_and_then, redis_server, saturate
    from storm import storm

# Time for the processes to start, and to end what they began.
START_SECONDS = 12.0
PEERS = {
    "pyrate-limiter sqlite": "pyrate_limiter",
    "pyrate-limiter redis": "pyrate_limiter",
    "limits redis": "limits",
}


@dataclass(frozen=True)
class Length:
    """How long a minute and a run last, in seconds."""

    minute: float
    seconds: float


def head() -> None:
    """Print the table's head."""
    row("limiter", "store", "callers", "n", "a minute", "worst", *JUDGES, "grants")


def row(*cells: object) -> None:
    """Print a row of the table."""
    widths = (24, 6, 12, 6, 8, 5, *(7 for _ in JUDGES), 9)
    sys.stdout.write(" ".join(f"{cell!s:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip() + "\n")
    sys.stdout.flush()


def rate(places: dict[str, str | None], length: Length, callers: list[str]) -> None:
    """Saturate the budget and its peers."""
    head()
    for store, place in places.items():
        if place is None:
            continue
        for count in callers:
            one_run("techflow", store, count, place, length)
    for limiter, package in PEERS.items():
        store = limiter.rpartition(" ")[2]
        place = places.get(store)
        if importlib.util.find_spec(package) is None:
            sys.stdout.write(f"{limiter}: not installed (pip install {package.replace('_', '-')})\n")
        elif place is not None:
            own = place.removeprefix("sqlite:///") + ".peer" if store == "sqlite" else place
            one_run(limiter, store, "16", own, length)


def one_run(limiter: str, store: str, callers: str, place: str, length: Length) -> None:
    """Let callers send for some seconds and print how it went."""
    begins = time.monotonic() + START_SECONDS
    run = Run(limiter, place, length.minute, begins + length.seconds)
    targets: list[Callable[..., None]] = [saturate] * int(callers) if callers.isdecimal() else [loop_of_coroutines]
    reports = in_processes([(target, run) for target in targets])
    arrivals = sorted(at for report in reports for at in report if at >= begins)
    per_minute = len(arrivals) / length.seconds * length.minute
    grants = [len(report) for report in reports]
    spread = f"{min(grants)}-{max(grants)}" if len(grants) > 1 else "-"
    rejected = [judge(arrivals, LIMIT, length.minute) for judge in JUDGES.values()]
    row(
        limiter,
        store,
        callers,
        len(arrivals),
        f"{per_minute:.1f}",
        worst_window(arrivals, length.minute),
        *rejected,
        spread,
    )


def classes(places: dict[str, str | None], length: Length) -> None:
    """Let each class want everything while the other one goes on."""
    for store, place in places.items():
        if place is None:
            continue
        until = time.monotonic() + START_SECONDS + length.seconds
        commands, polls = (
            Run("techflow", place, length.minute, until),
            Run("techflow polls", place, length.minute, until),
        )
        reports = in_processes([(saturate, commands)] * 16 + [(saturate, polls)] * 2)
        poll_grants, all_grants = sum(map(len, reports[16:])), sum(map(len, reports))
        sys.stdout.write(
            f"{store}: 16 processes of commands and 2 of polls: polls got {poll_grants} of {all_grants} slots "
            f"({poll_grants / all_grants:.0%})\n"
        )
        until = time.monotonic() + START_SECONDS + length.seconds
        commands, polls = (
            Run("techflow", place, length.minute, until),
            Run("techflow polls", place, length.minute, until),
        )
        *_, waits = in_processes([(saturate, polls)] * 16 + [(now_and_then, commands)])
        sys.stdout.write(
            f"{store}: 16 processes of polls and commands now and then: a command waited "
            f"{statistics.median(waits) * 1000:.1f} ms (median), {max(waits) * 1000:.0f} ms (longest), n={len(waits)}\n"
        )
        sys.stdout.flush()


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="minutes of 60 seconds")
    parser.add_argument("--minute", type=float, default=6.0, help="seconds of a minute")
    parser.add_argument("--seconds", type=float, help="length of each run; four minutes without it")
    parser.add_argument("--only", choices=("rate", "classes", "storm"))
    parser.add_argument("--callers", nargs="+", default=["1", "4", "16", "200 in loop"])
    parser.add_argument("--store", choices=("sqlite", "redis"))
    asked = parser.parse_args()
    minute = 60.0 if asked.real else asked.minute
    length = Length(minute, asked.seconds or 4 * minute)
    sys.stdout.write(
        f"limit {LIMIT} in a minute of {minute:g} s, {length.seconds:g} s a run; way to the server up to 0.3 s of 60\n"
    )
    with tempfile.TemporaryDirectory() as folder, redis_server() as redis_url:
        parts: dict[str, Callable[[dict[str, str | None]], None]] = {
            "rate": lambda places: rate(places, length, asked.callers),
            "classes": lambda places: classes(places, length),
            "storm": lambda places: storm(places, minute),
        }
        for name, part in parts.items():
            if asked.only in (None, name):
                places = {"sqlite": f"sqlite:///{folder}/{name}.sqlite", "redis": redis_url}
                part({store: place for store, place in places.items() if asked.store in (None, store)})


if __name__ == "__main__":
    main()
