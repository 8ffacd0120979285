"""Run mapped steps through a whole Airflow, check what they left, and look for secrets.

With the CeleryExecutor: a PostgreSQL, a Redis, a scheduler, a DAG processor, an API server, two workers, two
triggerers and the sandbox, each in a home of its own. With the LocalExecutor: one of each in one home, the state in a
file. All are made here and ended here, and TechFlow's webhooks are on. Prints what was seen, and fails when a step did
not succeed, an execution is missing or one too many, the server refused a request, or a secret is found.

    python tests/deployment/e2e.py [--executor celery|local] [--steps N] [--requests-per-minute 100]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from techflow_provider.sandbox import Sandbox, Webhooks  # noqa: E402  # the checkout comes first
from tests.deployment.airflow_deployment import GENEROUS_TIMEOUTS, KEY, Deployment, deployment  # noqa: E402
from tests.deployment.celery_deployment import celery_deployment  # noqa: E402
from tests.deployment.metrics import Metrics  # noqa: E402
from tests.deployment.secrets_search import Search, search, show_everything  # noqa: E402
from tests.deployment.webhook_deployment import SECRET, await_status  # noqa: E402
from tests.servers import until  # noqa: E402

DAG = ROOT / "tests" / "deployment" / "dags" / "steps.py"
STATES = "SELECT task_id, state, count(*) FROM task_instance WHERE dag_id = 'steps' GROUP BY 1, 2 ORDER BY 1, 2"
RUN = "SELECT state FROM dag_run WHERE dag_id = 'steps'"
ENDED = ("success", "failed")
EXECUTION_SECONDS = 20.0
SECONDS_A_STEP = 6.0
WRONG_KEY = "key-that-techflow-does-not-know"
SECRETS = {"the API key": KEY, "the wrong API key": WRONG_KEY, "the webhook secret": SECRET}
STEPS = {"celery": 200, "local": 40}
SETTINGS = {**GENEROUS_TIMEOUTS, "AIRFLOW__TECHFLOW__POLL_INTERVAL": "5"}
LOCAL_SETTINGS = {
    "AIRFLOW__CORE__PARALLELISM": "6",
    # Airflow 3.0 to 3.2 fail a task whose event comes before the scheduler has noticed that it was deferred; a retry
    # continues with the same execution.
    "STEP_RETRIES": "2",
}


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    :param seconds: how long it took
    :param states: task, state and number of task instances
    :param search: for secrets
    """

    seconds: float
    states: list[list[str]]
    search: Search


def run(executor: str, steps: int, limit: int, folder: Path) -> list[str]:
    """Run the steps, print what they left and return what is wrong with it."""
    metrics = Metrics()
    sandbox = Sandbox(api_keys=(KEY,), limit=limit, execution_seconds=EXECUTION_SECONDS)
    say(f"· starting Airflow with the {executor} executor in {folder}")
    environment = {**SETTINGS, **metrics.environment, "STEPS": str(steps)}
    with _deployment(executor, folder, sandbox, limit, environment) as airflow:
        url = airflow.serve_webhooks()
        await_status(url, 401)
        # Before 3.3 Airflow logs the whole URL of a request.
        proof: Any = "token" if airflow.version >= (3, 3) else "signature"
        sandbox.webhooks = Webhooks(url, secret=SECRET, proof=proof)
        say(f"· running {steps} steps at {limit} requests a minute, with webhooks authenticated by {proof}")
        outcome = _run(airflow, steps)
    _report(steps, outcome, sandbox, metrics)
    return _faults(steps, outcome, sandbox)


def _deployment(
    executor: str, folder: Path, sandbox: Sandbox, limit: int, environment: dict[str, str]
) -> AbstractContextManager[Deployment]:
    settings: dict[str, Any] = {
        "sandbox": sandbox,
        "environment": environment,
        "extra": {"requests_per_minute": limit, "webhook_secret": SECRET},
        "others": {"techflow_wrong": {"password": WRONG_KEY, "extra": {}}},
        "folder": folder,
    }
    if executor == "celery":
        return celery_deployment(sys.executable, [DAG], state_in_redis=True, **settings)
    settings["environment"] = {**LOCAL_SETTINGS, **environment}
    return deployment(sys.executable, [DAG], **settings)


def _run(airflow: Deployment, steps: int) -> Outcome:
    airflow.await_dags("steps", "refused")
    began = time.monotonic()
    airflow.trigger("steps")
    until(lambda: airflow.query(RUN)[0][0] in ENDED, 120 + steps * SECONDS_A_STEP, "the DAG run")
    took, states = time.monotonic() - began, airflow.query(STATES)
    airflow.trigger("refused")
    airflow.await_task("refused", "create", "failed")
    show_everything(airflow)
    return Outcome(took, states, search(SECRETS, airflow))


def _report(steps: int, outcome: Outcome, sandbox: Sandbox, metrics: Metrics) -> None:
    minutes = outcome.seconds / 60
    polls = sandbox.count(method="GET", path="/executions")
    say(f"{steps} steps in {outcome.seconds:.0f} s: {', '.join(' '.join(row) for row in outcome.states)}")
    say(f"executions {len(sandbox.executions)}, 429s {sandbox.count(status=429)}")
    say(f"requests {sandbox.count() / minutes:.1f} a minute, polls of the whole deployment {polls / minutes:.1f}")
    say(f"waits for a slot {len(metrics.waits)}, longest {max(metrics.waits, default=0.0):.1f} s")
    say(f"webhooks {len(sandbox.deliveries)}")
    say(f"searched for {', '.join(SECRETS)}: {outcome.search}; found {len(outcome.search.found)}")


def _faults(steps: int, outcome: Outcome, sandbox: Sandbox) -> list[str]:
    faults = [" ".join(row) for row in outcome.states if row[1] != "success"]
    faults += outcome.search.found
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
    parser.add_argument("--executor", choices=STEPS, default="celery")
    parser.add_argument("--steps", type=int, help="default: 200 with celery, 40 with local")
    parser.add_argument("--requests-per-minute", type=int, default=100)
    asked = parser.parse_args()
    steps = asked.steps or STEPS[asked.executor]
    return in_a_folder(lambda folder: run(asked.executor, steps, asked.requests_per_minute, folder))


if __name__ == "__main__":
    sys.exit(main())
