"""An Airflow that is spread over hosts: Celery workers and triggerers with homes of their own, and state in a Redis."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from techflow_provider.sandbox import Sandbox
from tests.deployment.airflow_deployment import READY_SECONDS, Deployment, Program, deployment, free_port, until

# Beside the runner's drivers.
CELERY = ("apache-airflow-providers-celery", "redis")


@dataclass(frozen=True)
class Redis:
    """A Redis on a free port of the loopback, which loses nothing that it has answered when it is killed.

    :param program: its process
    :param port: its port
    """

    program: Program
    port: int

    @classmethod
    def at(cls, folder: Path) -> Redis:
        """Return one that is not running yet."""
        port = free_port()
        kept = ["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--dir", str(folder)]
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", *kept]
        return cls(Program("redis", command, {"PATH": os.environ["PATH"]}, folder / "redis.log"), port)

    def url(self, number: int) -> str:
        """Return the URL of one of its databases."""
        return f"redis://127.0.0.1:{self.port}/{number}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.program.start()
        until(self._answers, READY_SECONDS, "Redis")

    def _answers(self) -> bool:
        ping = ["redis-cli", "-p", str(self.port), "ping"]
        return b"PONG" in subprocess.run(ping, capture_output=True, check=False).stdout


@contextmanager
def celery_deployment(
    python: str,
    dags: Sequence[Path],
    folder: Path,
    *,
    sandbox: Sandbox,
    extra: Mapping[str, Any],
    environment: Mapping[str, str],
    workers: int = 2,
    slots: int = 4,
    triggerers: int = 2,
) -> Iterator[Deployment]:
    """Run an Airflow with the CeleryExecutor while the context lasts.

    :param python: an interpreter with Airflow 3, the runner's drivers and `CELERY`
    :param dags: files to put into the DAGs folder
    :param folder: where everything is put
    :param sandbox: the TechFlow
    :param extra: the connection's extra
    :param environment: further environment variables
    :param workers: Celery workers
    :param slots: tasks that one of them runs at a time
    :param triggerers: triggerers
    """
    redis = Redis.at(folder)
    redis.start()
    spread = {
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__CORE__PARALLELISM": "64",
        "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "500",
        "AIRFLOW__CELERY__BROKER_URL": redis.url(0),
        "AIRFLOW__CELERY__RESULT_BACKEND": redis.url(1),
        "AIRFLOW__TECHFLOW__STATE_URL": redis.url(2),
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(folder / "logs"),
        **environment,
    }
    try:
        with deployment(python, dags, sandbox=sandbox, environment=spread, extra=extra, folder=folder) as running:
            running.programs["redis"] = redis.program
            for number in range(1, workers + 1):
                _add(running, f"worker-{number}", ["celery", "worker", "-c", str(slots), "-H", f"worker-{number}"])
            for number in range(2, triggerers + 1):
                _add(running, f"triggerer-{number}", ["triggerer"])
            yield running
    finally:
        redis.program.stop()


def _add(running: Deployment, name: str, arguments: Sequence[str]) -> None:
    home = running.home / name
    home.mkdir()
    ports = ("WORKER_LOG_SERVER_PORT", "TRIGGER_LOG_SERVER_PORT")
    own = {f"AIRFLOW__LOGGING__{port}": str(free_port()) for port in ports}
    environment = {**running.environment, "AIRFLOW_HOME": str(home), **own}
    program = Program(name, [running.python, "-m", "airflow", *arguments], environment, running.home / f"{name}.log")
    running.programs[name] = program
    program.start()


def redis_port(running: Deployment) -> int:
    """Return the port of a deployment's Redis."""
    return int(running.environment["AIRFLOW__TECHFLOW__STATE_URL"].rpartition(":")[2].partition("/")[0])
