"""An Airflow that is spread over hosts: Celery workers and triggerers with homes of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from techflow_provider.sandbox import Sandbox
from tests.deployment.airflow_deployment import Deployment, deployment
from tests.servers import Redis

# Beside the runner's drivers.
CELERY = ("apache-airflow-providers-celery", "redis")


@contextmanager
def celery_deployment(
    python: str,
    dags: Sequence[Path],
    folder: Path,
    *,
    sandbox: Sandbox,
    extra: Mapping[str, Any],
    environment: Mapping[str, str],
    others: Mapping[str, Mapping[str, Any]] | None = None,
    workers: int = 2,
    slots: int = 4,
    triggerers: int = 2,
    state_in_redis: bool = False,
) -> Iterator[Deployment]:
    """Run an Airflow with the CeleryExecutor while the context lasts.

    :param python: an interpreter with Airflow 3, the runner's drivers and `CELERY`
    :param dags: files to put into the DAGs folder
    :param folder: where everything is put
    :param sandbox: the TechFlow
    :param extra: the connection's extra
    :param environment: further environment variables
    :param others: further connections
    :param workers: Celery workers
    :param slots: tasks that one of them runs at a time
    :param triggerers: triggerers
    :param state_in_redis: whether `state_url` is set to the broker's Redis
    """
    with Redis.running(folder) as redis:
        spread = {
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CORE__PARALLELISM": "64",
            "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "500",
            "AIRFLOW__CELERY__BROKER_URL": redis.url(0),
            "AIRFLOW__CELERY__RESULT_BACKEND": redis.url(1),
            **({"AIRFLOW__TECHFLOW__STATE_URL": redis.url(2)} if state_in_redis else {}),
            **environment,
        }
        settings: dict[str, Any] = {"environment": spread, "extra": extra, "others": others, "folder": folder}
        with deployment(python, dags, sandbox=sandbox, **settings, own_homes=True) as running:
            running.programs["redis"] = redis.program
            for number in range(1, workers + 1):
                running.start(f"worker-{number}", "celery", "worker", "-c", str(slots), "-H", f"worker-{number}")
            for number in range(2, triggerers + 1):
                running.start(f"triggerer-{number}", "triggerer")
            yield running
