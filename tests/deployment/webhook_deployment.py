"""A whole Airflow whose web server receives the sandbox's webhooks."""

from __future__ import annotations

import re
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from techflow_provider.sandbox import Sandbox, Webhooks
from tests.deployment.airflow_deployment import GENEROUS_TIMEOUTS, KEY, Deployment, deployment
from tests.servers import until

DAGS = Path(__file__).with_name("dags")
SECRET = "secret-of-the-deployment-tests"
STAMP = re.compile(r"(20\d\d-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,]\d+)")


@dataclass(frozen=True)
class Airflow:
    """A running Airflow and where it receives webhooks."""

    running: Deployment
    webhook_url: str
    webhooks: bool = True

    @property
    def sandbox(self) -> Sandbox:
        return self.running.sandbox

    def send(self, **fields: float) -> None:
        """Let the sandbox send webhooks."""
        self.sandbox.webhooks = Webhooks(self.webhook_url, secret=SECRET, **fields)  # type: ignore[arg-type]

    def fired(self) -> dict[str, float]:
        """Return when the triggers said that they are about to fire, by execution."""
        return fired(self.running)

    def ended(self, run_id: str, ids: Sequence[str]) -> dict[str, float]:
        """Return when the tasks that wait ended, by execution."""
        rows = self.running.query(
            "SELECT map_index, extract(epoch FROM end_date) FROM task_instance "
            f"WHERE dag_id = 'webhook_waits' AND task_id = 'wait' AND run_id = '{run_id}' AND state = 'success'"
        )
        return {ids[int(index)]: float(end) for index, end in rows}


def fired(running: Deployment) -> dict[str, float]:
    """Return when the triggers said that they are about to fire, by execution; each has a log of its own."""
    found: dict[str, float] = {}
    for path in (running.home / "logs").rglob("*.trigger.*"):
        for line in path.read_text(errors="replace").splitlines():
            stamp, execution = STAMP.search(line), re.search(r"Execution (exec_\w+) ended", line)
            if stamp and execution:
                found.setdefault(execution[1], _seconds(stamp[1]))
    return found


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp.replace(",", ".").replace(" ", "T")).replace(tzinfo=UTC).timestamp()


@contextmanager
def airflow(
    dags: Sequence[str],
    *,
    webhooks: bool = True,
    others: Mapping[str, Mapping[str, Any]] | None = None,
    redis_url: str | None = None,
) -> Iterator[Airflow]:
    """Run the Airflow of this interpreter with TechFlow's documented limit while the context lasts.

    :param webhooks: whether the connection has a secret
    :param others: further connections
    :param redis_url: where the state is; its programs then have no folder in common
    """
    sandbox = Sandbox(
        api_keys=(KEY,),
        execution_seconds=float("inf"),
        workflows_at_start={"wf_1": "one"},
    )
    extra = {"webhook_secret": SECRET} if webhooks else {"burst": 6}
    paths = [DAGS / f"{name}.py" for name in dags]
    variables = {
        "AIRFLOW__TECHFLOW__POLL_INTERVAL": "5",
        **GENEROUS_TIMEOUTS,
        "AIRFLOW__CORE__PARALLELISM": "4",
        **({"AIRFLOW__TECHFLOW__STATE_URL": redis_url} if redis_url else {}),
    }
    settings: dict[str, Any] = {"environment": variables, "extra": extra, "others": others}
    with deployment(sys.executable, paths, sandbox=sandbox, **settings, own_homes=redis_url is not None) as running:
        url = running.serve_webhooks()
        # Without a secret it is off.
        await_status(url, 401 if webhooks else 404)
        yield Airflow(running, url, webhooks)


def await_status(url: str, status: int) -> None:
    """Wait until a receiver responds with a status to a delivery without proof."""
    until(lambda: _status(url) == status, 600, f"{status} from the receiver of webhooks")


def _status(url: str) -> int:
    try:
        return httpx.post(url, timeout=10).status_code
    except httpx.HTTPError:
        return 0


def start_waits(run: Airflow, run_id: str, count: int) -> list[str]:
    """Start executions and tasks that wait for them, and return their ids when all tasks are deferred."""
    run.running.await_dags("webhook_waits")
    ids = [run.sandbox.start("wf_1").id for _ in range(count)]
    run.running.trigger("webhook_waits", run_id, {"ids": ids})
    deferred = "SELECT count(*) FROM task_instance WHERE dag_id = 'webhook_waits' AND state = 'deferred'"
    until(lambda: run.running.query(deferred)[0][0] == str(count), 400, "all tasks deferred")
    time.sleep(10)
    return ids


@dataclass(frozen=True)
class Latency:
    """Seconds from the end of executions to something, one for each."""

    what: str
    seconds: tuple[float, ...]

    def __str__(self) -> str:
        ordered = sorted(self.seconds)
        p99 = ordered[max(0, round(len(ordered) * 0.99) - 1)]
        median = statistics.median(ordered)
        return f"{self.what}: n={len(ordered)} median={median:.2f} p99={p99:.2f} max={ordered[-1]:.2f} s"

    def __add__(self, other: Latency) -> Latency:
        return Latency(self.what, self.seconds + other.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def end_one_by_one(run: Airflow, run_id: str, ids: Sequence[str], spacing_seconds: float) -> tuple[Latency, Latency]:
    """End the executions, wait for the tasks, and return when triggers fired and when tasks were a success."""
    ends: dict[str, float] = {}
    for number, each in enumerate(ids):
        ends[each] = time.time()
        run.sandbox.finish(each, outcome="completed")
        # Not in step with the polls.
        time.sleep(spacing_seconds * (0.75 + number % 7 / 12))
    until(lambda: len(run.ended(run_id, ids)) == len(ids), 600, "all tasks a success")
    fired, ended = run.fired(), run.ended(run_id, ids)
    return (
        Latency("end to trigger's event", tuple(fired[each] - ends[each] for each in ids)),
        Latency("end to task's success", tuple(ended[each] - ends[each] for each in ids)),
    )
