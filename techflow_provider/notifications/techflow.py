"""Start a workflow from a callback of a DAG or task: `on_failure_callback=TechFlowNotifier(workflow_id="wf_123")`."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from techflow_provider.client.parsing import Json
from techflow_provider.client.text import get_logger
from techflow_provider.client.values import as_id, as_payload, as_text
from techflow_provider.parameters import Check, check_plain, read

if TYPE_CHECKING:
    from airflow.sdk import BaseNotifier, Context, XComArg

    from techflow_provider.client.values import Payload
    from techflow_provider.hooks.techflow import TechFlowHook
    from techflow_provider.parameters import Text
    from techflow_provider.submission.airflow import Identity
else:
    # Type checkers don't know the class under this name.
    from airflow.providers.common.compat.notifier import BaseNotifier

log: logging.Logger = get_logger(__name__)


class TechFlowNotifier(BaseNotifier):
    """Start one execution of a workflow each time that a callback is due (Trigger Execution).

    Airflow may call a callback twice, in a worker and in the DAG processor. The execution is started once for an
    attempt of a task, or for a run of a DAG. The notifier doesn't wait for its completion.

    >>> EmptyOperator(task_id="load", on_failure_callback=TechFlowNotifier(workflow_id="wf_456"))

    :param workflow_id: the workflow's id
    :param payload: a dict to send as JSON; the reference shows no body
    :param techflow_conn_id: connection of the type `techflow`
    :param name: distinguishes several notifiers of one task with the same workflow and payload
    :raises TechFlowError: what the start raises; Airflow logs it
    """

    template_fields: Sequence[str] = ("workflow_id", "payload", "techflow_conn_id")
    checks: ClassVar[Mapping[str, Check]] = {"workflow_id": as_id, "payload": as_payload, "techflow_conn_id": as_text}

    def __init__(
        self,
        *,
        workflow_id: Text,
        payload: Payload | XComArg | None = None,
        techflow_conn_id: str = "techflow_default",
        name: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.workflow_id = workflow_id
        self.payload = payload
        self.techflow_conn_id = techflow_conn_id
        self.name = name
        check_plain(self)

    def notify(self, context: Context) -> None:
        """Start the execution, in a worker or in the DAG processor."""
        from techflow_provider.submission.airflow import ExecutionStarter

        hook = self._hook()
        with hook.get_conn():
            started = ExecutionStarter(hook, self._identity(context)).start(*self._wanted)
        self._log_start(started.execution.id)

    async def async_notify(self, context: Context) -> None:
        """Start the execution in the triggerer, as a deadline's callback."""
        from techflow_provider.submission.airflow import ExecutionStarter

        hook = self._hook()
        connection = await hook.aget_techflow_connection()
        starter = ExecutionStarter(hook, self._identity(context), connection=connection)
        async with await hook.aget_conn() as client:
            started = await starter.astart(client, *self._wanted)
        self._log_start(started.execution.id)

    def _hook(self) -> TechFlowHook:
        from techflow_provider.hooks.techflow import TechFlowHook

        return TechFlowHook(read(self, "techflow_conn_id"))

    @property
    def _wanted(self) -> tuple[str, dict[str, Json] | None]:
        return read(self, "workflow_id"), read(self, "payload")

    def _identity(self, context: Context) -> Identity:
        text = json.dumps([*self._wanted, self.name], sort_keys=True)
        return identity_of(context, f"notifier {hashlib.sha256(text.encode()).hexdigest()[:16]}")

    def _log_start(self, execution_id: str) -> None:
        log.info("Started execution %s of workflow %s", execution_id, self._wanted[0])


def identity_of(context: Mapping[str, Any], part: str) -> Identity:
    """Return the identity behind a callback: an attempt of a task, or a run of a DAG; their contexts differ.

    A DAG's callback gets a `reason`, and a deadline's the run as a dict.
    """
    from techflow_provider.submission.airflow import Identity

    run = context.get("dag_run")
    dag_id = _of(run, "dag_id") or context["dag"].dag_id
    run_id = _of(run, "run_id") or _of(run, "dag_run_id") or context["run_id"]
    began = _of(run, "start_date") or ""
    ti = None if "reason" in context else context.get("ti")
    # Each attempt has callbacks of its own, which must not join what the last one has started: it is part of the name.
    if ti is None:
        deadline = _of(context.get("deadline"), "id") or ""
        return Identity(dag_id, run_id, "", part=f"{part} {began} {deadline}")
    return Identity(dag_id, run_id, ti.task_id, getattr(ti, "map_index", -1), part=f"{part} {began} {ti.try_number}")


def _of(source: Any, name: str) -> Any:
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
