"""The button *Open in TechFlow* of a task that starts or awaits an execution.

A task writes its execution's address down as an XCom as soon as it knows it, so the button works while it waits.
Airflow 2 reads that XCom when the page is shown, and Airflow 3 reads it by its key alone.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, XCom, get_current_context

from techflow_provider.client.errors import TechFlowError
from techflow_provider.client.text import get_logger, storable

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, BaseOperatorLink, Context

    from techflow_provider.hooks.techflow import TechFlowHook
else:
    # Type checkers don't know the classes under these names.
    from airflow.providers.common.compat.sdk import BaseOperatorLink

log: logging.Logger = get_logger(__name__)

LINK_KEY = "techflow_link"
# What the TechFlow page shows of a task's execution.
EXECUTION_KEY = "techflow_execution"


class TechFlowLink(BaseOperatorLink):
    """Opens a task's execution in TechFlow's dashboard, by the connection's `dashboard_url`.

    >>> operator_extra_links = (TechFlowLink(),)
    """

    name = "Open in TechFlow"

    @property
    def xcom_key(self) -> str:
        """The XCom that holds the address."""
        return LINK_KEY

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the address, or nothing while the task has no execution."""
        return str(XCom.get_value(ti_key=ti_key, key=LINK_KEY) or "")


def links(task: BaseOperator) -> tuple[TechFlowLink, ...]:
    """Return a task's links: none where it pushes no XComs, since Airflow would push an empty one for each."""
    return (TechFlowLink(),) if task.do_xcom_push else ()


def keep_link(
    hook: TechFlowHook, execution_id: str, workflow_id: str | None = None, status: str | None = None
) -> str | None:
    """Write down the execution of the running task, for its link and the TechFlow page, and return its address.

    A link must not fail a task: outside of a task, or without a connection, nothing is written.
    """
    try:
        context = get_current_context()
        url = hook.connection.execution_url(execution_id, workflow_id)
    except (AirflowException, RuntimeError, TechFlowError) as error:
        log.debug("No link to execution %s: %s", execution_id, error)
        return None
    known = {"id": execution_id, "workflow_id": workflow_id, "status": status, "conn_id": hook.techflow_conn_id}
    push(context, LINK_KEY, url or "")
    push(context, EXECUTION_KEY, {**known, "url": url})
    return url


def push(context: Context, key: str, value: Any) -> None:
    """Push an XCom of a task, unless the task is to push none (`do_xcom_push=False`)."""
    if getattr(context["task"], "do_xcom_push", True):
        context["ti"].xcom_push(key=key, value=storable(value))
