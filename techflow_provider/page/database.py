"""Collect what the page shows from Airflow's database and the shared state, by a few bounded queries."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from airflow.models.connection import Connection
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.models import ExecutionState, StatusWords
from techflow_provider.client.parsing import shorten
from techflow_provider.commands.console import connection_in_environment, read_connection
from techflow_provider.commands.doctor import guarantees
from techflow_provider.hooks.budget import open_budget, open_records
from techflow_provider.hooks.connection import CONNECTION_TYPE, TechFlowConnection
from techflow_provider.hooks.state import choice, open_state
from techflow_provider.links.techflow import EXECUTION_KEY
from techflow_provider.page.content import (
    ConnectionView,
    Content,
    ExecutionView,
    TaskView,
    WaitView,
    execution_view,
    merge,
)
from techflow_provider.state.components import reported
from techflow_provider.state.store import StoreError
from techflow_provider.submission.airflow import deployments
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.records import AttemptRecord

if TYPE_CHECKING:
    # Airflow 3.0 has an earlier version of SQLAlchemy, without these names.
    from sqlalchemy import ColumnElement, Select

MAX_WAITS = 50
MAX_EXECUTIONS = 50
# An execution has an XCom from each task that started or awaited it.
MAX_XCOMS = 200
# The names of submitters outside of tasks begin with this; that of a task has so many parts at least.
DIRECT = "direct/"
NAME_PARTS = 4
PREFIX = "AIRFLOW_CONN_"
TRIGGER = "techflow_provider.triggers.techflow.TechFlowExecutionTrigger"
SENSOR = "TechFlowExecutionSensor"
# How many characters are shown of the ids that a task waits for.
LONGEST_LIST = 200
IN_WORKER: tuple[str, ...] = (TaskInstanceState.RUNNING, TaskInstanceState.UP_FOR_RESCHEDULE)


def collect(may_read: Callable[[str], bool], dag_ids: Collection[str], may_see: Callable[[str, str], bool]) -> Content:
    """Return what a user may see, which is what Airflow's own API would show.

    :param may_read: whether the user may read a connection
    :param dag_ids: the DAGs that the user may read
    :param may_see: whether the user may see a part of a DAG: its `TASK_INSTANCE` or `XCOM`
    """
    may_see = cache(may_see)

    def is_visible(entity: str, dag_id: str) -> bool:
        return dag_id in dag_ids and may_see(entity, dag_id)

    with create_session() as session:
        known = {conn_id: _connection(conn_id) for conn_id in sorted(_connection_ids(session)) if may_read(conn_id)}
        waiting, started = _waiting(), XComModel.key == EXECUTION_KEY
        in_waits = _visible_dags(
            session, _joined(TaskInstance.dag_id).where(waiting), partial(is_visible, "TASK_INSTANCE")
        )
        in_xcoms = _visible_dags(session, select(XComModel.dag_id).where(started), partial(is_visible, "XCOM"))
        waits, more = _waits(session, and_(waiting, TaskInstance.dag_id.in_(in_waits)))
        connections = {name: connection for name, (_, connection) in known.items() if connection is not None}
        words = {name: each.settings.status_words for name, each in connections.items()}
        executions = _executions(session, and_(started, XComModel.dag_id.in_(in_xcoms)), words)
    starts: list[tuple[AttemptRecord, TaskView | None]] = []
    # Several connections may be for one account.
    for connection in {each.settings.site: each for each in connections.values()}.values():
        # What is wrong with the state is shown with the connection.
        with suppress(StoreError):
            attempts = AttemptStore(open_state(connection).store, connection.settings.site, "")
            executions += islice(_claimed(attempts, connection, partial(is_visible, "XCOM")), MAX_EXECUTIONS)
            starts += _unresolved(attempts, partial(is_visible, "TASK_INSTANCE"))
    newest = tuple(merge(executions)[:MAX_EXECUTIONS])
    views = tuple(view for view, _ in known.values())
    return Content(datetime.now(UTC), views, waits, newest, tuple(starts[:MAX_EXECUTIONS]), more)


def _connection_ids(session: Session) -> set[str]:
    """Return the ids in the database and in the environment; other secrets backends can't list theirs."""
    named = (name.removeprefix(PREFIX).lower() for name in os.environ if name.startswith(PREFIX))
    defined = filter(None, map(connection_in_environment, named))
    stored = session.scalars(select(Connection.conn_id).where(Connection.conn_type == CONNECTION_TYPE))
    return {*stored, *(each.conn_id for each in defined if each.conn_type == CONNECTION_TYPE)}


