"""Show the main use without an account: two DAG runs in a real Airflow against the sandbox, with progress lines."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from itertools import chain
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

from techflow_provider.sandbox import Record, Sandbox

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".demo"
LOG = FOLDER / "airflow.log"
DAG_ID = "techflow_create_trigger_wait"
# A line's time and level.
LOG_PREFIX = re.compile(r"^\S+Z \[\w+ *\] |^\[\S+ ?\S*\] \{\S+\} \w+ - ")
# The longest time without a line.
SILENCE_SECONDS = 4.0
RUNNER = ROOT / "tests" / "integration" / "dag_runner.py"
STEPS = {
    "POST /workflows": "created a workflow",
    "POST /workflows/*/execute": "started an execution",
    "GET /executions": "polled the execution history",
    "GET /workflows": "searched for a workflow of this name",
}


class Terminal:
    """Prints lines at once, and knows when the last one was printed."""

    def __init__(self) -> None:
        self.printed_at = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)
        self.printed_at = time.monotonic()

    @property
    def silent_seconds(self) -> float:
        """How long nothing has been printed."""
        return time.monotonic() - self.printed_at


terminal = Terminal()
say = terminal.say


def print_request(record: Record) -> None:
    """Print a request that TechFlow received."""
    path = re.sub(r"/workflows/[^/]+", "/workflows/*", record.path)
    step = STEPS.get(f"{record.method} {path}", f"called {record.method} {record.path}")
    say(f"    Airflow {step}  ({record.method} {record.path} → {record.status})")


def airflow_environment(url: str) -> dict[str, str]:
    """Return the environment of an Airflow that lives in the demo's own folder."""
    return {
        **os.environ,
        "AIRFLOW_HOME": str(FOLDER / "home"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(FOLDER / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_TECHFLOW_DEFAULT": json.dumps({"conn_type": "techflow", "host": url, "password": "sandbox-key"}),
    }


def run(arguments: list[str], environment: dict[str, str], doing: str) -> None:
    """Run a program of Airflow's. What it prints goes to the log, and now and then its last line to the terminal.

    :param doing: what it does
    :raises CalledProcessError: it failed
    """
    began, command, lines = time.monotonic(), [sys.executable, *arguments], Queue[str]()
    with (
        LOG.open("a") as log,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as program,
    ):
        Thread(target=lambda: [lines.put(line) for line in chain(program.stdout or (), [""])], daemon=True).start()
        line, last = "\n", ""
        while line:
            # A program that only imports Airflow prints nothing for a while.
            with suppress(Empty):
                line = lines.get(timeout=max(0.1, SILENCE_SECONDS - terminal.silent_seconds))
                log.write(line)
                last = LOG_PREFIX.sub("", line.strip()) or last
            if terminal.silent_seconds >= SILENCE_SECONDS:
                say(f"    … {doing}, {time.monotonic() - began:.0f} s{f': {last[:80]}' if last else ''}")
    if program.returncode:
        raise subprocess.CalledProcessError(program.returncode, command)


def run_once(environment: dict[str, str]) -> dict[str, str]:
    """Run the DAG once, and return the states of its tasks."""
    result = FOLDER / "result.json"
    before = LOG.stat().st_size
    run([str(RUNNER), DAG_ID, str(result)], environment, "Airflow runs the DAG")
    log = LOG.read_text()[before:]
    if "running trigger in line" in log:
        say("    The sensor was deferred: it waited in the triggerer, without a worker slot")
    for reason in dict.fromkeys(
        re.findall(r"execution \S+ of workflow \S+ ended with status 'failed': [^\n\"\\]+", log)
    ):
        say(f"    The task's log: {reason}")
    left = json.loads(result.read_text())
    for task, state in left["tasks"].items():
        say(f"    task {task}: {state}")
    say(f"    DAG run: {left['state']}")
    return {**left["tasks"], "run": left["state"]}


def main() -> int:
    """Run both; 0 when they end as expected."""
    began = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    shutil.copytree(ROOT / "dags_examples", FOLDER / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    LOG.touch()
    sandbox = Sandbox(api_keys=("sandbox-key",), execution_seconds=3)
    with sandbox.serve() as url:
        environment = airflow_environment(url)
        say(f"· TechFlow's sandbox listens at {url}, with the limit of 100 requests a minute")
        say(f"· preparing Airflow's database (its own output goes to {LOG.relative_to(ROOT)})")
        run(["-m", "airflow", "db", "migrate"], environment, "Airflow creates its tables")
        sandbox.on_request = print_request
        say("\n1. A run that succeeds")
        good = run_once(environment)
        for workflow in sandbox.workflows:
            sandbox.plan(workflow["id"], seconds=1, outcome="failed", error="table orders is locked")
        say("\n2. A run whose execution fails in TechFlow")
        bad = run_once(environment)
    shutil.rmtree(FOLDER / "home", ignore_errors=True)
    as_expected = good["run"] == "success" and bad["run"] == "failed" and "success" in bad.values()
    ended = "Both runs ended as expected" if as_expected else "A run did not end as expected; see the log"
    say(f"\n{ended}, after {time.monotonic() - began:.0f} s. The DAG: dags_examples/{DAG_ID}.py")
    return 0 if as_expected else 1


if __name__ == "__main__":
    sys.exit(main())
