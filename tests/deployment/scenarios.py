"""What happens to tasks and their executions when people and machines are rough: a table, from a real Airflow.

One deployment with PostgreSQL, a scheduler, a triggerer, an API server or web server and the LocalExecutor runs a DAG
for each scenario, all at once; a few scenarios that concern the whole deployment come one after the other. A scenario
holds when its task ends in the expected state, its log says what it should, and TechFlow has the expected number of
executions and of requests to start one.

    python tests/deployment/scenarios.py [--quick] [--only NAME...] [--rows FILE]
    python tests/deployment/scenarios.py --table FILE
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from techflow_provider.sandbox import Sandbox  # noqa: E402  # the checkout comes first
from tests.deployment.airflow_deployment import GENEROUS_TIMEOUTS, Deployment, deployment, start_all  # noqa: E402
from tests.deployment.metrics import Collector, Metrics  # noqa: E402
from tests.deployment.world import ENDED, World  # noqa: E402

DAGS = ROOT / "tests" / "deployment" / "dags" / "scenarios.py"
# The commit that was released as version 0.1.0.
FIRST_RELEASE = "0da7eb4"
MARKS = ("cleared", "success", "failed")
KEY, CHANGED_KEYS = "key-of-the-scenarios", ("key-before-the-change", "key-after-the-change")
KEYS = (KEY, *CHANGED_KEYS, *(f"key-of-{way}" for way in (*MARKS, "pace")))
DATES = 10
Act = Callable[[World, str], None]


@dataclass(frozen=True)
class Scenario:
    """What is done to a task, and what is to come of it.

    :param act: does it, and lets the task end; raises where something else happens
    :param state: in which all instances of the task end
    :param log: a pattern that the task's log has
    :param executions: how many there are at the end, each started by one request
    :param quick: whether it belongs to the quick part
    :param triggered: whether a run is started
    """

    act: Act
    state: str = "success"
    log: str = ""
    executions: int = 1
    quick: bool = False
    triggered: bool = True


def finish(world: World, name: str) -> None:
    """Let a deferred task end."""
    world.await_deferred(name)
    world.finish(name)


def fail(world: World, name: str) -> None:
    """Let the execution of a deferred task fail."""
    world.await_deferred(name)
    world.finish(name, "failed")


def fail_once(world: World, name: str) -> None:
    """Let the first execution of a task fail, and the next one complete."""
    fail(world, name)
    world.await_execution(name, 2)
    world.await_deferred(name, processes=3)
    world.finish(name)


def pause_dag(world: World, name: str) -> None:
    """Pause the DAG of a deferred task, and let the execution end; the task ends when the pause of the DAG does."""
    world.await_deferred(name)
    world.act("pause_dag", name, paused=True)
    world.finish(name)
    world.await_state(name, "scheduled", "success")
    world.act("pause_dag", name, paused=False)


def marked(state: str, before: str) -> Act:
    """Return what marks a task when it is in a state; its execution ends later."""

    def act(world: World, name: str) -> None:
        world.await_state(name, before)
        if not name.startswith("admission"):
            world.await_kept(name)
        world.act("mark", name, state)
        world.await_state(name, state)
        if before == "running":
            # The task's process hears of it with a heartbeat, before which its execution must not end.
            world.await_log(name, KEEPS_RUNNING)
        world.finish(name)

    return act


def clear(world: World, name: str) -> None:
    """Clear a task that waits for its execution."""
    is_deferred = name.startswith("deferred")
    world.await_log(name, " was started: ")
    if is_deferred:
        world.await_deferred(name)
    world.act("clear", name)
    world.await_log(name, " was re-attached: ")
    if is_deferred:
        world.await_deferred(name, processes=2)
    world.finish(name)


def clear_admission(world: World, name: str) -> None:
    """Clear a task that waits for its slot, so that it waits for one again."""
    world.await_state(name, "deferred")
    before = world.of(name)[0].tries
    world.act("clear", name)
    world.until(lambda: world.of(name)[0].tries > before, "a second attempt")
    world.await_execution(name)


def sigterm(world: World, name: str) -> None:
    """End a task that waits for its execution, as a drained node does; its retry waits for the same execution."""
    world.await_kept(name)
    pid = world.of(name)[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    world.await_log(name, KEEPS_RUNNING)
    if world.running.version >= (3,):
        # It lets the task run until then. An earlier one ends it, and must not be killed while it stores its state.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    world.until(lambda: world.of(name)[0].tries > 1, "a second attempt")
    world.await_log(name, " was re-attached: ")
    world.finish(name)


def mapped(most: int | None = None) -> Act:
    """Return what ends the executions of mapped tasks, of which so many may be deferred at once, if that is known."""

    def act(world: World, name: str) -> None:
        if most == 3:
            world.await_deferred(name, count=3)
        world.finish_all(name, count=3)
        if most is not None and world.most_deferred[name] != most:
            raise RuntimeError(f"{world.most_deferred[name]} were deferred at once instead of {most}")

    return act


def callbacks(*words: str, act: Act) -> Act:
    """Return what expects that callbacks are called once each."""

    def check(world: World, name: str) -> None:
        act(world, name)
        world.until(lambda: len(world.words(name)) >= len(words), f"callbacks {words}, not {world.words(name)}")
        world.await_state(name, *ENDED)
        if tuple(world.words(name)) != words:
            raise RuntimeError(f"callbacks {world.words(name)} instead of {words}")

    return check


def time_out(world: World, name: str) -> None:
    """Wait for the end of a task whose execution runs on."""
    world.await_deferred(name)
    world.await_state(name, "failed", "skipped")


def setup_teardown(world: World, name: str) -> None:
    """Let the execution between setup and teardown fail: the workflow is deleted nevertheless."""
    world.await_state(name, "deferred")
    world.until(lambda: world.noticed[name] >= 2, "ended processes")
    (workflow,) = [str(each["id"]) for each in world.sandbox.workflows if each["name"] == name and each["id"] != name]
    world.finish(workflow, "failed")
    world.await_state(name, "success", task_id="delete")
    if any(each["id"] == workflow for each in world.sandbox.workflows):
        raise RuntimeError("the workflow is still there")


def sensor_modes(world: World, name: str) -> None:
    """Let sensors of all modes see the end of one execution."""
    for task_id, state in {"poke": "running", "reschedule": "up_for_reschedule", "deferrable": "deferred"}.items():
        world.await_state(name, state, task_id=task_id)
    world.finish(name)
    for task_id in ("poke", "reschedule", "deferrable"):
        world.await_state(name, "success", task_id=task_id)


def catch_up(world: World, name: str) -> None:
    """Let a DAG catch up with its dates."""
    count = DATES if name == "catch_up" else 3
    world.act("pause_dag", name, paused=False)
    if name == "catch_up":
        world.await_deferred(name, count=count)
    world.finish_all(name, count)
    if name == "depends_on_past" and world.most_deferred[name] != 1:
        raise RuntimeError(f"{world.most_deferred[name]} dates were deferred at once")


def backfill(world: World, name: str) -> None:
    """Run dates of the past."""
    first = datetime(2026, 1, 1, tzinfo=UTC)
    world.act("pause_dag", name, paused=False)
    world.act("backfill", name, first, first + timedelta(days=DATES - 1))
    # Airflow itself runs the latest date.
    world.finish_all(name, DATES + 1, in_scheduler=world.running.version >= (3,))


def test_task(world: World, name: str) -> None:
    """Run a task with `airflow tasks test`."""
    world.command("tasks", "test", name, "task", "2026-01-01")


def test_dag(world: World, name: str) -> None:
    """Run a DAG with `airflow dags test`, which waits for triggers itself."""
    ended = threading.Event()

    def finish_when_started() -> None:
        while not ended.wait(0.5):
            world.finish(name)

    threading.Thread(target=finish_when_started, daemon=True).start()
    try:
        world.command("dags", "test", name, "2026-01-01")
    finally:
        ended.set()


def change_dag(world: World, name: str) -> None:
    """Change the DAG of a deferred task; it resumes with the code of the new version."""
    world.await_deferred(name)
    path = world.running.home / "dags" / DAGS.name
    changed = path.read_text().replace(f'"{name}": DEFER', f'"{name}": {{**DEFER, "doc_md": "the changed task"}}')
    path.write_text(changed)
    serialized = f"SELECT count(*) FROM serialized_dag WHERE dag_id = '{name}' AND data::text LIKE '%the changed task%'"
    world.until(lambda: world.running.query(serialized)[0][0] != "0", "the changed DAG")
    world.finish(name)


def change_connection(world: World, name: str) -> None:
    """Replace the API key of the connection that deferred tasks use."""
    world.await_deferred(name)
    world.await_log(name, "Waiting for execution")
    before = world.sandbox.count(path="/executions")
    world.until(lambda: world.sandbox.count(path="/executions") >= before + 3, "polls with the key before the change")
    write_connections(world.running, CHANGED_KEYS[1])
    world.sandbox.api_keys = tuple(key for key in KEYS if key != CHANGED_KEYS[0])
    logs = list(world.running.home.glob("triggerer*.log"))
    world.until(lambda: any("polling continues" in path.read_text() for path in logs), "the new key in the triggerer")
    world.finish(name)


def restart_triggerer(world: World, name: str) -> None:
    """Restart the triggerer, and end the execution while it is away."""
    world.await_deferred(name)
    world.running.programs["triggerer"].stop()
    world.finish(name)
    world.running.programs["triggerer"].start()


def two_triggerers(world: World, name: str) -> None:
    """Let a second triggerer take over from one that is killed."""
    world.await_deferred(name)
    world.running.start("triggerer-2", "triggerer")
    count = "SELECT count(*) FROM job WHERE job_type = 'TriggererJob' AND state = 'running'"
    jobs = int(world.running.query(count)[0][0])
    world.until(lambda: int(world.running.query(count)[0][0]) > jobs, "a second triggerer")
    world.running.programs["triggerer"].kill()
    world.finish(name)


def upgrade(world: World, name: str) -> None:
    """Upgrade from version 0.1.0, which has deferred a task."""
    world.await_deferred(name)
    for program in reversed(world.running.programs.values()):
        program.stop()
    world.finish(name)
    world.running.environment["PYTHONPATH"] = str(ROOT)
    world.actions.close()
    start_all(world.running)


def run_without_assertions(world: World, name: str) -> None:
    """Run with `python -O`."""
    callbacks("optimize=1", act=finish)(world, name)


def log_json(world: World, name: str) -> None:
    """Let every process log JSON: each line of the task is an object."""
    finish(world, name)
    world.await_log(name, "completed")
    paths = (world.running.home / "logs" / f"dag_id={name}").glob("**/*.log*")
    lines = [line for path in paths for line in path.read_text().splitlines()]
    if not all(isinstance(json.loads(line), dict) for line in lines):
        raise RuntimeError("a line of the log is not an object")


def sends_metrics(world: World, name: str) -> None:
    """Send metrics of requests and of waits for the budget, which the polls of this connection have."""
    world.await_deferred(name)
    for wanted in ("techflow.requests", "techflow.budget.wait"):
        world.until(partial(world.metrics.names.__contains__, wanted), f"{wanted} among the metrics")
    world.finish(name)


def emit_lineage(world: World, name: str) -> None:
    """Write OpenLineage's events to a file: the task's last one has the execution."""
    finish(world, name)
    path = world.running.home / LINEAGE
    (execution,) = world.executions(name)

    def is_complete() -> bool:
        lines = path.read_text().splitlines() if path.exists() else []
        return any(f"{name}.task" in line and "COMPLETE" in line and execution.id in line for line in lines)

    world.until(is_complete, "an event that has the execution")


STARTED, FAILED = r"ended with status 'completed'|Execution exec_\w+ ended", "ended with status 'failed'"
KEEPS_RUNNING = "keeps running"
SLOT = "Waiting in the triggerer for a slot"
SCENARIOS: dict[str, Scenario] = {
    "deferred_cleared": Scenario(clear, log="was re-attached", quick=True),
    "deferred_success": Scenario(marked("success", "deferred"), quick=True),
    "deferred_failed": Scenario(marked("failed", "deferred"), "failed", quick=True),
    "poking_cleared": Scenario(clear, log="was re-attached"),
    "poking_success": Scenario(marked("success", "running"), log=KEEPS_RUNNING),
    "poking_failed": Scenario(marked("failed", "running"), "failed", log=KEEPS_RUNNING, quick=True),
    "admission_cleared": Scenario(clear_admission, log=SLOT),
    "admission_success": Scenario(marked("success", "deferred"), log=SLOT, executions=0),
    "admission_failed": Scenario(marked("failed", "deferred"), "failed", log=SLOT, executions=0),
    "paused_dag": Scenario(pause_dag),
    "sigterm": Scenario(sigterm, log="was re-attached", quick=True),
    "pool": Scenario(mapped(3), executions=3, quick=True),
    "pool_with_deferred": Scenario(mapped(1), executions=3, quick=True),
    "max_active_tis": Scenario(mapped(), executions=3),
    "catch_up": Scenario(catch_up, executions=DATES, triggered=False),
    "depends_on_past": Scenario(catch_up, executions=3, triggered=False),
    "tasks_test": Scenario(test_task, triggered=False),
    "dags_test": Scenario(test_dag, quick=True, triggered=False),
    "setup_teardown": Scenario(setup_teardown, "failed", log=FAILED, executions=0),
    "sensor_modes": Scenario(sensor_modes),
    "callbacks_success": Scenario(callbacks("success", act=finish), quick=True),
    "callbacks_failure": Scenario(callbacks("failure", act=fail), "failed", log=FAILED, quick=True),
    "callbacks_retry": Scenario(callbacks("retry", "success", act=fail_once), log=FAILED, executions=2, quick=True),
    "execution_timeout": Scenario(time_out, "failed", log="AirflowTaskTimeout|TimeoutError|timed out"),
    "dag_changed": Scenario(change_dag),
    "secrets_file": Scenario(finish, quick=True),
    "statsd": Scenario(sends_metrics, quick=True),
    "opentelemetry": Scenario(sends_metrics),
    "openlineage": Scenario(emit_lineage),
    "json_logs": Scenario(log_json),
    "python_optimized": Scenario(run_without_assertions),
    "home_with_spaces": Scenario(finish),
    "secrets_custom": Scenario(finish),
}
# These concern all tasks, so they come one after the other, when the others have begun.
GLOBAL: dict[str, Scenario] = {
    "restart": Scenario(restart_triggerer, quick=True),
    "two_triggerers": Scenario(two_triggerers),
    "connection_changed": Scenario(change_connection),
}
# These have to do with times or with many runs, so they come when nothing else keeps the scheduler busy.
AFTER: dict[str, Scenario] = {
    "backfill": Scenario(backfill, executions=DATES + 1, triggered=False),
    "dagrun_timeout": Scenario(time_out, "skipped"),
}
BEFORE: dict[str, Scenario] = {"upgrade": Scenario(upgrade, quick=True)}
# What a deployment is set up with for these.
SETTINGS = {
    "dag_changed": {
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
        "AIRFLOW__SCHEDULER__MIN_FILE_PROCESS_INTERVAL": "10",
    },
    "json_logs": {"AIRFLOW__LOGGING__JSON_LOGS": "True"},
    "python_optimized": {"PYTHONOPTIMIZE": "1"},
}
ALL = {**BEFORE, **SCENARIOS, **GLOBAL, **AFTER}


@dataclass
class Row:
    """What came of a scenario."""

    name: str
    airflow: str = field(default_factory=partial(version, "apache-airflow"))
    state: str = ""
    executions: int = 0
    requests: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def cells(self) -> tuple[str, ...]:
        """Return it as the table shows it."""
        result = f"**{'; '.join(self.faults)}**" if self.faults else "holds"
        name = self.name.replace("_", " ")
        return (name, self.state, str(self.executions), str(self.requests), f"{self.seconds:.0f}", result)


LINEAGE = "lineage.jsonl"
HEADS = ("scenario", "state", "executions", "requests to start", "seconds", "result")


def run(world: World, name: str) -> Row:
    """Run a scenario and return what came of it."""
    scenario, row, began = ALL[name], Row(name), time.monotonic()
    try:
        if scenario.triggered and not world.of(name):
            world.act("trigger", name)
        scenario.act(world, name)
        if scenario.triggered:
            world.until(lambda: world.of(name) and all(each in ENDED for each in world.states(name)), "the end")
        world.until(lambda: re.search(scenario.log, world.log(name)), f"{scenario.log!r} in the log", 30)
    except (TimeoutError, RuntimeError, AssertionError, IndexError) as error:
        row.faults.append(str(error) or repr(error))
    # `airflow tasks test` may leave none.
    states = sorted({*world.states(name)} - {""})
    row.state = ", ".join(states)
    row.executions = len(world.executions(name))
    row.requests = world.sandbox.count(method="POST", path=f"/workflows/{name}/execute")
    row.seconds = time.monotonic() - began
    if (scenario.triggered or states) and states != [scenario.state]:
        row.faults.append(f"{row.state or 'no task'} instead of {scenario.state}")
    if (row.executions, row.requests) != (scenario.executions, scenario.executions):
        row.faults.append(f"{row.executions} executions and {row.requests} requests instead of {scenario.executions}")
    say(f"  {name}: {'; '.join(row.faults) or 'holds'}, {row.seconds:.0f} s")
    return row


def write_connections(running: Deployment, key: str) -> None:
    """Write the file of Airflow's local secrets backend: the default connection with an API key."""
    made = {**json.loads(running.environment["AIRFLOW_CONN_TECHFLOW_DEFAULT"]), "password": key}
    path = running.home / "connections.json"
    path.with_suffix(".new").write_text(json.dumps({"techflow_file": made}))
    path.with_suffix(".new").replace(path)


