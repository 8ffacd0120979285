"""Whether one budget keeps all callers of a key within the limit, whatever the server counts by, and uses most of it.

Prints, for each store and number of callers: requests a minute, the most in any window of a minute, what each of five
server algorithms would have rejected, and the fewest and most grants of equal processes; beside it pyrate-limiter and
limits where they are installed (pip install pyrate-limiter filelock limits). Then the classes' shares, and a server
that responds with 429 to everything for 90 seconds. A minute lasts `--minute` seconds (default 6), or 60
with `--real` and in the storm.

    python tests/benchmarks/budget.py [--real] [--seconds N] [--only rate|classes|storm] [--callers 16]
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from tests.benchmarks.algorithms import ALGORITHMS, worst_window
    from tests.benchmarks.load import (
        LIMIT,
        Caller,
        Run,
        in_processes,
        loop_of_coroutines,
        now_and_then,
        redis_server,
        saturate,
    )
    from tests.benchmarks.rows import Row, add_option, hand_over, line
    from tests.benchmarks.storm import storm
else:
    from algorithms import ALGORITHMS, worst_window
    from load import LIMIT, Caller, Run, in_processes, loop_of_coroutines, now_and_then, redis_server, saturate
    from rows import Row, add_option, hand_over, line
    from storm import storm

# The first burst of a run is over after so many minutes, which its rate does not count.
FIRST_MINUTES = 0.5
PARTS = ("rate", "classes", "storm")
PEERS = {
    "pyrate-limiter sqlite": "pyrate_limiter",
    "pyrate-limiter redis": "pyrate_limiter",
    "limits redis": "limits",
}
WIDTHS = (24, 6, 12, 6, 8, 5, *(7 for _ in ALGORITHMS), 9)
LEAST_USED = 90
FURTHEST_PERCENT = 20
LONGEST_MEDIAN_MS = 100


@dataclass(frozen=True)
class Length:
    """How long a minute and a run last, in seconds."""

    minute: float
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    :param requests: how many arrived
    :param per_minute: how many of them in a minute
    :param rejected: what each algorithm would have rejected
    :param grants: of each caller
    """

    requests: int
    per_minute: float
    rejected: list[int]
    grants: list[int]

    @property
    def furthest(self) -> float:
        """By how many percent of the mean the grants of a caller differ from it at most."""
        mean = statistics.mean(self.grants)
        return max(abs(each - mean) for each in self.grants) / mean * 100 if mean else math.nan


def rate(places: dict[str, str], length: Length, callers: list[str]) -> list[Row]:
    """Saturate the budget and its peers."""
    line(WIDTHS, "limiter", "store", "callers", "n", "a minute", "worst", *ALGORITHMS, "grants")
    # The peers have as many callers as the run with the most processes.
    most = max(filter(str.isdecimal, callers), key=int, default="16")
    ours = {
        store: {count: one_run("techflow", store, count, place, length) for count in callers}
        for store, place in places.items()
    }
    others: dict[str, dict[str, Outcome]] = {store: {} for store in places}
    for limiter, package in PEERS.items():
        name, _, store = limiter.rpartition(" ")
        if store not in places:
            continue
        if importlib.util.find_spec(package) is None:
            sys.stdout.write(f"{limiter}: not installed (pip install {package.replace('_', '-')})\n")
        else:
            place = places[store]
            own = place.removeprefix("sqlite:///") + ".peer" if store == "sqlite" else place
            others[store][name] = one_run(limiter, store, most, own, length)
    return [row for store in places for row in rate_rows(store, ours[store], others[store], most, length)]


def rate_rows(
    store: str, ours: dict[str, Outcome], others: dict[str, Outcome], most: str, length: Length
) -> Iterator[Row]:
    """Say how a store did, the peers beside the run with as many callers."""
    minute = f"a minute of {length.minute:g} s"
    for count, run in ours.items():
        peers = {name: each.per_minute for name, each in others.items()} if count == most else {}
        who = f"{count} processes" if count.isdecimal() else f"{count} (coroutines)"
        n = f"{run.requests} requests, {minute}"
        yield Row(
            f"used a minute by {who}, {store}",
            run.per_minute,
            f"of {LIMIT}",
            n,
            limit=LEAST_USED,
            bound="≥",
            peers=peers,
        )
    yield Row(
        f"rejected by the strictest of {len(ALGORITHMS)} servers, {store}",
        max(max(run.rejected) for run in ours.values()),
        "",
        f"worst of {len(ours)} runs of {length.seconds:g} s",
        limit=0,
        bound="=",
        peers={name: max(each.rejected) for name, each in others.items()},
    )
    if int(most) > 1 and most in ours:
        peers = {name: each.furthest for name, each in others.items()}
        what, n = f"furthest from the mean of {most} equal processes, {store}", f"{ours[most].requests} requests"
        yield Row(what, ours[most].furthest, "%", n, limit=FURTHEST_PERCENT, peers=peers)


