"""An Airflow whose tasks run on edge workers, which know no database and reach nothing but its API server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.deployment.airflow_deployment import Deployment, deployment
from tests.deployment.pods import DATABASE

EXECUTION_API = "AIRFLOW__CORE__EXECUTION_API_SERVER_URL"


@contextmanager
def edge_deployment(
    python: str,
    dags: Sequence[Path],
    *,
    environment: Mapping[str, str],
    folder: Path,
    workers: int,
    slots: int,
    **settings: Any,
) -> Iterator[Deployment]:
    """Run an Airflow with the EdgeExecutor while the context lasts.

    :param python: an interpreter with Airflow 3, the runner's drivers and `apache-airflow-providers-edge3`
    :param dags: files to put into the DAGs folder
    :param environment: further environment variables
    :param folder: where everything is put
    :param workers: edge workers
    :param slots: tasks that one of them runs at a time
    :param settings: further arguments of `deployment()`
    """
    edge = {
        "AIRFLOW__CORE__EXECUTOR": "airflow.providers.edge3.executors.EdgeExecutor",
        "AIRFLOW__CORE__PARALLELISM": "64",
        "AIRFLOW__EDGE__API_ENABLED": "True",
        "AIRFLOW__EDGE__JOB_POLL_INTERVAL": "1",
        # A worker that is lost is missed after five times as long.
        "AIRFLOW__EDGE__HEARTBEAT_INTERVAL": "3",
        **environment,
    }
    with deployment(python, dags, environment=edge, folder=folder, own_homes=True, **settings) as running:
        for number in range(1, workers + 1):
            name = f"worker-{number}"
            command = ("edge", "worker", "-c", str(slots), "-H", name)
            running.start(name, *command, environment=_worker_environment(running, name))
        yield running


def _worker_environment(running: Deployment, name: str) -> dict[str, str]:
    """Return what a worker knows: the API server's URL, and how to prove that it may use it."""
    known = {key: value for key, value in running.environment.items() if not key.startswith((DATABASE, EXECUTION_API))}
    return {
        **known,
        "AIRFLOW__EDGE__API_URL": f"{running.environment['AIRFLOW__API__BASE_URL']}/edge_worker/v1/rpcapi",
        # The API server writes what the worker sends it to the same place.
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(running.home / "hosts" / name / "logs"),
    }
