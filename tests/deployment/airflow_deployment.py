"""A real Airflow with its own processes: scheduler, triggerer, DAG processor and API server, in a home of its own.

The Airflow is that of a given interpreter (2.11 or 3.x), its database a private PostgreSQL, its executor the
LocalExecutor, and TechFlow a sandbox over a socket. Everything listens on the loopback alone, on free ports, and is
ended by its process id when the context is left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from techflow_provider.sandbox import Sandbox
from tests.deployment.hosts import PODS, host_environment, kill_all_pods, kill_pod, on_host
from tests.servers import READY_SECONDS, Postgres, Program, free_port, listens, until

ROOT = Path(__file__).resolve().parents[2]
KEY = "key-of-the-deployment-tests"
# What must be installed beside Airflow in an interpreter: drivers for PostgreSQL.
DRIVERS = ("psycopg2-binary", "asyncpg")
LOG_PORTS = ("AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT", "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT")
# For a deployment in which nothing is killed: on a busy machine a task that is well can be silent for long.
GENEROUS_TIMEOUTS = {
    "AIRFLOW__SCHEDULER__SCHEDULER_ZOMBIE_TASK_THRESHOLD": "600",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "600",
}


@dataclass(frozen=True)
class TaskState:
    """A task instance as the database has it.

    :param state: such as `running`; empty before it is scheduled
    :param tries: the number of the present or last try
    :param pid: the process of the task, while there is one
    """

    state: str
    tries: int
    pid: int | None


@dataclass
class Deployment:
    """The running Airflow; made by `deployment()`.

    :param python: the interpreter
    :param home: its AIRFLOW_HOME
    :param sandbox: the TechFlow that `techflow_default` points to
    :param programs: its processes by name: `scheduler`, `triggerer`, and on Airflow 3 `dag-processor`, `api-server`
    """

    python: str
    home: Path
    sandbox: Sandbox
    environment: dict[str, str]
    postgres: Postgres
    version: tuple[int, ...]
    programs: dict[str, Program] = field(default_factory=dict)
    own_homes: bool = False

    def start(self, name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Start a program of Airflow's, with a home of its own where the deployment is spread over hosts.

        :param environment: instead of the deployment's
        """
        environment = {**(environment or self.environment), **{port: str(free_port()) for port in LOG_PORTS}}
        command = [self.python, "-m", "airflow", *arguments]
        if self.own_homes:
            environment |= host_environment(self.home / "hosts" / name)
            command = on_host(command)
        self.programs[name] = Program(name, command, environment, self.home / f"{name}.log")
        self.programs[name].start()

    def airflow(self, *arguments: str) -> str:
        """Run Airflow's command line and return what it prints."""
        command = [self.python, "-m", "airflow", *arguments]
        done = subprocess.run(
            command, env=self.environment, cwd=self.home, capture_output=True, text=True, check=False, timeout=180
        )
        if done.returncode:
            raise RuntimeError(f"airflow {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout

    def query(self, statement: str) -> list[list[str]]:
        """Run a statement on Airflow's database."""
        return self.postgres.query("airflow", statement)

    def await_dags(self, *dag_ids: str) -> None:
        """Wait until DAGs are known to the scheduler."""
        listed = ", ".join(f"'{dag_id}'" for dag_id in dag_ids)
        count = f"SELECT count(*) FROM serialized_dag WHERE dag_id IN ({listed})"
        wanted = str(len(dag_ids))
        until(lambda: self.query(count)[0][0] == wanted, READY_SECONDS, f"the DAGs {listed}")

    def trigger(self, dag_id: str, run_id: str = "run", conf: Mapping[str, Any] | None = None) -> None:
        """Start a run of a DAG."""
        if self.version < (3,):
            self.airflow("dags", "trigger", dag_id, "--run-id", run_id, "--conf", json.dumps(conf or {}))
            return
        # The command takes many times as long.
        self._post(f"dags/{dag_id}/dagRuns", {"dag_run_id": run_id, "logical_date": None, "conf": conf or {}})

    def trigger_all(self, *dag_ids: str) -> None:
        """Start a run of each of several DAGs."""
        if self.version >= (3,):
            for dag_id in dag_ids:
                self.trigger(dag_id)
            return
        # One process, since each takes seconds to import Airflow.
        script = (
            "import sys; from airflow.api.common.trigger_dag import *; [trigger_dag(i, 'run') for i in sys.argv[1:]]"
        )
        command = [self.python, "-c", script, *dag_ids]
        subprocess.run(command, env=self.environment, cwd=self.home, capture_output=True, check=True, timeout=180)

    def _post(self, path: str, body: Mapping[str, Any]) -> None:
        """Ask Airflow 3's API."""
        with self.api() as client:
            client.post(f"/api/v2/{path}", json=body).raise_for_status()

    @contextmanager
    def api(self) -> Iterator[httpx.Client]:
        """Give a client of Airflow 3's API server that may do everything."""
        with httpx.Client(base_url=self.environment["AIRFLOW__API__BASE_URL"], timeout=60) as client:
            token = client.get("/auth/token").raise_for_status().json()["access_token"]
            client.headers["authorization"] = f"Bearer {token}"
            yield client

    def serve_webhooks(self) -> str:
        """Return where webhooks for `techflow_default` are received; starts the web server of Airflow 2."""
        port = int(self.environment["AIRFLOW__API__PORT"])
        if self.version < (3,):
            self.start("webserver", "webserver", "--hostname", "127.0.0.1", "-p", str(port), "-w", "1")
        return f"http://127.0.0.1:{port}/techflow/webhooks/techflow_default"

    def clear(self, dag_id: str, task_id: str, run_id: str = "run") -> None:
        """Clear a task, so that it runs again; before Airflow 3 in all runs."""
        if self.version < (3,):
            self.airflow("tasks", "clear", dag_id, "--task-regex", f"^{task_id}$", "--yes")
            return
        body = {"dry_run": False, "task_ids": [task_id], "dag_run_id": run_id, "only_failed": False}
        self._post(f"dags/{dag_id}/clearTaskInstances", {**body, "reset_dag_runs": True})

    def task(self, dag_id: str, task_id: str, run_id: str = "run", map_index: int = -1) -> TaskState:
        """Return a task instance; without a state as long as there is none."""
        where = f"dag_id = '{dag_id}' AND task_id = '{task_id}' AND run_id = '{run_id}' AND map_index = {map_index}"
        rows = self.query(f"SELECT state, try_number, pid FROM task_instance WHERE {where}")
        if not rows:
            return TaskState("", 0, None)
        state, tries, pid = rows[0]
        return TaskState(state, int(tries or 0), int(pid) if pid else None)

    def await_task(
        self, dag_id: str, task_id: str, *states: str, seconds: float = 180.0, run_id: str = "run"
    ) -> TaskState:
        """Wait until a task is in one of some states.

        :raises TimeoutError: it was not in time; the message names its state
        """

        def ask() -> TaskState | None:
            present = self.task(dag_id, task_id, run_id)
            return present if present.state in states else None

        try:
            return until(ask, seconds, f"{dag_id}.{task_id} in {' or '.join(states)}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it is {self.task(dag_id, task_id, run_id)}") from None

    def xcom(self, dag_id: str, task_id: str, key: str = "return_value", run_id: str = "run") -> Any:
        """Return what a task pushed, or None."""
        column = "value" if self.version >= (3,) else "convert_from(value, 'UTF8')"
        where = f"dag_id = '{dag_id}' AND task_id = '{task_id}' AND run_id = '{run_id}' AND key = '{key}'"
        rows = self.query(f"SELECT {column} FROM xcom WHERE {where}")
        value = json.loads(rows[0][0]) if rows else None
        # Airflow 3 keeps some values as JSON in a JSON text.
        return json.loads(value) if isinstance(value, str) and value[:1] in ("{", "[", '"') else value

    def log(self, dag_id: str, task_id: str, tries: int | None = None, run_id: str = "run") -> str:
        """Return what a task's tries logged, or one of them."""
        folder = self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        pattern = "attempt=*.log*" if tries is None else f"attempt={tries}.log*"
        return "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob(pattern)))

    def kill_task(self, dag_id: str, task_id: str, run_id: str = "run", *, alone: bool = True) -> int:
        """Kill a task's process with SIGKILL, or all that runs in its pod, and return its process id.

        :param alone: whether the process that supervises it stays
        """
        if PODS in self.environment:
            return kill_pod(Path(self.environment[PODS]), dag_id, task_id)
        pid = until(lambda: self.task(dag_id, task_id, run_id).pid, 30, f"a process of {dag_id}.{task_id}")
        if not alone:
            parent = subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], check=True, capture_output=True, text=True)
            os.kill(int(parent.stdout), signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        return pid


@contextmanager
def deployment(
    python: str,
    dags: Sequence[Path],
    *,
    sandbox: Sandbox | None = None,
    environment: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
    others: Mapping[str, Mapping[str, Any]] | None = None,
    folder: Path | None = None,
    own_homes: bool = False,
) -> Iterator[Deployment]:
    """Run an Airflow while the context lasts.

    :param python: an interpreter with an Airflow from 2.11 and the `DRIVERS`; it imports the package of this checkout
    :param dags: files to put into the DAGs folder
    :param sandbox: the TechFlow; by default one whose executions take 2 s
    :param environment: further environment variables, such as `AIRFLOW__TECHFLOW__POLL_INTERVAL`
    :param extra: the connection's extra; by default so much budget that nothing waits for it
    :param others: further connections to the sandbox by id, each with what differs, such as `password` or `extra`
    :param folder: where everything is put; by default a new temporary folder, removed at the end
    :param own_homes: whether each program has a home and a host name of its own, as on hosts of its own; only DAGs and
        the logs of tasks are in one place
    """
    sandbox = sandbox or Sandbox(api_keys=(KEY,), limit=100_000, execution_seconds=2.0)
    with ExitStack() as stack:
        home = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="airflow-deployment-")))
        # The server of the database runs as another user and must get through.
        home.chmod(0o755)
        postgres = stack.enter_context(Postgres(home / "postgres"))
        url = stack.enter_context(sandbox.serve())
        roomy = extra or {"requests_per_minute": 10_000, "burst": 1000}
        connection = {"conn_type": "techflow", "host": url, "password": sandbox.api_keys[0], "extra": roomy}
        connections = {"techflow_default": {}, **(others or {})}
        version = _airflow_version(python)
        variables = {
            **_environment(home, postgres.port),
            **{f"AIRFLOW_CONN_{name.upper()}": json.dumps({**connection, **own}) for name, own in connections.items()},
            **({"AIRFLOW__CORE__HOSTNAME_CALLABLE": "socket.gethostname"} if own_homes else {}),
            **(environment or {}),
        }
        (home / "dags").mkdir()
        for path in dags:
            shutil.copy(path, home / "dags")
        running = Deployment(python, home, sandbox, variables, postgres, version, own_homes=own_homes)
        running.airflow("db", "migrate")
        stack.callback(_stop_all, running)
        start_all(running)
        yield running


