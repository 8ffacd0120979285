"""Whether many deferrable tasks on few worker slots are held back by the rate limit alone, and hold no slot meanwhile.

Runs mapped tasks that each start an execution in a real LocalExecutor Airflow, with a limit that is lower than what the
workers could do. Prints the time from the first start to the last beside the limit's own (starts divided by the rate),
and how long a worker slept for a slot in the rate budget, according to Airflow's metrics. It needs PostgreSQL, and
`psycopg2-binary`, `asyncpg` and `statsd` beside Airflow.

    python tests/benchmarks/admission.py [--tasks 200] [--slots 4] [--requests-per-minute 40]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from techflow_provider.sandbox import Sandbox  # noqa: E402  # the checkout comes first
from techflow_provider.state.budget import DEFAULT_BURST  # noqa: E402
from techflow_provider.state.gcra import interval_within  # noqa: E402
from techflow_provider.triggers.outcomes import ADMISSION_SECONDS  # noqa: E402
from tests.benchmarks.rows import Row, add_option, hand_over  # noqa: E402
from tests.deployment.airflow_deployment import KEY, Deployment, deployment  # noqa: E402
from tests.deployment.metrics import Metrics  # noqa: E402
from tests.servers import until  # noqa: E402

STARTED = "SELECT count(*) FROM task_instance WHERE dag_id = 'mapped_starts' AND state IN ('success', 'failed')"
STATES = "SELECT state, count(*) FROM task_instance WHERE dag_id = 'mapped_starts' GROUP BY state"


def run(tasks: int, slots: int, requests_per_minute: int) -> list[Row]:
    """Start the Airflow, run the tasks, print what came of it and return its rows."""
    metrics = Metrics()
    sandbox = Sandbox(api_keys=(KEY,), limit=requests_per_minute, execution_seconds=1.0)
    sandbox.add_workflow("report", id="wf_1")
    environment = {
        **metrics.environment,
        "MAPPED_STARTS": str(tasks),
        "AIRFLOW__CORE__PARALLELISM": str(slots),
        "AIRFLOW__CORE__MAX_MAP_LENGTH": "5000",
    }
    extra: dict[str, Any] = {"requests_per_minute": requests_per_minute}
    dag = Path(__file__).parent / "dags" / "mapped_starts.py"
    with deployment(sys.executable, [dag], sandbox=sandbox, environment=environment, extra=extra) as airflow:
        airflow.await_dags("mapped_starts")
        airflow.trigger("mapped_starts")
        until(lambda: _ended(airflow, tasks), 60 + tasks * 120 / requests_per_minute, "all tasks ended")
        states = dict(airflow.query(STATES))
        log = "".join(path.read_text() for path in (airflow.home / "logs").rglob("task_id=start/**/*.log"))
    return _report(sandbox, metrics, states, log.count("Waiting in the triggerer for a slot"), slots)


def _ended(airflow: Deployment, tasks: int) -> bool:
    return int(airflow.query(STARTED)[0][0]) >= tasks


def _report(sandbox: Sandbox, metrics: Metrics, states: dict[str, str], deferrals: int, slots: int) -> list[Row]:
    posts = sorted(each.at for each in sandbox.requests if each.method == "POST" and each.status == 200)
    took = (posts[-1] - posts[0]).total_seconds()
    own = (len(posts) - 1) * interval_within(sandbox.limit, DEFAULT_BURST)
    refused, longest = sandbox.count(status=429), max(metrics.waits, default=0.0)
    sys.stdout.write(
        f"{len(posts)} starts on {slots} worker slots, limit {sandbox.limit} a minute: states {states}, "
        f"executions {len(sandbox.executions)}, 429s {refused}\n"
        f"first start to last {took:.0f} s, the limit's own {own:.0f} s, ratio {took / own:.2f}\n"
        f"deferred for a slot {deferrals} times; waits in a worker {len(metrics.waits)}, longest "
        f"{longest:.2f} s, bound {ADMISSION_SECONDS:g} s\n"
    )
    n, tasks = f"{len(posts)} tasks, {slots} slots, {sandbox.limit} a minute", sum(map(int, states.values()))
    return [
        Row("mapped deferrable starts that succeed", int(states.get("success", 0)), "", n, limit=tasks, bound="="),
        Row("executions of them", len(sandbox.executions), "", n, limit=tasks, bound="="),
        Row("429s that they meet", refused, "", n, limit=0, bound="="),
        Row("their time beside what the limit allows", took / own, "times", n),
        Row(
            "longest wait for a slot in a worker", longest, "s", f"{len(metrics.waits)} waits", limit=ADMISSION_SECONDS
        ),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--requests-per-minute", type=int, default=40)
    add_option(parser)
    asked = parser.parse_args()
    hand_over(asked.rows, *run(asked.tasks, asked.slots, asked.requests_per_minute))
