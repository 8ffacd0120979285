"""What differs between Airflow versions; nothing else in the package asks for a version.

Most differences are hidden by `airflow.providers.common.compat`, which the other modules import from directly.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


def has_api_server() -> bool:
    """Whether Airflow serves its UI by FastAPI and schedules by assets, as it does since version 3."""
    from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS

    return AIRFLOW_V_3_0_PLUS


def event_trigger_base() -> type[Any]:
    """Return the base class of triggers that schedule DAGs, or before Airflow 3, which has none, of all triggers."""
    from airflow.triggers import base

    found: type[Any] = getattr(base, "BaseEventTrigger", base.BaseTrigger)
    return found


def first_reschedule_date(context: Context) -> datetime | None:
    """Return when a rescheduled sensor looked first in this try, or None at its first look."""
    ti: Any = context["ti"]
    if hasattr(ti, "get_first_reschedule_date"):
        found: datetime | str | None = ti.get_first_reschedule_date(context)
        # Airflow 3.0 hands it over as text.
        return datetime.fromisoformat(found) if isinstance(found, str) else found
    return _first_reschedule_date_2(ti)


def _first_reschedule_date_2(ti: Any) -> datetime | None:
    from airflow.models.taskreschedule import TaskReschedule
    from airflow.utils.session import create_session

    with create_session() as session:
        first = session.scalars(TaskReschedule.stmt_for_task_instance(ti)).first()
        return first.start_date if first else None


def task_state_store(context: Context) -> Any | None:
    """Return where Airflow 3.3 and later keep a task's own state, or None before."""
    return context.get("task_state_store")


def state_errors() -> tuple[type[Exception], ...]:
    """Return what Airflow 3.3 and later raise when a task's own state can't be used."""
    from airflow.sdk.exceptions import AirflowRuntimeError

    return (AirflowRuntimeError, OSError)
