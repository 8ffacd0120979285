"""Run DAGs through `dag.test()`: `dag_runner.py DAG_ID RESULT` runs one, and without arguments it serves requests.

A server imports Airflow and parses the DAGs once. It reads requests from stdin, one JSON object a line, and writes one
response a line; what Airflow prints meanwhile goes to the files that the request names.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

Result = dict[str, Any]


@cache
def dag_bag() -> Any:
    """Import the DAGs of the folder, as Airflow does.

    :raises RuntimeError: a file can't be imported
    """
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:
        from airflow.models.dagbag import DagBag  # type: ignore[no-redef]
    bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    if bag.import_errors:
        raise RuntimeError(json.dumps(bag.import_errors, indent=1, default=str))
    return bag


def pushed(ti: Any, key: str = "return_value") -> Any:
    """Return what a task pushed, by default as its result."""
    return ti.xcom_pull(task_ids=ti.task_id, map_indexes=ti.map_index, key=key)


def run_dag(dag_id: str) -> Result:
    """Run a DAG, and return its state and those of its tasks, their results and their links."""
    from airflow.providers.common.compat.sdk import AirflowTaskTimeout

    try:
        run = dag_bag().dags[dag_id].test()
    except AirflowTaskTimeout:
        # Airflow 2.11 fails the task and then raises this, which isn't an Exception there.
        traceback.print_exc()
        return {"state": "failed"}
    tasks = run.get_task_instances()
    names = {ti: ti.task_id if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]" for ti in tasks}
    return {
        "state": str(getattr(run.state, "value", run.state)),
        "tasks": {names[ti]: str(getattr(ti.state, "value", ti.state)) for ti in tasks},
        "returned": {names[ti]: pushed(ti) for ti in tasks},
        "links": {names[ti]: pushed(ti, "techflow_link") for ti in tasks},
    }


def run_command(*arguments: str) -> Result:
    """Run Airflow's command line, and return its exit code."""
    from airflow.__main__ import main

    with mock.patch.object(sys, "argv", ["airflow", *arguments]):
        try:
            main()  # type: ignore[no-untyped-call]
        except SystemExit as exit_:
            if isinstance(exit_.code, str):
                print(exit_.code, file=sys.stderr)  # noqa: T201  # as the interpreter does
            return {"returncode": exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)}
    return {"returncode": 0}


# Delays that only a scheduler, another worker or a server with a rate limit needs, by module.
DELAYS = {
    "client.reading": {"SHORTEST_INTERVAL_SECONDS": 0.1, "DEFAULT_POLL_INTERVAL_SECONDS": 0.1},
    "polling.shared": {"SHORTEST_WAIT_SECONDS": 0.05},
    "triggers.outcomes": {"ADMISSION_SECONDS": 1.0},
}


def skip_real_time() -> None:
    """Shorten the delays, in each module before those are imported that take them from it."""
    os.environ["AIRFLOW__TECHFLOW__FIRST_EVENT_DELAY"] = "0"
    for module, delays in DELAYS.items():
        for name, seconds in delays.items():
            mock.patch(f"techflow_provider.{module}.{name}", seconds).start()


def keep_api() -> None:
    """Make the API that `dag.test()` offers to tasks once, as Airflow 3.3 does: for each task, it takes seconds."""
    try:
        from airflow.sdk.execution_time import supervisor
    except ImportError:
        return  # Airflow 2's tasks use the database
    mock.patch.object(supervisor, "in_process_api_server", cache(supervisor.in_process_api_server)).start()


@contextmanager
def triggerer_speed(factor: float) -> Iterator[None]:
    """Let the deadlines of waiting triggers come so many times as fast."""
    from techflow_provider.triggers import outcomes, techflow

    def seconds_until(deadline: str | None) -> float | None:
        seconds = outcomes.seconds_until(deadline)
        return None if seconds is None else seconds / factor

    with mock.patch.object(techflow, "seconds_until", seconds_until):
        yield


def handle(request: dict[str, Any]) -> Result:
    """Carry out a request: a DAG's id or a command's arguments, and the connections."""
    for name in [name for name in os.environ if name.startswith("AIRFLOW_CONN_")]:
        del os.environ[name]
    os.environ.update(request["connections"])
    # Airflow 2.11's migration of its database, a request before this one, lets only warnings pass.
    logging.getLogger().setLevel(logging.INFO)
    for path, descriptor in ((request["stdout"], 1), (request["stderr"], 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    try:
        if "arguments" in request:
            return run_command(*request["arguments"])
        with triggerer_speed(request["triggerer_speed"]):
            return run_dag(request["dag_id"])
    except BaseException:  # noqa: BLE001  # 2.11's timeouts aren't Exceptions
        traceback.print_exc()
        return {"state": "raised", "returncode": 1}
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def serve() -> None:
    """Handle requests until stdin is closed."""
    with os.fdopen(os.dup(1), "w") as responses:
        os.dup2(2, 1)
        skip_real_time()
        keep_api()
        for line in sys.stdin:
            print(json.dumps(handle(json.loads(line)), default=str), file=responses, flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        serve()
    else:
        Path(sys.argv[2]).write_text(json.dumps(run_dag(sys.argv[1]), default=str))
