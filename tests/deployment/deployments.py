"""Which guarantees hold in which deployment: a table, from real Airflows with nothing set up besides Airflow.

Every component has a home and a host name of its own, and so has every attempt of a task where pods stand in for the
KubernetesExecutor. The metadata database is PostgreSQL, and TechFlow a sandbox that admits 100 requests in any 60 s.
A deployment fails when a task has not exactly one execution, the server refused a request, a webhook woke nothing, or
waits polled one by one.

    python tests/deployment/deployments.py --executors local celery pods edge [--quick] [--rows FILE]
    python tests/deployment/deployments.py --table FILE
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from techflow_provider.sandbox import Fault, Sandbox, Webhooks  # noqa: E402  # the checkout comes first
from tests.deployment.airflow_deployment import GENEROUS_TIMEOUTS, Deployment, deployment  # noqa: E402
from tests.deployment.celery_deployment import celery_deployment  # noqa: E402
from tests.deployment.edge_deployment import edge_deployment  # noqa: E402
from tests.deployment.hosts import PODS, namespaces  # noqa: E402
from tests.deployment.webhook_deployment import SECRET, await_status, fired  # noqa: E402
from tests.servers import until  # noqa: E402

DAGS = [ROOT / "tests" / "deployment" / "dags" / "guarantees.py"]
KEYS = {name: f"key-of-{name}" for name in ("techflow_default", "techflow_woken", "techflow_busy")}
LIMIT = 100
POLLS_ALLOWED = 20.0
# On a slow machine; without the webhook it would be ten minutes.
WOKEN_ALLOWED_SECONDS = 120.0
HANG_SECONDS = 600.0
EXECUTORS = {
    "local": "LocalExecutor",
    "celery": "CeleryExecutor, 2 workers",
    "pods": "KubernetesExecutor (stand-in)",
    "edge": "EdgeExecutor, 2 workers",
}
STARTS = ("killed_after_the_request", "killed_while_waiting", "two_tasks")
DAG_IDS = (*STARTS[:2], "one_of_two", "other_of_two", "woken", "one_poll", "budget")
HEADS = (
    "Airflow",
    "executor",
    "killed after the POST",
    "killed while waiting",
    "two tasks, one workflow",
    "429s",
    "most in 60 s",
    "webhook to event, s",
    "polls a minute",
    "state",
    "result",
)


@dataclass
class Row:
    """What a deployment came to; what is missing was not reached.

    :param executions: per scenario, how many its tasks needed and how many there were
    :param rejected: responses with status 429
    :param most: requests of one API key in the worst 60 s
    :param woken: seconds from the end of executions to the events of their waits
    :param polls: of five waits, in a minute
    :param state: where the tasks found the state
    :param faults: what is wrong
    """

    airflow: str
    executor: str
    executions: dict[str, tuple[int, int]] = field(default_factory=dict)
    rejected: int | None = None
    most: int | None = None
    woken: list[float] = field(default_factory=list)
    polls: float | None = None
    state: str = ""
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def cells(self) -> tuple[str, ...]:
        """Return it as the table shows it."""
        counts = [f"{got} of {wanted}" for wanted, got in (self.executions.get(each, (0, 0)) for each in STARTS)]
        woken = ", ".join(f"{seconds:.1f}" for seconds in self.woken) or "never"
        polls = "-" if self.polls is None else f"{self.polls:.0f}"
        result = f"**{'; '.join(self.faults)}**" if self.faults else "holds"
        numbers = (str(self.rejected), str(self.most), woken, polls, self.state or "-")
        return (self.airflow, EXECUTORS[self.executor], *counts, *numbers, result)


@dataclass
class Check:
    """The guarantees of one running deployment.

    :param running: the deployment
    :param row: what it comes to
    :param quick: whether polls are counted for half a minute only
    """

    running: Deployment
    row: Row
    webhook_url: str
    quick: bool

    @property
    def sandbox(self) -> Sandbox:
        return self.running.sandbox

    def all(self) -> None:
        """Check everything; what isn't reached in time is a fault, and the rest is checked."""
        steps = (self.killed_after_the_request, self.killed_while_waiting, self.two_tasks, self.woken, self.one_poll)
        self.running.trigger_all(*DAG_IDS[:-1])
        for step in (*steps, self.budget):
            if step == self.two_tasks:
                # With all others, too many processes would start at once.
                self.running.trigger_all("budget")
            say(f"  {step.__name__.replace('_', ' ')}")
            try:
                step()
            except (TimeoutError, RuntimeError) as error:
                self.row.faults.append(str(error))

    def killed_after_the_request(self) -> None:
        """Kill a task whose request has reached TechFlow, before the response."""
        name = "killed_after_the_request"
        self._until(lambda: self._executions(name), name, "an execution")
        with self._killed(name):
            self._expect(name, 1, [name])

    def killed_while_waiting(self) -> None:
        """Kill a task that waits for what it has started."""
        name = "killed_while_waiting"
        self._until(lambda: " was started" in self.running.log(name, "start", 1), name, "a log line about a start")
        with self._killed(name):
            self._until(lambda: self.running.task(name, "start").tries > 1, name, "a second attempt")
            self._until(partial(self._finished, name), name, "success")
            self._expect(name, 1, [name])

    def two_tasks(self) -> None:
        """Let one task's request get lost, with no effect, while another one starts the same workflow."""
        # Held back until here, so that the request of the first is the one that gets lost.
        (self.running.home / "go-one_of_two").touch()
        path = "/workflows/two_tasks/execute"
        self._until(lambda: self.sandbox.count(path=path), "one_of_two", "the first task's request")
        (self.running.home / "go-other_of_two").touch()
        self._expect("two_tasks", 2, ["one_of_two", "other_of_two"])
        ids = {self.running.xcom(dag_id, "start") for dag_id in ("one_of_two", "other_of_two")}
        if len(ids) != 2:
            self.row.faults.append("two tasks have one execution")

    def woken(self) -> None:
        """End executions, one after the other, whose waits would poll again in ten minutes."""
        ids = [each.id for each in self._executions("woken")]
        deferred = "SELECT count(*) FROM task_instance WHERE dag_id = 'woken' AND state = 'deferred'"
        self._until(lambda: self.running.query(deferred)[0][0] == str(len(ids)), "woken", "deferred tasks")
        until(
            lambda: len(list(self.running.home.glob("logs/dag_id=woken/**/*.trigger.*"))) >= len(ids), 120, "triggers"
        )
        # After the poll at the beginning.
        time.sleep(15)
        self.sandbox.webhooks = Webhooks(self.webhook_url, secret=SECRET)
        ended = {}
        for each in ids:
            ended[each] = time.time()
            self.sandbox.finish(each)
            time.sleep(8)
        try:
            until(lambda: len(fired(self.running)) >= len(ids), WOKEN_ALLOWED_SECONDS, "an event after the webhook")
        finally:
            self.sandbox.webhooks = None
            self.row.woken = [at - ended[each] for each, at in fired(self.running).items() if each in ended]

    def one_poll(self) -> None:
        """Count the polls of waits in the triggerer, in two sensors and in an operator."""
        tasks = ("deferred", "deferred_too", "poking", "poking_too", "operator")
        for task in tasks:
            self.running.await_task("one_poll", task, "deferred", "running", seconds=HANG_SECONDS)
        self._until(lambda: len(self._executions("one_poll")) == len(tasks), "one_poll", "the operator's start")
        # What began at once is over.
        time.sleep(10)
        seconds, before = 30.0 if self.quick else 60.0, self.sandbox.count(method="GET", path="/executions")
        time.sleep(seconds)
        self.row.polls = (self.sandbox.count(method="GET", path="/executions") - before) * 60 / seconds
        for each in self._executions("one_poll"):
            self.sandbox.finish(each.id)
        self._until(partial(self._succeeded, "one_poll"), "one_poll", "success")
        if self.row.polls > POLLS_ALLOWED:
            self.row.faults.append(f"{self.row.polls:.0f} polls a minute for 5 waits")

    def budget(self) -> None:
        """Wait for the callers that use the whole limit."""
        self._until(partial(self._succeeded, "budget"), "budget", "the callers")
        found = re.search(r"the state of caller \d+ is in ([^\"\n]+)", self._log_of_callers())
        self.row.state = found[1].strip() if found else ""
        self.row.rejected = self.sandbox.count(status=429)
        self.row.most = worst_window([each.at for each in self.sandbox.requests if each.path == "/workflows/busy"])
        if self.row.rejected:
            self.row.faults.append(f"{self.row.rejected} requests refused")

    def _finished(self, dag_id: str) -> bool:
        """Finish what the task of a DAG waits for, until it succeeded."""
        for each in self._executions(dag_id):
            if each.status == "running":
                self.sandbox.finish(each.id)
        return self._succeeded(dag_id)

    def _run_state(self, dag_id: str) -> str:
        return self.running.query(f"SELECT state FROM dag_run WHERE dag_id = '{dag_id}'")[0][0]

    def _succeeded(self, dag_id: str) -> bool:
        return self._run_state(dag_id) == "success"

    def _until(self, ask: Callable[[], object], dag_id: str, wanted: str) -> None:
        """Wait for something that a DAG brings about, unless its run failed."""
        if until(lambda: "failed" if self._run_state(dag_id) == "failed" else ask(), HANG_SECONDS, wanted) == "failed":
            raise RuntimeError(f"the run of {dag_id} failed before {wanted}")

    def _log_of_callers(self) -> str:
        paths = self.running.home.glob("logs/dag_id=budget/**/*.log")
        return "\n".join(path.read_text(errors="replace") for path in paths)

    def _executions(self, workflow_id: str) -> list[Any]:
        return [each for each in self.sandbox.executions if each.workflow_id == workflow_id]

    def _expect(self, workflow_id: str, wanted: int, dag_ids: Sequence[str]) -> None:
        """Wait until tasks succeeded, and count their executions."""
        try:
            for dag_id in dag_ids:
                self._until(partial(self._succeeded, dag_id), dag_id, "success")
        finally:
            got = len(self._executions(workflow_id))
            self.row.executions[workflow_id] = (wanted, got)
            if got != wanted:
                self.row.faults.append(f"{got} executions instead of {wanted} ({workflow_id.replace('_', ' ')})")

    @contextmanager
    def _killed(self, dag_id: str) -> Iterator[None]:
        """Kill a task with what it runs on; a worker is back once another one has done the work."""
        worker = self._worker(dag_id)
        if worker is None:
            # Airflow 3.0 fails a killed task without a retry, unless its supervisor is lost, too.
            alone = not (self.row.executor == "local" and self.row.airflow.startswith("3.0."))
            self.running.kill_task(dag_id, "start", alone=alone)
            yield
            return
        self.running.programs[worker].kill()
        if self.row.executor == "edge":
            # The tasks of an edge worker have process groups of their own, which outlive it.
            self.running.kill_task(dag_id, "start", alone=False)
        try:
            yield
        finally:
            self.running.programs[worker].start()

    def _worker(self, dag_id: str) -> str | None:
        if self.row.executor not in ("celery", "edge"):
            return None
        where = f"SELECT hostname FROM task_instance WHERE dag_id = '{dag_id}'"
        host = self.running.query(where)[0][0]
        return host if host in self.running.programs else None


