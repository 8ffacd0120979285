"""The differences between Airflow versions; no other module of the package depends on a version.

`airflow.providers.common.compat` hides most differences; the other modules import from it directly.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import redirect_stdout
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

DATABASE_VARIABLE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
# What Airflow 3 sets in processes that run DAG authors' code, and in what they start: tasks, triggers and callbacks.
BLOCKED_DATABASE = "airflow-db-not-allowed:"


def is_database_blocked() -> bool:
    """Whether Airflow keeps this process away from its database, as Airflow 3 does with tasks."""
    return os.environ.get(DATABASE_VARIABLE, "").startswith(BLOCKED_DATABASE)


def import_airflow() -> None:
    """Import Airflow for a command, whose standard output it would log to, and in the shell of a task, too."""
    blocked = os.environ[DATABASE_VARIABLE] if is_database_blocked() else ""
    if blocked:
        # Airflow 3 can't parse the URL that it has set itself. This is a database in memory, without a table.
        os.environ[DATABASE_VARIABLE] = "sqlite://"
    try:
        with redirect_stdout(sys.stderr):
            from airflow.providers_manager import ProvidersManager

            # Before 3.1, only this makes `state_url_cmd` known. All components of Airflow do so when they start.
            ProvidersManager().initialize_providers_configuration()  # type: ignore[no-untyped-call]
    finally:
        if blocked:
            os.environ[DATABASE_VARIABLE] = blocked


def has_api_server() -> bool:
    """Whether Airflow has an API server and assets, as it does since version 3."""
    from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS

    return AIRFLOW_V_3_0_PLUS


def resumes_retries() -> bool:
    """Whether a retry resumes with the event of the attempt that failed, as in Airflow 3.0."""
    from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS, AIRFLOW_V_3_1_PLUS

    return AIRFLOW_V_3_0_PLUS and not AIRFLOW_V_3_1_PLUS


async def connection_and_extra(conn_id: str, hook: Any) -> tuple[Any, Any]:
    """Return a connection and its extra without blocking the event loop."""
    from airflow.providers.common.compat import connection as compat

    if hasattr(compat, "get_async_extra_dejson"):
        found = await compat.get_async_connection(conn_id, hook=hook)
        return found, await compat.get_async_extra_dejson(found)
    # Before common-compat 1.22.
    found = await compat.get_async_connection(conn_id)
    return found, await asyncio.to_thread(lambda: found.extra_dejson)


def event_trigger_base() -> type[Any]:
    """Return the base class of event triggers, or of all triggers before Airflow 3, which has no event triggers."""
    from airflow.triggers import base

    found: type[Any] = getattr(base, "BaseEventTrigger", base.BaseTrigger)
    return found


def first_reschedule_date(context: Context) -> datetime | None:
    """Return the time of a rescheduled sensor's first poke in this attempt, or None before its second poke."""
    ti: Any = context["ti"]
    if hasattr(ti, "get_first_reschedule_date"):
        found: datetime | str | None = ti.get_first_reschedule_date(context)
        # Airflow 3.0 returns text.
        return datetime.fromisoformat(found) if isinstance(found, str) else found
    return _first_reschedule_date_2(ti)


def _first_reschedule_date_2(ti: Any) -> datetime | None:
    from airflow.models.taskreschedule import TaskReschedule
    from airflow.utils.session import create_session

    with create_session() as session:
        first = session.scalars(TaskReschedule.stmt_for_task_instance(ti)).first()
        return first.start_date if first else None


def deployment_address() -> str:
    """Return where all components of a deployment meet: its database in Airflow 2, its API server in Airflow 3."""
    from airflow.providers.common.compat.sdk import conf

    if has_api_server():
        own = conf.get("api", "base_url", fallback="") or f"localhost:{conf.get('api', 'port', fallback='')}"
        address: str = conf.get("core", "execution_api_server_url", fallback=None) or own
        return address.rstrip("/").removesuffix("/execution")
    url = urlsplit(conf.get("database", "sql_alchemy_conn"))
    # Without the user and the password, which may be changed.
    return f"{url.netloc.rpartition('@')[2]}{url.path}"


def task_state_store(context: Context) -> Any | None:
    """Return the store of a task's state in Airflow 3.3 and later, or None before."""
    return context.get("task_state_store")


def state_errors() -> tuple[type[Exception], ...]:
    """Return the errors of the store of a task's state in Airflow 3.3 and later."""
    from airflow.sdk.exceptions import AirflowRuntimeError

    return (AirflowRuntimeError, OSError)
