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


def keep_links(hook: TechFlowHook, *executions: tuple[str, str | None, str | None]) -> str | None:
    """Write down the running task's executions, for its link and the TechFlow page; return the address of the first.

    A link must not fail a task: outside of a task, or without a connection, nothing is written.

    :param executions: the id, the workflow and the status of each
    """
    names, known = ("id", "workflow_id", "status"), list[dict[str, str | None]]()
    try:
        context = get_current_context()
        for each in executions:
            url = hook.connection.execution_url(*each[:2])
            known.append({**dict(zip(names, each, strict=True)), "conn_id": hook.techflow_conn_id, "url": url})
    except (AirflowException, RuntimeError, TechFlowError) as error:
        log.debug("No link to executions %s: %s", executions, error)
        return None
    push(context, LINK_KEY, known[0]["url"] or "")
    push(context, EXECUTION_KEY, known if len(known) > 1 else known[0])
    return known[0]["url"]


def push(context: Context, key: str, value: Any) -> None:
    """Push an XCom of a task, unless the task is to push none (`do_xcom_push=False`)."""
    if getattr(context["task"], "do_xcom_push", True):
        context["ti"].xcom_push(key=key, value=storable(value))
