"""Real processes that are killed and meet faults: a small run of the benchmark."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_tasks_that_are_killed_at_random_times_start_one_execution_each():
    command = [sys.executable, str(ROOT / "tests" / "benchmarks" / "kills.py"), "--trials", "12", "--seconds", "100"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tasks 12 (ended 12), executions 12, duplicates 0, losses 0" in done.stdout
