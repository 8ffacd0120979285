"""How many deferred waits Airflow fails whose executions end soon, when the loop of its scheduler takes long: one row.

Airflow's scheduler fails a task that is to resume before it has noticed that the process which deferred it has ended.

    python tests/deployment/race.py [--waits 40] [--loop 10] [--delay 3] [--slots 48] [--first-release]
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from techflow_provider.sandbox import Sandbox  # noqa: E402  # the checkout comes first
from tests.deployment.airflow_deployment import GENEROUS_TIMEOUTS, KEY, deployment  # noqa: E402
from tests.deployment.scenarios import install_first_release  # noqa: E402
from tests.servers import Program, until  # noqa: E402

DAG = ROOT / "tests" / "deployment" / "dags" / "race.py"
ENDED = "SELECT count(*) FROM task_instance WHERE dag_id = 'race' AND state IN ('success', 'failed', 'upstream_failed')"
FAILED = "SELECT count(*) FROM task_instance WHERE dag_id = 'race' AND state = 'failed'"
RACED = "SELECT count(*) FROM log WHERE dag_id = 'race' AND event = 'state mismatch'"


def run_slow_scheduler(seconds: float) -> None:
    """Be Airflow's scheduler, whose loop takes so much longer."""
    from airflow.__main__ import main
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner

    schedule = SchedulerJobRunner._do_scheduling

    def schedule_slowly(runner: SchedulerJobRunner, *arguments: object, **options: object) -> int:
        with Path(os.environ["RACE_LOOPS"]).open("a") as file:
            file.write(f"{time.monotonic()}\n")
        time.sleep(seconds)
        return schedule(runner, *arguments, **options)  # type: ignore[arg-type]

    SchedulerJobRunner._do_scheduling = schedule_slowly  # type: ignore[method-assign,assignment]
    sys.argv = ["airflow", "scheduler"]
    main()  # type: ignore[no-untyped-call]  # Airflow leaves it unannotated


def longest_loop(path: Path) -> float:
    """Return the longest time between two loops of a scheduler."""
    times = [float(line) for line in path.read_text().splitlines()]
    return max(later - sooner for sooner, later in itertools.pairwise(times))


def measure(waits: int, loop: float, delay: float, slots: int, *, first_release: bool) -> str:
    """Run the waits in an Airflow of their own and return a row: how many failed, and how many of them by the race."""
    sandbox = Sandbox(api_keys=(KEY,), limit=100_000, execution_seconds=2.0)
    sandbox.add_workflow("race", id="race")
    with tempfile.TemporaryDirectory(prefix="airflow-race-") as name:
        folder = Path(name)
        environment = {
            **GENEROUS_TIMEOUTS,
            "AIRFLOW__CORE__PARALLELISM": str(slots),
            "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "1000",
            # Else Airflow 2 ends tasks that are silent for 2 s.
            "AIRFLOW__SCHEDULER__LOCAL_TASK_JOB_HEARTBEAT_SEC": "60",
            "AIRFLOW__TECHFLOW__FIRST_EVENT_DELAY": str(delay),
            "RACE_WAITS": str(waits),
            "RACE_LOOPS": str(folder / "loops"),
        }
        if first_release:
            environment["PYTHONPATH"] = os.pathsep.join((str(install_first_release(folder)), str(ROOT)))
        with deployment(sys.executable, [DAG], sandbox=sandbox, environment=environment, folder=folder) as running:
            running.await_dags("race")
            running.programs["scheduler"].stop()
            command = [sys.executable, __file__, "--scheduler", str(loop)]
            running.programs["scheduler"] = Program("scheduler", command, running.environment, folder / "slow.log")
            running.programs["scheduler"].start()
            running.trigger("race")
            until(lambda: int(running.query(ENDED)[0][0]) >= waits, 1800, "the ends of all waits")
            longest = longest_loop(folder / "loops")
            failed, raced = running.query(FAILED)[0][0], running.query(RACED)[0][0]
    package = "0.1.0" if first_release else "this"
    row = (version("apache-airflow"), package, f"{longest:.0f}", f"{delay:g}", str(waits), failed, raced)
    return f"| {' | '.join((*row, str(len(sandbox.executions))))} |"


def main() -> None:
    """Print a row: Airflow, package, longest loop and delay in s, waits, failed, by the race, executions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waits", type=int, default=40)
    parser.add_argument("--loop", type=float, default=10.0, help="seconds by which the scheduler's loop is slowed")
    parser.add_argument("--delay", type=float, default=3.0, help="[techflow] first_event_delay")
    parser.add_argument("--slots", type=int, default=48, help="tasks that run at a time")
    parser.add_argument("--first-release", action="store_true", help="with version 0.1.0 of this package")
    parser.add_argument("--scheduler", type=float, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.scheduler is not None:
        run_slow_scheduler(asked.scheduler)
        return
    row = measure(asked.waits, asked.loop, asked.delay, asked.slots, first_release=asked.first_release)
    sys.stdout.write(row + "\n")


if __name__ == "__main__":
    main()