@contextmanager
def world_of(names: Sequence[str], folder: Path) -> Iterator[World]:
    """Run the deployment that the scenarios share."""
    sandbox = Sandbox(api_keys=KEYS, limit=100_000, execution_seconds=float("inf"))
    for name in ALL:
        sandbox.add_workflow(name, id=name)
    sandbox.plan("tasks_test", seconds=1.0)
    slow = {"requests_per_minute": 2, "burst": 1}
    others = {f"techflow_slow_{way}": {"password": f"key-of-{way}", "extra": slow} for way in MARKS}
    # It polls more often than that.
    others["techflow_paced"] = {"password": "key-of-pace", "extra": {"requests_per_minute": 60, "burst": 1}}
    environment = {
        **GENEROUS_TIMEOUTS,
        "SCENARIOS_FOLDER": str(folder),
        "AIRFLOW__TECHFLOW__HISTORY_LAG": "2",
        "AIRFLOW__CORE__PARALLELISM": "8",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
        "AIRFLOW__SECRETS__BACKEND": "tests.deployment.secrets_backend.OwnBackend",
        "AIRFLOW__SECRETS__BACKEND_KWARGS": json.dumps({"connections_file_path": str(folder / "connections.json")}),
    }
    metrics = Collector() if "opentelemetry" in names else Metrics()
    environment |= metrics.environment
    for name in names:
        environment |= SETTINGS.get(name, {})
    if "openlineage" in names:
        transport = {"type": "file", "log_file_path": str(folder / LINEAGE), "append": True}
        environment["AIRFLOW__OPENLINEAGE__TRANSPORT"] = json.dumps(transport)
    if "upgrade" in names:
        environment["PYTHONPATH"] = os.pathsep.join((str(install_first_release(folder)), str(ROOT)))

    (folder / "connections.json").write_text("{}")
    settings: Mapping[str, Any] = {"sandbox": sandbox, "environment": environment, "others": others, "folder": folder}
    with deployment(sys.executable, [DAGS], **settings) as running:
        write_connections(running, CHANGED_KEYS[0])
        running.await_dags(*names)
        world = World(running, metrics)
        try:
            yield world
        finally:
            world.actions.close()


