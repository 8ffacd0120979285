"""Run steps through Celery workers while everything around them is killed and started again by a seeded schedule.

Workers, triggerers and Redis are killed with SIGKILL; TechFlow breaks connections for some seconds, before or after it
has acted. Prints what was done and what the steps left, and fails when a step did not succeed, has not exactly one
execution, or a secret is found.

    python tests/deployment/soak.py [--steps 500] [--requests-per-minute 300] [--seed N]
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from techflow_provider.sandbox import Fault, Sandbox  # noqa: E402  # the checkout comes first
from tests.deployment.airflow_deployment import KEY, Deployment  # noqa: E402
from tests.deployment.celery_deployment import celery_deployment  # noqa: E402
from tests.deployment.e2e import DAG, ENDED, RUN, STATES, in_a_folder, say  # noqa: E402
from tests.deployment.secrets_search import search, show_everything  # noqa: E402
from tests.servers import until  # noqa: E402

EXECUTION_SECONDS = 15.0
SECONDS_A_STEP = 6.0
SPACING_SECONDS = (10.0, 25.0)
OUTAGE_SECONDS = (1.0, 6.0)
VICTIMS = ("worker-1", "worker-2", "triggerer", "triggerer-2", "redis", "TechFlow before", "TechFlow after")
SETTINGS = {
    "STEP_RETRIES": "30",
    # What a killed worker held is noticed soon.
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES": "50",
    "AIRFLOW__TECHFLOW__POLL_INTERVAL": "5",
}


class Schedule(threading.Thread):
    """Breaks one thing after another until it is stopped.

    :param airflow: what is broken
    :param seed: decides what, when and for how long
    """

    def __init__(self, airflow: Deployment, seed: int) -> None:
        super().__init__(daemon=True)
        self.done: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self._airflow = airflow
        self._chance = random.Random(seed)
        self._over = threading.Event()

    def run(self) -> None:
        """Break and mend."""
        due = self._due()
        while not self._over.wait(1.0):
            self._start_what_ended()
            if time.monotonic() >= due:
                self._break()
                due = self._due()

    def _due(self) -> float:
        return time.monotonic() + self._chance.uniform(*SPACING_SECONDS)

    def _start_what_ended(self) -> None:
        """Start what ended by itself, as a supervisor of services does: Airflow's scheduler ends when Redis is gone."""
        for name, program in self._airflow.programs.items():
            if program.ended:
                self.ended[name] += 1
                program.start()

    def _break(self) -> None:
        victim, seconds = self._chance.choice(VICTIMS), self._chance.uniform(*OUTAGE_SECONDS)
        self.done[victim] += 1
        if victim.startswith("TechFlow"):
            self._break_techflow(victim, seconds)
        else:
            self._kill(victim, seconds)

    def _break_techflow(self, victim: str, seconds: float) -> None:
        self._airflow.sandbox.faults.add(Fault("lost_response") if victim.endswith("after") else Fault("reset"))
        time.sleep(seconds)
        self._airflow.sandbox.faults.clear()

    def _kill(self, victim: str, seconds: float) -> None:
        program = self._airflow.programs[victim]
        program.kill()
        time.sleep(seconds)
        program.start()

    def stop(self) -> None:
        """Break nothing more, and wait until all is mended."""
        self._over.set()
        self.join()


def run(steps: int, limit: int, seed: int, folder: Path) -> list[str]:
    """Run the steps, print what they left and return what is wrong with it."""
    sandbox = Sandbox(api_keys=(KEY,), limit=limit, execution_seconds=EXECUTION_SECONDS)
    say(f"· starting in {folder}, seed {seed}")
    with celery_deployment(
        sys.executable,
        [DAG],
        folder,
        sandbox=sandbox,
        extra={"requests_per_minute": limit},
        environment={**SETTINGS, "STEPS": str(steps)},
        state_in_redis=True,
    ) as airflow:
        airflow.await_dags("steps")
        began = time.monotonic()
        airflow.trigger("steps")
        schedule = Schedule(airflow, seed)
        schedule.start()
        try:
            until(lambda: airflow.query(RUN)[0][0] in ENDED, 600 + steps * SECONDS_A_STEP, "the DAG run")
        finally:
            # Or it would start again what the end of the deployment has stopped.
            schedule.stop()
        took, states = time.monotonic() - began, airflow.query(STATES)
        show_everything(airflow)
        searched = search({"the API key": KEY}, airflow)
    say(f"{steps} steps in {took:.0f} s, seed {seed}; killed or broken: {dict(schedule.done)}")
    say(f"ended by themselves and started again: {dict(schedule.ended)}")
    say(f"states: {', '.join(' '.join(row) for row in states)}")
    say(f"searched for the API key: {searched}; found {len(searched.found)}")
    return [*_faults(steps, states, sandbox), *searched.found]


def _faults(steps: int, states: list[list[str]], sandbox: Sandbox) -> list[str]:
    per_workflow = Counter(execution.workflow_id for execution in sandbox.executions)
    ids = [str(workflow["id"]) for workflow in sandbox.workflows]
    losses = sum(not per_workflow[each] for each in ids)
    duplicates = sum(count - 1 for count in per_workflow.values())
    wrong = [" ".join(row) for row in states if row[1] != "success"]
    say(f"workflows {len(ids)}, executions {len(sandbox.executions)}, duplicates {duplicates}, losses {losses}")
    say(f"tasks in a wrong state {len(wrong)}; 429s {sandbox.count(status=429)}")
    if len(ids) != steps:
        wrong.append(f"{len(ids)} workflows for {steps} steps")
    return [*wrong, *([f"{duplicates} duplicates"] if duplicates else []), *([f"{losses} losses"] if losses else [])]


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--requests-per-minute", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    asked = parser.parse_args()
    return in_a_folder(lambda folder: run(asked.steps, asked.requests_per_minute, asked.seed, folder))


if __name__ == "__main__":
    sys.exit(main())