def worst_window(times: Sequence[datetime], seconds: float = 60.0) -> int:
    """Return the largest number of moments in any window of a length."""
    worst, window = 0, deque[datetime]()
    for each in sorted(times):
        window.append(each)
        while (each - window[0]).total_seconds() >= seconds:
            window.popleft()
        worst = max(worst, len(window))
    return worst


def sandbox_of() -> Sandbox:
    """Return the TechFlow, with the workflows and faults of all scenarios."""
    sandbox = Sandbox(
        api_keys=tuple(KEYS.values()), limit=LIMIT, algorithm="sliding_log", execution_seconds=float("inf")
    )
    for name in (*STARTS, "woken", "one_poll", "busy"):
        sandbox.add_workflow(name, id=name)
    sandbox.plan("killed_after_the_request", seconds=5.0)
    sandbox.plan("two_tasks", seconds=5.0)
    after = Fault("hang", path="/workflows/killed_after_the_request/execute", when="after", times=1)
    sandbox.faults.add(after)
    sandbox.faults.add(Fault("hang", path="/workflows/two_tasks/execute", times=1))
    return sandbox


@contextmanager
def started(executor: str, folder: Path, sandbox: Sandbox, *, quick: bool) -> Iterator[Deployment]:
    """Run an Airflow with an executor while the context lasts."""
    ids = {name: [sandbox.start(name).id for _ in range(count)] for name, count in (("woken", 2), ("one_poll", 4))}
    environment = {
        "DEPLOYMENT_FOLDER": str(folder),
        "DEPLOYMENT_EXECUTIONS": json.dumps(ids),
        # More calls than the limit admits in a minute.
        "DEPLOYMENT_CALLERS": "5" if quick else "8",
        "DEPLOYMENT_CALLS": "24" if quick else "25",
        "AIRFLOW__TECHFLOW__HISTORY_LAG": "3",
        # The loss of a worker is noticed by its silence, and on Airflow 2 that of a pod. A busy machine is silent, too.
        **dict.fromkeys(GENEROUS_TIMEOUTS, "45"),
        "AIRFLOW__TECHFLOW__POLL_INTERVAL": "5",
    }
    others = {
        name: {"password": key, "extra": {"webhook_secret": SECRET} if name == "techflow_woken" else {}}
        for name, key in KEYS.items()
    }
    settings: dict[str, Any] = {"sandbox": sandbox, "folder": folder, "extra": {"timeout": 10}, "others": others}
    if executor == "celery":
        with celery_deployment(
            sys.executable, DAGS, environment=environment, slots=8, triggerers=1, **settings
        ) as made:
            yield made
        return
    if executor == "edge":
        with edge_deployment(sys.executable, DAGS, environment=environment, workers=2, slots=8, **settings) as made:
            yield made
        return
    if executor == "pods":
        (folder / "pods").mkdir()
        environment |= {"AIRFLOW__CORE__EXECUTOR": "tests.deployment.pods.PodExecutor", PODS: str(folder / "pods")}
    with deployment(sys.executable, DAGS, environment=environment, own_homes=True, **settings) as made:
        yield made


