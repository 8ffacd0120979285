"""Mark a task, or clear it, as a user does in the UI: mark.py DAG_ID TASK_ID RUN_ID failed|success|cleared."""

from __future__ import annotations

import sys
from typing import Any

from airflow.api.common.mark_tasks import set_state
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance, clear_task_instances
from airflow.utils.session import create_session


def dag_of(dag_id: str) -> Any:
    """Return a DAG as the database has it."""
    with create_session() as session:
        row = SerializedDagModel.get(dag_id, session=session)
        if row is None:
            raise SystemExit(f"there is no DAG {dag_id}")
        return row.dag


def clear(dag_id: str, task_id: str, run_id: str) -> None:
    """Let it run again."""
    with create_session() as session:
        wanted = {"dag_id": dag_id, "task_id": task_id, "run_id": run_id}
        tasks = session.query(TaskInstance).filter_by(**wanted).all()
        clear_task_instances(tasks, session)


def main(dag_id: str, task_id: str, run_id: str, state: str) -> None:
    """Mark it."""
    if state == "cleared":
        clear(dag_id, task_id, run_id)
        return
    task = dag_of(dag_id).get_task(task_id)
    changed = set_state(tasks=[task], run_id=run_id, state=state, commit=True)  # type: ignore[arg-type]  # as text
    if not changed:
        raise SystemExit(f"{task_id} was not changed")


if __name__ == "__main__":
    main(*sys.argv[1:])