def _connection(conn_id: str) -> tuple[ConnectionView, TechFlowConnection | None]:
    try:
        content = read_connection(conn_id)
        budget = open_budget(content).snapshot()
    except InvalidParameterError as error:
        return ConnectionView(conn_id, problem=str(error)), None
    view = ConnectionView(
        conn_id, content.settings.base_url, budget, receives_webhooks=content.webhook_secret is not None
    )
    try:
        store = open_state(content).store
        view = replace(view, state=f"{store.location}: {choice().reason}")
        users = [(each, entry.age_seconds) for each, entry in reported(store, content.settings.account)]
        view = replace(view, deliveries=tuple(sorted(open_records(content).delivery_ages())), users=tuple(users))
        names: dict[tuple[str, str], list[str]] = {}
        for each in guarantees(store, [component for component, _ in users]):
            names.setdefault((each.severity, f"{each.message}. {each.remedy}"), []).append(each.check)
        view = replace(view, guarantees=tuple((result, ", ".join(names[result, why]), why) for result, why in names))
    except StoreError as error:
        view = replace(view, problem=str(error))
    return view, content


def _visible_dags(session: Session, found: Select[str], is_visible: Callable[[str], bool]) -> list[str]:
    """Return the DAGs whose parts there are the user may see; a permission for a DAG doesn't imply that."""
    return [each for each in session.scalars(found.distinct()) if is_visible(each)]


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
    task = TaskView(ti.dag_id, ti.run_id, ti.task_id, ti.map_index)
    if trigger is None:
        return WaitView(task, "an execution", "worker", ti.start_date or datetime.now(UTC))
    arguments = trigger.kwargs
    ids = arguments.get("execution_ids") or [arguments.get("execution_id")]
    which = "latest active" if arguments.get("latest_active") else "next"
    awaited = f"the {which} execution of workflow {arguments.get('workflow_id')}"
    if all(ids):
        awaited = f"execution {shorten(', '.join(ids), LONGEST_LIST)}"
    return WaitView(task, awaited, "triggerer", trigger.created_date)


def _executions(
    session: Session, visible: ColumnElement[bool], words: Mapping[str, StatusWords]
) -> list[ExecutionView]:
    """Return what tasks have written down of their executions, in their present attempt."""
    names = ("dag_id", "run_id", "task_id", "map_index", "timestamp", "value")
    columns = (getattr(XComModel, name) for name in names)
    rows = session.execute(select(*columns).where(visible).order_by(XComModel.timestamp.desc()).limit(MAX_XCOMS))
    found = ((record, row) for row in rows for record in _read_objects(row.value))
    views = (execution_view(record, TaskView(*row[:4]), words, row.timestamp) for record, row in found)
    return [view for view in views if view is not None]


def _claimed(
    attempts: AttemptStore, connection: TechFlowConnection, is_visible: Callable[[str], bool]
) -> Iterator[ExecutionView]:
    """Yield the executions that the state knows, of earlier attempts and notifiers, too; it has no status of them."""
    now = datetime.now(UTC)
    for workflow_id, execution_id, submitter, age in sorted(attempts.claimed(), key=lambda claim: claim[-1]):
        task = _task_of(submitter)
        if is_visible(task.dag_id) if task else submitter.startswith(DIRECT):
            url, tasks = connection.execution_url(execution_id, workflow_id), (task,) if task else ()
            at = now - timedelta(seconds=age)
            yield ExecutionView(execution_id, workflow_id, None, ExecutionState.RUNNING, tasks, url, at)


def _unresolved(
    attempts: AttemptStore, is_visible: Callable[[str], bool]
) -> Iterator[tuple[AttemptRecord, TaskView | None]]:
    """Yield the starts whose execution isn't known, the oldest first, each with its task."""
    for record in sorted(attempts.pending(), key=lambda record: record.sent_at):
        task = _task_of(record.submitter)
        if is_visible(task.dag_id) if task else record.submitter.startswith(DIRECT):
            yield record, task


def _task_of(submitter: str) -> TaskView | None:
    """Return the task of this deployment whose name this is, None for another name (see `name_of`)."""
    for deployment in deployments():
        prefix = f"{deployment}/".removeprefix("/")
        parts = [unquote(each) for each in submitter.removeprefix(prefix).split("/")]
        if submitter.startswith(prefix) and len(parts) >= NAME_PARTS and parts[3].removeprefix("-").isdecimal():
            return TaskView(parts[0], parts[1], parts[2], int(parts[3]))
    return None


def _read_objects(value: Any) -> list[dict[str, Any]]:
    """Return the objects of an XCom, one or a list; Airflow stores them as JSON, or as text that contains JSON."""
    try:
        decoded = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return []
    return [each for each in (decoded if isinstance(decoded, list) else [decoded]) if isinstance(each, dict)]