def _airflow_version(python: str) -> tuple[int, ...]:
    script = "from importlib.metadata import version; print(version('apache-airflow'))"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    return tuple(int(part) for part in done.stdout.strip().split(".")[:3])


def _environment(home: Path, postgres_port: int) -> dict[str, str]:
    place = f"airflow@127.0.0.1:{postgres_port}/airflow"
    api_port = free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "16",
        "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "16",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__CORE__FERNET_KEY": "",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{api_port}/execution/",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{place}",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": f"postgresql+asyncpg://{place}",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(api_port),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{api_port}",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": "deployment",
        # Airflow 3.0 hands on None without one, which PyJWT refuses.
        "AIRFLOW__API_AUTH__JWT_ISSUER": "deployment",
        "AIRFLOW__API_AUTH__JWT_SECRET": "a secret of the deployment tests that is of no use anywhere else",
        "AIRFLOW__WEBSERVER__SECRET_KEY": "deployment",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
        "AIRFLOW__METRICS__TIMER_UNIT_CONSISTENCY": "True",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
        "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
        # A killed worker is noticed soon.
        "AIRFLOW__SCHEDULER__SCHEDULER_ZOMBIE_TASK_THRESHOLD": "10",
        "AIRFLOW__SCHEDULER__ZOMBIE_DETECTION_INTERVAL": "2",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "10",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
        "AIRFLOW__SCHEDULER__JOB_HEARTBEAT_SEC": "2",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "2",
        "AIRFLOW__SCHEDULER__LOCAL_TASK_JOB_HEARTBEAT_SEC": "2",
        "AIRFLOW__SCHEDULER__PARSING_PROCESSES": "1",
        "AIRFLOW__SCHEDULER__MIN_FILE_PROCESS_INTERVAL": "300",
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "300",
        "AIRFLOW__TECHFLOW__POLL_INTERVAL": "0.5",
    }


def start_all(running: Deployment) -> None:
    """Start the programs of an Airflow, and wait for its API server."""
    names = ["scheduler", "triggerer"]
    if running.version >= (3,):
        names = ["api-server", *names, "dag-processor"]
    for name in names:
        running.start(name, name)
    if "api-server" in names:
        port = int(running.environment["AIRFLOW__API__PORT"])
        until(lambda: listens(port), READY_SECONDS, "the API server")


def _stop_all(running: Deployment) -> None:
    for program in reversed(running.programs.values()):
        program.stop()
    if PODS in running.environment:
        kill_all_pods(Path(running.environment[PODS]))
