"""What a benchmark hands over to the table of all of them, and how each prints its own."""

from __future__ import annotations

import argparse
import json
import math
import operator
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

BOUNDS: dict[str, Callable[[float, float], bool]] = {"≤": operator.le, "≥": operator.ge, "=": operator.eq}


@dataclass(frozen=True)
class Row:
    """A figure of this package with what it stands beside.

    :param what: is measured
    :param ours: the figure
    :param unit: of all figures of the row; empty where they are counts
    :param n: what it was taken from
    :param limit: to reach, or None where there is no such figure
    :param bound: how the figure is to stand to the limit, one of `BOUNDS`
    :param peers: the same figure of others, by their names
    """

    what: str
    ours: float
    unit: str
    n: str
    limit: float | None = None
    bound: str = "≤"
    peers: Mapping[str, float] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether the limit is reached, where there is one."""
        return self.limit is None or BOUNDS[self.bound](self.ours, self.limit)

    @property
    def ratio(self) -> str:
        """How far ahead of the best peer, or how far below the limit; more than 1 is better with peers alone."""
        known = [value for value in self.peers.values() if not math.isnan(value)]
        if known and self.bound == "≥":
            return _quotient("ours/best peer", self.ours, max(known))
        if known:
            return _quotient("best peer/ours", min(known), self.ours)
        return "-" if self.limit is None else _quotient("ours/limit", self.ours, self.limit)


def _quotient(name: str, above: float, below: float) -> str:
    return f"{name} {shown(above / below)}" if below else "-"


def shown(value: float) -> str:
    """Return a figure with three digits, or all before the point."""
    # An int has no is_integer() before Python 3.12.
    return f"{value:,.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:.3g}"


def add_option(parser: argparse.ArgumentParser) -> None:
    """Let a benchmark's arguments say where its rows go."""
    parser.add_argument("--rows", type=Path, metavar="FILE", help="append the rows of the table of all benchmarks")


def hand_over(file: Path | None, *rows: Row) -> None:
    """Append rows to a file, one JSON object a line, where there is one."""
    if file is not None:
        with file.open("a") as lines:
            lines.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def handed_over(file: Path) -> list[Row]:
    """Return the rows that a file has got."""
    return [Row(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def percentile(values: Collection[float], percent: float) -> float:
    """Return the smallest value that so many percent of all don't exceed; nan of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else math.nan


def line(widths: Sequence[int], *cells: object) -> None:
    """Print a row of a benchmark's own table."""
    sys.stdout.write(" ".join(f"{cell!s:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip() + "\n")
    sys.stdout.flush()
