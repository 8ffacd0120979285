"""The button *Open in TechFlow* of a task that starts or awaits an execution.

A task writes its execution's address down as an XCom as soon as it knows it, so the button works while it waits.
Airflow 2 reads that XCom when the page is shown, and Airflow 3 reads it by its key alone.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, BaseOperatorLink, XCom, get_current_context

from techflow_provider.client.errors import TechFlowError

if TYPE_CHECKING:
    from techflow_provider.hooks.techflow import TechFlowHook

log: logging.Logger = logging.getLogger(__name__)

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


def keep_link(hook: TechFlowHook, execution_id: str, workflow_id: str | None = None, status: str | None = None) -> None:
    """Write down the execution of the running task, for its link and the TechFlow page.

    A link must not fail a task: outside of a task, or without a connection, nothing is written.
    """
    try:
        ti = get_current_context()["ti"]
        url = hook.connection.execution_url(execution_id, workflow_id)
    except (AirflowException, RuntimeError, TechFlowError) as error:
        log.debug("No link to execution %s: %s", execution_id, error)
        return
    known = {"id": execution_id, "workflow_id": workflow_id, "status": status, "conn_id": hook.techflow_conn_id}
    ti.xcom_push(key=LINK_KEY, value=url or "")
    ti.xcom_push(key=EXECUTION_KEY, value={**known, "url": url})