def check(executor: str, folder: Path, *, quick: bool) -> Row:
    """Run a deployment and return what it came to."""
    began, sandbox, row = time.monotonic(), sandbox_of(), Row(version("apache-airflow"), executor)
    try:
        _check(row, folder, sandbox, quick=quick)
    except (TimeoutError, RuntimeError) as error:
        row.faults.append(str(error))
    row.seconds = time.monotonic() - began
    say(f"· {row.airflow} {executor}: {'; '.join(row.faults) or 'holds'}, {row.seconds:.0f} s")
    return row


def _check(row: Row, folder: Path, sandbox: Sandbox, *, quick: bool) -> None:
    began = time.monotonic()
    with started(row.executor, folder, sandbox, quick=quick) as running:
        url = running.serve_webhooks().replace("techflow_default", "techflow_woken")
        await_status(url, 401)
        running.await_dags(*DAG_IDS)
        say(f"· Airflow {row.airflow} with {EXECUTORS[row.executor]} is up after {time.monotonic() - began:.0f} s")
        Check(running, row, url, quick).all()


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = (HEADS, tuple("---" for _ in HEADS), *(row.cells() for row in rows))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{datetime.now(UTC):%H:%M:%S} {text}\n")
    sys.stdout.flush()


def in_a_folder(run: Callable[[Path], Row]) -> Row:
    """Run in a new folder, which is kept when something is wrong."""
    folder = Path(tempfile.mkdtemp(prefix="airflow-deployments-"))
    row = run(folder)
    if row.faults:
        say(f"logs are kept in {folder}")
    else:
        shutil.rmtree(folder)
    return row


def main() -> int:
    """Check the executors that were asked for, or print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executors", nargs="+", choices=EXECUTORS, default=list(EXECUTORS))
    parser.add_argument("--quick", action="store_true", help="a shorter count of polls, and fewer callers")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="where results are added, a line each")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of such a file")
    asked = parser.parse_args()
    # Everything that runs is ended then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if asked.table:
        rows = [Row(**json.loads(line)) for line in asked.table.read_text().splitlines()]
    else:
        if not namespaces():
            say("· no namespaces: all processes have one host name")
        rows = []
        for executor in asked.executors:
            rows.append(in_a_folder(partial(check, executor, quick=asked.quick)))
            if asked.rows:
                with asked.rows.open("a") as file:
                    file.write(json.dumps(asdict(rows[-1])) + "\n")
    sys.stdout.write(table(rows) + "\n")
    return 1 if any(row.faults for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
