"""Collect what the page shows from Airflow's database and the shared state, by a few bounded queries."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.models.connection import Connection
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.models import StatusWords
from techflow_provider.commands.console import connection_in_environment, read_connection
from techflow_provider.hooks.budget import open_budget, open_records
from techflow_provider.hooks.connection import CONNECTION_TYPE
from techflow_provider.hooks.state import choice, open_state
from techflow_provider.links.techflow import EXECUTION_KEY
from techflow_provider.page.content import ConnectionView, Content, ExecutionView, WaitView, execution_view
from techflow_provider.state.components import reported
from techflow_provider.state.store import StoreError

if TYPE_CHECKING:
    # Airflow 3.0 has an earlier version of SQLAlchemy, without these names.
    from sqlalchemy import ColumnElement, Select

MAX_WAITS = 50
MAX_EXECUTIONS = 50
PREFIX = "AIRFLOW_CONN_"
TRIGGER = "techflow_provider.triggers.techflow.TechFlowExecutionTrigger"
SENSOR = "TechFlowExecutionSensor"
IN_WORKER: tuple[str, ...] = (TaskInstanceState.RUNNING, TaskInstanceState.UP_FOR_RESCHEDULE)


def collect(may_read: Callable[[str], bool], dag_ids: Collection[str], may_see: Callable[[str, str], bool]) -> Content:
    """Return what a user may see, which is what Airflow's own API would show.

    :param may_read: whether the user may read a connection
    :param dag_ids: the DAGs that the user may read
    :param may_see: whether the user may see a part of a DAG: its `TASK_INSTANCE` or `XCOM`
    """
    with create_session() as session:
        known = {conn_id: _connection(conn_id) for conn_id in sorted(_connection_ids(session)) if may_read(conn_id)}
        waiting, started = _waiting(), XComModel.key == EXECUTION_KEY
        in_waits = _visible(session, _joined(TaskInstance.dag_id).where(waiting), dag_ids, may_see, "TASK_INSTANCE")
        in_xcoms = _visible(session, select(XComModel.dag_id).where(started), dag_ids, may_see, "XCOM")
        waits, more = _waits(session, and_(waiting, TaskInstance.dag_id.in_(in_waits)))
        words = {name: status_words for name, (_, status_words) in known.items()}
        executions = _executions(session, and_(started, XComModel.dag_id.in_(in_xcoms)), words)
    return Content(datetime.now(UTC), tuple(view for view, _ in known.values()), waits, executions, more)


def _connection_ids(session: Session) -> set[str]:
    """Return the ids in the database and in the environment; other secrets backends can't list theirs."""
    named = (name.removeprefix(PREFIX).lower() for name in os.environ if name.startswith(PREFIX))
    stored = session.scalars(select(Connection.conn_id).where(Connection.conn_type == CONNECTION_TYPE))
    return {*stored, *filter(_is_ours, named)}


def _is_ours(conn_id: str) -> bool:
    connection = connection_in_environment(conn_id)
    return connection is not None and connection.conn_type == CONNECTION_TYPE


def _connection(conn_id: str) -> tuple[ConnectionView, StatusWords]:
    try:
        content = read_connection(conn_id)
        budget = open_budget(content).snapshot()
    except InvalidParameterError as error:
        return ConnectionView(conn_id, problem=str(error)), StatusWords()
    view = ConnectionView(
        conn_id, content.settings.base_url, budget, receives_webhooks=content.webhook_secret is not None
    )
    try:
        store, _ = open_state(content)
        view = replace(view, state=f"{store.location}: {choice().reason}")
        users = [(each, entry.age_seconds) for each, entry in reported(store, content.settings.account)]
        view = replace(view, deliveries=tuple(sorted(open_records(content).delivery_ages())), users=tuple(users))
    except StoreError as error:
        view = replace(view, problem=str(error))
    return view, content.settings.status_words


def _visible(
    session: Session,
    found: Select[str],
    dag_ids: Collection[str],
    may_see: Callable[[str, str], bool],
    entity: str,
) -> list[str]:
    """Return the DAGs whose parts there are the user may see; a permission for a DAG doesn't imply that."""
    return [each for each in session.scalars(found.distinct()) if each in dag_ids and may_see(entity, each)]


def _waiting() -> ColumnElement[bool]:
    in_triggerer = and_(TaskInstance.state == TaskInstanceState.DEFERRED, Trigger.classpath == TRIGGER)
    return or_(in_triggerer, and_(TaskInstance.state.in_(IN_WORKER), TaskInstance.operator == SENSOR))


def _joined(*columns: Any) -> Select[Any]:
    return select(*columns).select_from(TaskInstance).outerjoin(Trigger, TaskInstance.trigger_id == Trigger.id)


def _waits(session: Session, visible: ColumnElement[bool]) -> tuple[tuple[WaitView, ...], int]:
    """Return the longest waits, and how many more there are."""
    began = func.coalesce(Trigger.created_date, TaskInstance.start_date)
    joined = _joined(TaskInstance, Trigger).where(visible)
    total = session.scalar(select(func.count()).select_from(joined.subquery())) or 0
    rows = session.execute(joined.order_by(began).limit(MAX_WAITS)).all()
    return tuple(_wait(ti, trigger) for ti, trigger in rows), max(0, total - len(rows))


def _wait(ti: TaskInstance, trigger: Trigger | None) -> WaitView:
    task = _task(ti.dag_id, ti.task_id, ti.map_index)
    if trigger is None:
        return WaitView(task, "an execution", "worker", ti.start_date or datetime.now(UTC))
    execution, workflow = trigger.kwargs.get("execution_id"), trigger.kwargs.get("workflow_id")
    awaited = f"execution {execution}" if execution else f"the next execution of workflow {workflow}"
    return WaitView(task, awaited, "triggerer", trigger.created_date)


def _executions(
    session: Session, visible: ColumnElement[bool], words: Mapping[str, StatusWords]
) -> tuple[ExecutionView, ...]:
    columns = (XComModel.dag_id, XComModel.task_id, XComModel.map_index, XComModel.timestamp, XComModel.value)
    rows = session.execute(select(*columns).where(visible).order_by(XComModel.timestamp.desc()).limit(MAX_EXECUTIONS))
    tasks = ((_task(row.dag_id, row.task_id, row.map_index), row) for row in rows)
    views = (execution_view(_read_object(row.value), task, words, row.timestamp) for task, row in tasks)
    return tuple(view for view in views if view is not None)


def _read_object(value: Any) -> dict[str, Any]:
    """Return an XCom's value if it is an object; Airflow stores it as JSON, or as text that contains JSON."""
    try:
        decoded = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return {}
    return decoded if isinstance(decoded, dict) else {}


def _task(dag_id: str, task_id: str, map_index: int) -> str:
    return f"{dag_id} / {task_id}{f' [{map_index}]' if map_index >= 0 else ''}"
