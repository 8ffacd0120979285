"""Run mapped steps through an Airflow that is spread over hosts, check what they left, and look for secrets.

A PostgreSQL, a Redis, a scheduler, a DAG processor, an API server, two Celery workers, two triggerers and the sandbox,
all made here and ended here. Prints what was seen, and fails when a step did not succeed, an execution is missing or
one too many, the server refused a request, or a secret is found.

    python tests/deployment/e2e.py [--steps 200] [--requests-per-minute 100]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from techflow_provider.sandbox import Sandbox  # noqa: E402  # the checkout comes first
from tests.deployment.airflow_deployment import KEY, Deployment, until  # noqa: E402
from tests.deployment.celery_deployment import celery_deployment, redis_port  # noqa: E402
from tests.deployment.metrics import Metrics  # noqa: E402
from tests.deployment.secrets_search import places_with  # noqa: E402

DAG = ROOT / "tests" / "deployment" / "dags" / "steps.py"
STATES = "SELECT task_id, state, count(*) FROM task_instance WHERE dag_id = 'steps' GROUP BY 1, 2 ORDER BY 1, 2"
RUN = "SELECT state FROM dag_run WHERE dag_id = 'steps'"
ENDED = ("success", "failed")
EXECUTION_SECONDS = 20.0
SECONDS_A_STEP = 6.0


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    :param seconds: how long it took
    :param states: task, state and number of task instances
    :param secrets: the places where the API key stands
    """

    seconds: float
    states: list[list[str]]
    secrets: list[str]


def run(steps: int, limit: int, folder: Path) -> list[str]:
    """Run the steps, print what they left and return what is wrong with it."""
    metrics = Metrics()
    sandbox = Sandbox(api_keys=(KEY,), limit=limit, execution_seconds=EXECUTION_SECONDS)
    say(f"· starting PostgreSQL, Redis and Airflow in {folder}")
    with celery_deployment(
        sys.executable,
        [DAG],
        folder,
        sandbox=sandbox,
        extra={"requests_per_minute": limit},
        environment={**metrics.environment, "STEPS": str(steps), "AIRFLOW__TECHFLOW__POLL_INTERVAL": "5"},
    ) as airflow:
        say(f"· running {steps} steps at {limit} requests a minute")
        outcome = _run(airflow, steps)
    _report(steps, outcome, sandbox, metrics)
    return _faults(steps, outcome, sandbox)


def _run(airflow: Deployment, steps: int) -> Outcome:
    airflow.await_dags("steps")
    began = time.monotonic()
    airflow.trigger("steps")
    until(lambda: airflow.query(RUN)[0][0] in ENDED, 120 + steps * SECONDS_A_STEP, "the DAG run")
    took = time.monotonic() - began
    return Outcome(took, airflow.query(STATES), places_with(KEY, airflow, redis_port(airflow)))


def _report(steps: int, outcome: Outcome, sandbox: Sandbox, metrics: Metrics) -> None:
    minutes = outcome.seconds / 60
    polls = sandbox.count(method="GET", path="/executions")
    say(f"{steps} steps in {outcome.seconds:.0f} s: {', '.join(' '.join(row) for row in outcome.states)}")
    say(f"executions {len(sandbox.executions)}, 429s {sandbox.count(status=429)}")
    say(f"requests {sandbox.count() / minutes:.1f} a minute, polls of the whole deployment {polls / minutes:.1f}")
    say(f"waits for a slot {len(metrics.waits)}, longest {max(metrics.waits, default=0.0):.1f} s")
    say(f"places with the API key: {len(outcome.secrets)}")


def _faults(steps: int, outcome: Outcome, sandbox: Sandbox) -> list[str]:
    faults = [" ".join(row) for row in outcome.states if row[1] != "success"]
    faults += [f"the API key in {place}" for place in outcome.secrets]
    if len(sandbox.executions) != steps:
        faults.append(f"{len(sandbox.executions)} executions for {steps} steps")
    if sandbox.count(status=429):
        faults.append(f"{sandbox.count(status=429)} requests refused")
    return faults


def in_a_folder(run: Callable[[Path], list[str]]) -> int:
    """Run in a new folder, which is kept when something is wrong, and return the exit code."""
    folder = Path(tempfile.mkdtemp(prefix="airflow-spread-"))
    faults = run(folder)
    if faults:
        say(f"FAILED: {'; '.join(faults)}\nlogs are kept in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--requests-per-minute", type=int, default=100)
    asked = parser.parse_args()
    return in_a_folder(lambda folder: run(asked.steps, asked.requests_per_minute, folder))


if __name__ == "__main__":
    sys.exit(main())
