"""Run one DAG of the DAGs folder through `dag.test()` and write down what it left: dag_runner.py DAG_ID RESULT."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import AirflowTaskTimeout


def find(dag_id: str) -> Any:
    """Import the DAG from the folder's files, as Airflow does."""
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:
        from airflow.models.dagbag import DagBag  # type: ignore[no-redef]
    bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    if bag.import_errors:
        raise SystemExit(json.dumps(bag.import_errors, indent=1, default=str))
    return bag.dags[dag_id]


def pushed(ti: Any, key: str = "return_value") -> Any:
    """Return what a task pushed, by default as its result."""
    return ti.xcom_pull(task_ids=ti.task_id, map_indexes=ti.map_index, key=key)


def main(dag_id: str, result: str) -> None:
    """Run it."""
    try:
        run = find(dag_id).test()
    except AirflowTaskTimeout:
        # Airflow 2.11 fails the task and then lets this through, which is no Exception there.
        traceback.print_exc()
        Path(result).write_text(json.dumps({"state": "failed"}))
        return
    tasks = run.get_task_instances()
    names = {ti: ti.task_id if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]" for ti in tasks}
    left = {
        "state": str(getattr(run.state, "value", run.state)),
        "tasks": {names[ti]: str(getattr(ti.state, "value", ti.state)) for ti in tasks},
        "returned": {names[ti]: pushed(ti) for ti in tasks},
        "links": {names[ti]: pushed(ti, "techflow_link") for ti in tasks},
    }
    Path(result).write_text(json.dumps(left, default=str))


if __name__ == "__main__":
    main(*sys.argv[1:])