def install_first_release(folder: Path) -> Path:
    """Build the first release from the history and return a folder with its package and metadata."""
    source, target = folder / "first-release", folder / "first-release-installed"
    source.mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", FIRST_RELEASE], capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True)
    uv = str(ROOT / ".cache" / "environments" / "uv" / "bin" / "uv")
    subprocess.run([uv, "build", "--quiet", "--wheel", "--out-dir", str(source / "dist"), str(source)], check=True)
    wheel = next((source / "dist").glob("*.whl"))
    install = ["pip", "install", "--quiet", "--no-deps", "-p", sys.executable, "--target", str(target), str(wheel)]
    subprocess.run([uv, *install], check=True)
    return target


def check(names: Sequence[str], folder: Path) -> list[Row]:
    """Run scenarios and return what came of them."""
    began, rows = time.monotonic(), []
    with world_of(names, folder) as world:
        say(f"· Airflow {version('apache-airflow')} is up after {time.monotonic() - began:.0f} s")
        for pool, include in {"one_slot": False, "one_slot_with_deferred": True}.items():
            world.act("make_pool", pool, include_deferred=include)
        rows += [run(world, name) for name in BEFORE if name in names]
        with ThreadPoolExecutor(len(SCENARIOS)) as threads:
            together = threads.map(partial(run, world), [name for name in SCENARIOS if name in names])
            rows += [run(world, name) for name in GLOBAL if name in names]
            rows += together
        rows += [run(world, name) for name in AFTER if name in names]
        refused = world.sandbox.count(status=429)
        say(f"· {len(rows)} scenarios in {time.monotonic() - began:.0f} s, {refused} requests refused")
    return sorted(rows, key=lambda row: list(ALL).index(row.name))


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{datetime.now(UTC):%H:%M:%S} {text}\n")
    sys.stdout.flush()


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = (HEADS, tuple("---" for _ in HEADS), *(row.cells() for row in rows))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def grid(rows: Sequence[Row]) -> str:
    """Return rows of several versions as a Markdown table, of each the last one: seconds, or what is wrong."""
    latest = {(row.name, row.airflow): row for row in rows}
    versions = sorted({row.airflow for row in rows}, key=lambda each: [int(part) for part in each.split(".")])
    lines = [("scenario", *versions), ("---", *("--:" for _ in versions))]
    for name in ALL:
        cells = [_cell(latest.get((name, airflow)), name, airflow) for airflow in versions]
        lines.append((name.replace("_", " "), *cells))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(row: Row | None, name: str, airflow: str) -> str:
    if not is_possible(name, airflow):
        return "n/a"
    if row is None:
        return ""
    return f"**{'; '.join(row.faults)}**" if row.faults else f"{row.seconds:.0f}"


