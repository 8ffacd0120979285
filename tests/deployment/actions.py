"""What users do to DAG runs and tasks, by Airflow 3's API or, before it, by a process that has imported Airflow once.

As a program it is that process: it reads one JSON list a line, the name of a function here and its arguments.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.deployment.airflow_deployment import Deployment


class Actions:
    """Does what users do in a running deployment, one thing after the other."""

    def __init__(self, running: Deployment) -> None:
        self._running = running
        self._process: subprocess.Popen[str] | None = None

    def trigger(self, dag_id: str) -> None:
        """Start the run `run`."""
        body = {"dag_run_id": "run", "logical_date": None}
        self._act("POST", f"dags/{dag_id}/dagRuns", body, "start_run", dag_id)

    def pause_dag(self, dag_id: str, *, paused: bool) -> None:
        """Pause a DAG, or end that."""
        self._act("PATCH", f"dags/{dag_id}", {"is_paused": paused}, "pause_dag", dag_id, paused)

    def mark(self, dag_id: str, state: str) -> None:
        """Mark the task as failed or success."""
        path = f"dags/{dag_id}/dagRuns/run/taskInstances/task"
        self._act("PATCH", path, {"new_state": state}, "mark_task", dag_id, state)

    def clear(self, dag_id: str) -> None:
        """Clear the task."""
        body = {"dry_run": False, "task_ids": ["task"], "dag_run_id": "run", "only_failed": False}
        path = f"dags/{dag_id}/clearTaskInstances"
        self._act("POST", path, {**body, "reset_dag_runs": True}, "clear_task", dag_id)

    def delete_run(self, dag_id: str) -> None:
        """Delete the run `run`."""
        self._act("DELETE", f"dags/{dag_id}/dagRuns/run", None, "delete_run", dag_id)

    def make_pool(self, name: str, *, include_deferred: bool) -> None:
        """Make a pool with one slot."""
        body = {"name": name, "slots": 1, "include_deferred": include_deferred}
        self._act("POST", "pools", body, "make_pool", name, include_deferred)

    def backfill(self, dag_id: str, first: datetime, last: datetime) -> None:
        """Run the dates from the first to the last one."""
        body = {"dag_id": dag_id, "from_date": first.isoformat(), "to_date": last.isoformat(), "max_active_runs": 10}
        self._act("POST", "backfills", body, "backfill_dag", dag_id, first.isoformat(), last.isoformat())

    def _act(self, method: str, path: str, body: dict[str, Any] | None, function: str, *arguments: object) -> None:
        if self._running.version >= (3,):
            with self._running.api() as client:
                response = client.request(method, f"/api/v2/{path}", json=body)
                if response.is_error:
                    raise RuntimeError(f"{method} {path}: {response.status_code} {response.text[:500]}")
            return
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([function, *arguments]) + "\n")
        process.stdin.flush()
        if (line := process.stdout.readline()) != "done\n":
            raise RuntimeError(f"{function}{arguments}: {line}; see {self._running.home / 'actions.log'}")

    def _start(self) -> subprocess.Popen[str]:
        with (self._running.home / "actions.log").open("ab") as log:
            return subprocess.Popen(
                [self._running.python, "-m", "tests.deployment.actions"],
                env=self._running.environment,
                cwd=self._running.home,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def close(self) -> None:
        """End the process; another one starts when it is needed."""
        if self._process is not None:
            self._process.communicate()
            self._process = None


def start_run(dag_id: str) -> None:
    """Start a run."""
    from airflow.api.common.trigger_dag import trigger_dag

    trigger_dag(dag_id, run_id="run")  # type: ignore[call-arg]  # as Airflow 2 has it


def pause_dag(dag_id: str, paused: bool) -> None:
    """Pause a DAG, or end that."""
    from airflow.models.dag import DagModel

    model: Any = DagModel.get_dagmodel(dag_id)
    model.set_is_paused(paused)


def mark_task(dag_id: str, state: str) -> None:
    """Mark the task."""
    from tests.deployment import mark

    mark.main(dag_id, "task", "run", state)


def clear_task(dag_id: str) -> None:
    """Clear the task."""
    from tests.deployment import mark

    mark.clear(dag_id, "task", "run")


def delete_run(dag_id: str) -> None:
    """Delete the run."""
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        for model in (TaskInstance, DagRun):
            session.query(model).filter_by(dag_id=dag_id, run_id="run").delete()


def make_pool(name: str, include_deferred: bool) -> None:
    """Make a pool with one slot."""
    from airflow.models.pool import Pool

    Pool.create_or_update_pool(name, 1, "", include_deferred=include_deferred)


def backfill_dag(dag_id: str, first: str, last: str) -> None:
    """Run dates, as Airflow 2's command does with an executor of its own; it is over when they are."""
    command = [sys.executable, "-m", "airflow", "dags", "backfill", dag_id, "-s", first, "-e", last]
    with Path("backfill.log").open("ab") as log:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def serve() -> None:
    """Do what is asked for until stdin is closed."""
    for line in sys.stdin:
        function, *arguments = json.loads(line)
        result = "done"
        try:
            globals()[function](*arguments)
        except Exception as error:  # noqa: BLE001  # the caller reports it
            result = f"{type(error).__name__}: {error}".replace("\n", " ")
        sys.__stdout__.write(result + "\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]


if __name__ == "__main__":
    # What Airflow prints isn't a result.
    sys.stdout = sys.stderr
    serve()
