"""How much code and how many state transactions do one start, one wait and its resumption take?

Runs the operators in this process, against the sandbox over a socket, with the shared state in a SQLite file, and
counts the package's own frames (`sys.setprofile`, without the sandbox) and the transactions on the state's file.
Run it with a Python that has Airflow and this package: `python tests/benchmarks/start_cost.py`. It imports only public
names, so that it runs on earlier commits as well.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import TYPE_CHECKING, Any

HOME = tempfile.mkdtemp(prefix="techflow-start-cost-")
os.environ["AIRFLOW_HOME"] = HOME
os.environ["AIRFLOW__METRICS__TIMER_UNIT_CONSISTENCY"] = "True"
os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = f"sqlite:///{HOME}/airflow.db"

from airflow.providers.common.compat.sdk import TaskDeferred  # noqa: E402  # the home comes first

import techflow_provider  # noqa: E402
from techflow_provider.operators.techflow import TechFlowTriggerWorkflowOperator  # noqa: E402
from techflow_provider.sandbox import Sandbox  # noqa: E402

if TYPE_CHECKING:
    from tests.benchmarks.rows import Row, add_option, hand_over
else:
    from rows import Row, add_option, hand_over

PACKAGE = str(Path(techflow_provider.__file__).parent)
SANDBOX = os.path.join(PACKAGE, "sandbox")  # noqa: PTH118  # compared with the text of a code object's file name
KEY = "start-cost-key-0123456789"
# To reach.
MOST_FRAMES, MOST_TRANSACTIONS = 275, 6


@dataclass
class Cost:
    """What one step took.

    :param functions: the package's own functions, by file and name, and how often each was called
    :param transactions: transactions on the state's file
    """

    functions: Counter[tuple[str, str]] = field(default_factory=Counter)
    transactions: int = 0

    @property
    def frames(self) -> int:
        """How many calls there were."""
        return self.functions.total()

    @property
    def files(self) -> Counter[str]:
        """The calls by file."""
        files: Counter[str] = Counter()
        for (file, _), calls in self.functions.items():
            files[file] += calls
        return files

    def profile(self, frame: FrameType, event: str, _: object) -> None:
        """Count a call; resuming a generator or coroutine counts as well, since a reader has to follow it."""
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGE) and not file.startswith(SANDBOX):
            self.functions[os.path.relpath(file, PACKAGE), frame.f_code.co_qualname] += 1


current = Cost()


class CountingConnection(sqlite3.Connection):
    """A connection that counts the transactions it begins."""

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        """Run a statement."""
        if sql.startswith("BEGIN"):
            current.transactions += 1
        return super().execute(sql, *args)


def count_transactions() -> None:
    """Let every SQLite connection that is opened from now on count."""
    connect = sqlite3.connect

    def counting(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **{"factory": CountingConnection, **kwargs})
        return connection

    sqlite3.connect = counting  # type: ignore[assignment]  # a benchmark's own way to look inside


@contextmanager
def measured() -> Iterator[Cost]:
    """Count what is done in the context."""
    global current  # noqa: PLW0603  # the connection counts for whichever step runs
    current = Cost()
    sys.setprofile(current.profile)
    try:
        yield current
    finally:
        sys.setprofile(None)


def context_of(run_id: str, try_number: int) -> Any:
    """Return as much of a task's context as the operator reads."""
    ti = SimpleNamespace(
        dag_id="cost",
        run_id=run_id,
        task_id="start",
        map_index=-1,
        max_tries=0,
        try_number=try_number,
        xcom_push=lambda **_: None,
    )
    run = SimpleNamespace(start_date=datetime(2026, 1, 1, tzinfo=UTC), run_id=run_id, dag_id="cost")
    task = SimpleNamespace(do_xcom_push=True)
    return {"ti": ti, "task_instance": ti, "task": task, "dag_run": run, "run_id": run_id}


def execute(
    run_id: str, act: Callable[[TechFlowTriggerWorkflowOperator, Any], Any], try_number: int = 1, **options: Any
) -> Cost:
    """Run one step of a fresh operator."""
    operator = TechFlowTriggerWorkflowOperator(task_id="start", **options)
    context = {**context_of(run_id, try_number), "task": operator}
    with measured() as cost, suppress(TaskDeferred):
        act(operator, context)
    return cost


def completed(execution_id: str) -> dict[str, Any]:
    """Return the event with which a trigger resumes a task."""
    execution = {
        "id": execution_id,
        "workflow_id": "wf_1",
        "status": "completed",
        "started_at": "2026-01-01T00:00:00+00:00",
        "finished_at": "2026-01-01T00:00:05+00:00",
        "error": None,
    }
    return {"execution": execution, "state": "completed"}


def show_detail(name: str, cost: Cost) -> None:
    """Print where the calls of one step go."""
    print(f"\n{name}")
    for file, calls in cost.files.most_common():
        print(f"{calls:>6}  {file}")
        for (where, function), count in cost.functions.most_common():
            if where == file:
                print(f"{count:>12}  {function}")


def main() -> None:
    """Print a table of what each step took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detail", action="store_true", help="also print the calls by file and function")
    add_option(parser)
    asked = parser.parse_args()
    count_transactions()
    sandbox = Sandbox(api_keys=(KEY,))
    workflow_id = sandbox.add_workflow("Cost", id="wf_1")
    with sandbox.serve() as url:
        os.environ["AIRFLOW_CONN_TECHFLOW_DEFAULT"] = json.dumps(
            {"conn_type": "techflow", "host": url, "password": KEY, "extra": {"requests_per_minute": 100000}}
        )
        options: dict[str, Any] = {"workflow_id": workflow_id}
        waiting = {**options, "wait_for_completion": True, "deferrable": True}

        def run(operator: Any, context: Any) -> Any:
            return operator.execute(context)

        # What is loaded and opened once per process isn't part of a start.
        execute("warm-up", run, **options)
        execute("warm-up-deferred", run, **waiting)
        rows = {
            "one start": execute("start", run, **options),
            "one start that defers its wait": execute("wait", run, **waiting),
            "its resumption": execute(
                "wait",
                lambda operator, context: operator.execute_complete(context, completed(sandbox.executions[-1].id)),
                **waiting,
            ),
            "the same start again (a retry)": execute("wait", run, 2, **waiting),
        }
    print(f"{'':34}{'frames':>8}{'functions':>11}{'files':>7}{'transactions':>14}")
    for name, cost in rows.items():
        print(f"{name:34}{cost.frames:>8}{len(cost.functions):>11}{len(cost.files):>7}{cost.transactions:>14}")
    start = rows["one start"]
    hand_over(
        asked.rows,
        Row("the package's frames in one start", start.frames, "", "1 start", limit=MOST_FRAMES),
        Row(
            "transactions on the state's file in one start", start.transactions, "", "1 start", limit=MOST_TRANSACTIONS
        ),
    )
    if asked.detail:
        for name, cost in rows.items():
            show_detail(name, cost)


if __name__ == "__main__":
    main()