def is_possible(name: str, airflow: str) -> bool:
    """Whether an Airflow has what a scenario is about."""
    if name in ("sigterm", "poking_cleared"):
        # That Airflow retries no task whose process was killed, and leaves a running one that is cleared `restarting`.
        return not airflow.startswith("3.0.")
    # Before, only the files of tasks are JSON, from 3.0 on.
    return name != "json_logs" or not airflow.startswith("2.")


def main() -> int:
    """Run what was asked for, in a folder that is kept when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the quick part")
    parser.add_argument("--only", nargs="+", choices=ALL, metavar="NAME", help=", ".join(ALL))
    parser.add_argument("--rows", type=Path, metavar="FILE", help="where results are added, a line each")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of such a file, by version")
    asked = parser.parse_args()
    if asked.table:
        sys.stdout.write(grid([Row(**json.loads(line)) for line in asked.table.read_text().splitlines()]) + "\n")
        return 0
    # Everything that runs is ended then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # An Airflow sends its metrics to one place, so StatsD's are in the quick part alone.
    names = asked.only or [name for name, each in ALL.items() if (each.quick if asked.quick else name != "statsd")]
    airflow = version("apache-airflow")
    names = [name for name in names if is_possible(name, airflow)]
    if find_spec("openlineage") is None:
        names = [name for name in names if name != "openlineage"]
    space = " " if "home_with_spaces" in names else "-"
    folder = Path(tempfile.mkdtemp(prefix=f"airflow{space}scenarios{space}"))
    rows = check(names, folder)
    if asked.rows:
        with asked.rows.open("a") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
    sys.stdout.write(f"Airflow {airflow}\n\n{table(rows)}\n")
    if any(row.faults for row in rows):
        say(f"logs are kept in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