def one_run(limiter: str, store: str, callers: str, place: str, length: Length) -> Outcome:
    """Let callers send for some seconds, print how it went and return it."""
    first = FIRST_MINUTES * length.minute
    run = Run(limiter, place, length.minute, first + length.seconds)
    targets: list[Caller] = [saturate] * int(callers) if callers.isdecimal() else [loop_of_coroutines]
    reports = in_processes([(target, run) for target in targets])
    arrivals = sorted(at for report in reports for at in report if at >= first)
    outcome = Outcome(
        len(arrivals),
        len(arrivals) / length.seconds * length.minute,
        [rejections(arrivals, LIMIT, length.minute) for rejections in ALGORITHMS.values()],
        [len(report) for report in reports],
    )
    spread = f"{min(outcome.grants)}-{max(outcome.grants)}" if len(reports) > 1 else "-"
    worst, per_minute = worst_window(arrivals, length.minute), f"{outcome.per_minute:.1f}"
    line(WIDTHS, limiter, store, callers, len(arrivals), per_minute, worst, *outcome.rejected, spread)
    return outcome


def classes(places: dict[str, str], length: Length) -> list[Row]:
    """Let each class want everything beside the other one."""
    rows = []
    for store, place in places.items():
        commands, polls = (Run(each, place, length.minute, length.seconds) for each in ("techflow", "techflow polls"))
        reports = in_processes([(saturate, commands)] * 16 + [(saturate, polls)] * 2)
        poll_grants, all_grants = sum(map(len, reports[16:])), sum(map(len, reports))
        share = poll_grants / all_grants * 100
        sys.stdout.write(
            f"{store}: 16 processes of commands and 2 of polls: polls got {poll_grants} of {all_grants} slots "
            f"({share:.0f}%)\n"
        )
        *_, waits = in_processes([(saturate, polls)] * 16 + [(now_and_then, commands)])
        median = statistics.median(waits) * 1000
        sys.stdout.write(
            f"{store}: 16 processes of polls and commands now and then: a command waited "
            f"{median:.1f} ms (median), {max(waits) * 1000:.0f} ms (longest), n={len(waits)}\n"
        )
        sys.stdout.flush()
        what, n = f"wait of a command beside 16 processes of polls, {store}", f"median of {len(waits)}"
        rows += [
            Row(f"slots of polls beside 16 processes of commands, {store}", share, "%", f"{all_grants} slots"),
            Row(what, median, "ms", n, limit=LONGEST_MEDIAN_MS),
        ]
    return rows


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="minutes of 60 seconds")
    parser.add_argument("--minute", type=float, default=6.0, help="seconds of a minute")
    parser.add_argument("--seconds", type=float, help="length of each run; four minutes without it")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--callers", nargs="+", default=["1", "4", "16", "200 in loop"])
    parser.add_argument("--store", choices=("sqlite", "redis"))
    add_option(parser)
    asked = parser.parse_args()
    minute = 60.0 if asked.real else asked.minute
    length = Length(minute, asked.seconds or 4 * minute)
    sys.stdout.write(
        f"limit {LIMIT} in a minute of {minute:g} s, {length.seconds:g} s a run; up to 0.3 s of 60 in transit\n"
    )
    with tempfile.TemporaryDirectory() as folder, redis_server() as redis_url:
        parts: dict[str, Callable[[dict[str, str]], list[Row]]] = {
            "rate": lambda places: rate(places, length, asked.callers),
            "classes": lambda places: classes(places, length),
            "storm": lambda places: storm(places, 60.0),
        }
        for name, part in parts.items():
            if name in asked.only:
                places = {"sqlite": f"sqlite:///{folder}/{name}.sqlite", "redis": redis_url}
                rows = part({store: place for store, place in places.items() if place and asked.store in (None, store)})
                hand_over(asked.rows, *rows)


if __name__ == "__main__":
    main()
