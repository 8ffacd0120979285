"""What the scenarios share: a running Airflow, what its database and logs have, and what users do."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg2  # type: ignore[import-untyped]

from tests.deployment.actions import Actions
from tests.deployment.airflow_deployment import Deployment
from tests.deployment.metrics import Collector, Metrics

HANG_SECONDS = 600.0
READ_SECONDS = 0.3
PROCESS_ENDED = re.compile(r"Received executor event with state (?:success|failed) for .*?dag_id='(\w+)'")
ENDED = ("success", "failed", "skipped", "upstream_failed", "removed")
TASKS = """
    SELECT t.dag_id, t.task_id, t.run_id, t.map_index, coalesce(t.state, ''), t.try_number, t.pid, r.state
    FROM task_instance t JOIN dag_run r ON r.dag_id = t.dag_id AND r.run_id = t.run_id
"""


@dataclass(frozen=True)
class TaskRow:
    """A task instance as the database has it, and the state of its run."""

    dag_id: str
    task_id: str
    run_id: str
    map_index: int
    state: str
    tries: int
    pid: int | None
    run_state: str


class World:
    """A running deployment, and what its database has, which all scenarios wait for together."""

    def __init__(self, running: Deployment, metrics: Metrics | Collector) -> None:
        self.running = running
        self.metrics = metrics
        self.sandbox = running.sandbox
        self.actions = Actions(running)
        self.tasks: list[TaskRow] = []
        # How many ends of processes the scheduler has noticed, by DAG.
        self.noticed: Counter[str] = Counter()
        # The most tasks of a DAG that were deferred at once.
        self.most_deferred: Counter[str] = Counter()
        self._acting = threading.Lock()
        self._read = threading.Condition()
        self._error: Exception | None = None
        threading.Thread(target=self._read_database, daemon=True).start()

    def _read_database(self) -> None:
        try:
            url = self.running.postgres.url.replace("+psycopg2", "")
            log = (self.running.home / "scheduler.log").open(errors="replace")
            with log, psycopg2.connect(url) as connection, connection.cursor() as cursor:
                connection.autocommit = True
                while True:
                    cursor.execute(TASKS)
                    with self._read:
                        self.tasks = [TaskRow(*row) for row in cursor.fetchall()]
                        deferred = Counter(each.dag_id for each in self.tasks if each.state == "deferred")
                        self.most_deferred |= deferred
                        self.noticed.update(PROCESS_ENDED.findall(log.read()))
                        self._read.notify_all()
                    time.sleep(READ_SECONDS)
        except psycopg2.Error as error:
            self._error = error

    def until(self, ask: Callable[[], object], wanted: str, seconds: float = HANG_SECONDS) -> None:
        """Wait until something is so, which is asked whenever the database was read.

        :raises TimeoutError: it was not in time
        """
        with self._read:
            if not self._read.wait_for(lambda: self._error or ask(), seconds):
                raise TimeoutError(f"not within {seconds:g} s: {wanted}")
        if self._error is not None:
            raise self._error

    def of(self, dag_id: str, task_id: str = "task") -> list[TaskRow]:
        """Return the instances of a scenario's task."""
        return [each for each in self.tasks if (each.dag_id, each.task_id) == (dag_id, task_id)]

    def states(self, dag_id: str, task_id: str = "task") -> list[str]:
        """Return the states of a scenario's task."""
        return [each.state for each in self.of(dag_id, task_id)]

    def await_state(self, dag_id: str, *states: str, count: int = 1, task_id: str = "task") -> None:
        """Wait until so many instances of a task are in one of some states."""
        self.until(
            lambda: sum(state in states for state in self.states(dag_id, task_id)) >= count,
            f"{count} of {dag_id}.{task_id} {' or '.join(states)}",
        )

    def await_deferred(self, dag_id: str, count: int = 1, *, processes: int | None = None) -> None:
        """Wait until tasks are deferred and have started what they wait for, and the scheduler has noticed that.

        Airflow fails a task that is to resume before the scheduler has noticed that its process ended.

        :param processes: how many the DAG has had so far; by default one for each task
        """
        self.await_state(dag_id, "deferred", count=count)
        self.await_execution(dag_id, count)
        self.until(lambda: self.noticed[dag_id] >= (processes or count), f"ended processes of {dag_id}")

    def await_execution(self, dag_id: str, count: int = 1) -> None:
        """Wait until a workflow has so many executions."""
        self.until(lambda: len(self.executions(dag_id)) >= count, f"{count} executions of {dag_id}")

    def await_kept(self, dag_id: str) -> None:
        """Wait until a task has pushed what it has started."""
        pushed = f"SELECT count(*) FROM xcom WHERE dag_id = '{dag_id}'"
        self.until(lambda: self.running.query(pushed)[0][0] != "0", f"an XCom of {dag_id}")

    def await_log(self, dag_id: str, words: str) -> None:
        """Wait for words in a task's log."""
        self.until(lambda: words in self.log(dag_id), f"{words!r} in the log of {dag_id}")

    def executions(self, workflow_id: str) -> list[Any]:
        """Return the executions of a scenario's workflow."""
        return [each for each in self.sandbox.executions if each.workflow_id == workflow_id]

    def finish(self, workflow_id: str, outcome: Any = "completed") -> None:
        """End what runs of a scenario's workflow."""
        for each in self.executions(workflow_id):
            if each.status == "running":
                self.sandbox.finish(each.id, outcome=outcome)

    def finish_all(self, dag_id: str, count: int, *, in_scheduler: bool = True) -> None:
        """End each execution of a workflow once its task is deferred, until so many tasks have ended.

        :param in_scheduler: whether the scheduler's executor runs the tasks, whose log says which ends it has noticed
        """

        def ask() -> bool:
            states = self.states(dag_id)
            ended = sum(state in ENDED for state in states)
            # One process until the deferral, and another one after it.
            processes = len(self.executions(dag_id)) + ended
            if "deferred" in states and (self.noticed[dag_id] >= processes or not in_scheduler):
                self.finish(dag_id)
            return ended >= count

        self.until(ask, f"{count} ends of {dag_id}")

    def log(self, dag_id: str) -> str:
        """Return what the task's tries logged, on one line since some versions of Airflow wrap their lines."""
        paths = (self.running.home / "logs" / f"dag_id={dag_id}").glob("**/task_id=task/**/*.log*")
        return " ".join(" ".join(path.read_text(errors="replace") for path in sorted(paths)).split())

    def words(self, dag_id: str) -> list[str]:
        """Return what the callbacks of a scenario have noted."""
        path = self.running.home / f"{dag_id}.words"
        return path.read_text().split() if path.exists() else []

    def act(self, name: str, *arguments: Any, **options: Any) -> None:
        """Do what a user does; one thing at a time."""
        with self._acting:
            getattr(self.actions, name)(*arguments, **options)

    def command(self, *words: str) -> None:
        """Run Airflow's command line; its output is the log of the DAG that is named in its third word."""
        folder = self.running.home / "logs" / f"dag_id={words[2]}" / "task_id=task"
        folder.mkdir(parents=True)
        command = [self.running.python, "-m", "airflow", *words]
        # With JSON logs, `airflow tasks test` of 3.3.2 ends with an AttributeError of its own.
        environment = {**self.running.environment, "AIRFLOW__LOGGING__JSON_LOGS": "False"}
        with (folder / "command.log").open("w") as log:
            done = subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=HANG_SECONDS, check=False)
        if done.returncode:
            raise RuntimeError(f"airflow {' '.join(words)}: exit code {done.returncode}")
