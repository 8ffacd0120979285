"""The table of all benchmarks shows what is reached, how far others are, and what failed."""

from __future__ import annotations

import asyncio
import math
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# The programs find each other in their own folder.
sys.path.insert(0, str(HERE))

from tests.benchmarks.rows import Row, hand_over, handed_over, percentile, shown  # noqa: E402
from tests.benchmarks.table import COMMANDS, Done, end_of, report  # noqa: E402


def row(ours: float, **fields: object) -> Row:
    return Row("what is measured", ours, "ms", "1 run", **fields)  # type: ignore[arg-type]


def test_every_program_that_hands_figures_over_runs_with_all_others():
    programs = {path.name for path in HERE.glob("*.py") if "\n    add_option(parser)\n" in path.read_text()}
    assert {commands[0].split()[0] for commands in COMMANDS.values()} == programs


@pytest.mark.parametrize(
    ("figure", "ratio"),
    [
        (row(2.0, limit=10), "ours/limit 0.2"),
        (row(2.0, limit=10, peers={"a": 8.0, "b": 6.0, "unseen": math.nan}), "best peer/ours 3"),
        (row(90.0, limit=90, bound="≥", peers={"a": 60.0, "b": 45.0}), "ours/best peer 1.5"),
        (row(0.0, limit=0, bound="=", peers={"a": 8.0}), "-"),
        (row(2.0), "-"),
    ],
)
def test_the_ratio_says_what_is_divided_by_what(figure, ratio):
    assert figure.ratio == ratio


def test_a_figure_is_reached_as_its_bound_says():
    assert row(10, limit=10).met
    assert not row(10.1, limit=10).met
    assert row(90, limit=90, bound="≥").met
    assert not row(1, limit=0, bound="=").met
    assert not row(math.nan, limit=10).met
    assert row(math.nan).met


def test_figures_are_shown_with_three_digits_or_all_before_the_point():
    assert [shown(each) for each in (0.2681, 54.23, 10.0, 12345.6, math.nan)] == [
        "0.268",
        "54.2",
        "10",
        "12,346",
        "nan",
    ]


def test_a_percentile_is_one_of_the_values():
    assert percentile(range(1, 101), 99) == 99
    assert percentile([3.0], 99) == 3.0
    assert math.isnan(percentile([], 99))


def test_rows_come_through_a_file_as_they_were(tmp_path):
    file, rows = tmp_path / "rows", [row(1.5, limit=2, peers={"a": 3.0}), row(2)]
    hand_over(file, rows[0])
    hand_over(file, rows[1])
    assert handed_over(file) == rows
    assert handed_over(tmp_path / "none") == []


def test_the_page_names_what_failed_and_what_is_not_reached():
    results = [
        Done("good.py --n 1", 0, 1.0, [row(2, limit=10)]),
        Done("slow.py", 1, 1.0, [row(20, limit=10)]),
        Done("broken.py", 1, 1.0, [row(1, limit=10)]),
        Done("stuck.py", None, 9.0, []),
    ]
    page = report(results, 60.0, 0.5, quick=False)
    assert [done.result for done in results] == [
        "reached",
        "1 not reached, exit code 1",
        "failed, exit code 1",
        "failed, took too long",
    ]
    assert "| what is measured | 2 ms | - | ≤ 10 | ours/limit 0.2 | 1 run | good.py |" in page
    assert "| what is measured | 20 ms | - | ≤ 10, **not reached** | ours/limit 2 | 1 run | slow.py |" in page
    assert "| **stuck.py failed, took too long** |" in page
    assert "| good.py --n 1 | 1 | reached |" in page


PARENT = """
import subprocess, sys, time
with open(sys.argv[1], "wb", buffering=0) as held:
    subprocess.Popen(["sleep", "600"], stdout=held)
    held.write(b"!")
    time.sleep(600)
"""


async def test_an_interrupted_run_ends_the_program_with_all_that_it_started(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    running = asyncio.create_task(end_of([sys.executable, "-c", PARENT, str(fifo)], tmp_path / "log"))
    with await asyncio.to_thread(fifo.open, "rb") as held:
        assert await asyncio.to_thread(held.read, 1) == b"!"
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        # The end comes when no process has the other side any more.
        assert await asyncio.wait_for(asyncio.to_thread(held.read), 60) == b""
