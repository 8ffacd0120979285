"""An executor that runs each attempt of a task as Kubernetes does: in a fresh process on what looks like a new host.

The process has an empty home, an AIRFLOW_HOME and a folder for temporary files of its own, and a host name and process
ids of its own where this machine has namespaces. On Airflow 3 it knows no database, only the URL of the execution API.
DAGs and logs are in one place, as with a volume or remote logging.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.executors.base_executor import BaseExecutor

from tests.deployment.hosts import CONTAINER, PID, PODS, host_environment, on_host, pod_name
from tests.servers import signal_group

DATABASE = "AIRFLOW__DATABASE__"


class PodExecutor(BaseExecutor):
    """Starts a process for each task, in a folder of its own below `DEPLOYMENT_PODS`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pods: dict[Any, subprocess.Popen[bytes]] = {}
        self._started = 0

    def execute_async(self, key: Any, command: Any, queue: Any = None, executor_config: Any = None) -> None:
        """Start a task of Airflow 2."""
        self._start(key, [sys.executable, "-m", *command], os.environ)

    def queue_workload(self, workload: Any, session: Any = None) -> None:
        """Queue a task of Airflow 3."""
        self.queued_tasks[workload.ti.key] = workload

    def _process_workloads(self, workload_items: Any) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(DATABASE)}
        for workload in workload_items:
            key = workload.ti.key
            del self.queued_tasks[key]
            self.running.add(key)
            program = [sys.executable, "-m", "airflow.sdk.execution_time.execute_workload"]
            self._start(key, [*program, "--json-string", workload.model_dump_json()], kept)

    def _start(self, key: Any, command: Sequence[str], environment: Any) -> None:
        self._started += 1
        name = pod_name(key.dag_id, key.task_id, key.map_index)
        home = Path(os.environ[PODS]) / f"{name}.{key.try_number}-{self._started}"
        variables = {**environment, **host_environment(home)}
        with (home / "output.log").open("ab") as output:
            pod = subprocess.Popen(
                on_host(command, *CONTAINER),
                env=variables,
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        (home / PID).write_text(str(pod.pid))
        self._pods[key] = pod

    def sync(self) -> None:
        """Report the tasks whose processes have ended."""
        for key, pod in list(self._pods.items()):
            code = pod.poll()
            if code is not None:
                del self._pods[key]
                (self.fail if code else self.success)(key)

    def end(self) -> None:
        """Kill all that runs."""
        self.terminate()

    def terminate(self) -> None:
        """Kill all that runs."""
        for pod in self._pods.values():
            signal_group(pod.pid, signal.SIGKILL)
            pod.wait()
