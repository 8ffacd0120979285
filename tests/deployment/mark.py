"""Set a task's state as a user does in the UI: mark.py DAG_ID TASK_ID RUN_ID STATE, in Airflow's own interpreter."""

from __future__ import annotations

import sys
from typing import Any

from airflow.api.common.mark_tasks import set_state
from airflow.models.serialized_dag import SerializedDagModel
from airflow.utils.session import create_session


def dag_of(dag_id: str) -> Any:
    """Return a DAG as the database has it."""
    with create_session() as session:
        row = SerializedDagModel.get(dag_id, session=session)
        if row is None:
            raise SystemExit(f"there is no DAG {dag_id}")
        return row.dag


def main(dag_id: str, task_id: str, run_id: str, state: str) -> None:
    """Mark it."""
    task = dag_of(dag_id).get_task(task_id)
    changed = set_state(tasks=[task], run_id=run_id, state=state, commit=True)  # type: ignore[arg-type]  # as text
    if not changed:
        raise SystemExit(f"{task_id} was not changed")


if __name__ == "__main__":
    main(*sys.argv[1:])
