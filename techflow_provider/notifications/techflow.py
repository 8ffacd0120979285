"""Start a workflow from a callback of a DAG or task: `on_failure_callback=TechFlowNotifier(workflow_id="wf_123")`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from techflow_provider.client.parsing import Json
from techflow_provider.client.values import as_id, as_payload, as_text
from techflow_provider.parameters import Check, check_plain, read

if TYPE_CHECKING:
    from airflow.sdk import BaseNotifier, Context, XComArg

    from techflow_provider.client.values import Payload
    from techflow_provider.hooks.techflow import TechFlowHook
    from techflow_provider.parameters import Text
    from techflow_provider.submission.model import Submitter
else:
    # Type checkers don't know the class under this name.
    from airflow.providers.common.compat.notifier import BaseNotifier


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
            ExecutionStarter(hook, self._submitter(context)).start(*self._wanted)

    async def async_notify(self, context: Context) -> None:
        """Start the execution in the triggerer, as a deadline's callback."""
        from techflow_provider.submission.airflow import ExecutionStarter

        hook = self._hook()
        connection = await hook.aget_techflow_connection()
        starter = ExecutionStarter(hook, self._submitter(context), connection=connection)
        async with await hook.aget_conn() as client:
            await starter.astart(client, *self._wanted)

    def _hook(self) -> TechFlowHook:
        from techflow_provider.hooks.techflow import TechFlowHook

        return TechFlowHook(read(self, "techflow_conn_id"))

    @property
    def _wanted(self) -> tuple[str, dict[str, Json] | None]:
        return read(self, "workflow_id"), read(self, "payload")

    def _submitter(self, context: Context) -> Submitter:
        text = json.dumps([*self._wanted, self.name], sort_keys=True)
        return submitter_of(context, f"notifier {hashlib.sha256(text.encode()).hexdigest()[:16]}")


def submitter_of(context: Mapping[str, Any], part: str) -> Submitter:
    """Return who starts an execution in a callback: an attempt of a task, or a run of a DAG; their contexts differ.

    A DAG's callback gets a `reason`, and a deadline's the run as a dict.
    """
    from techflow_provider.submission.airflow import name_of
    from techflow_provider.submission.model import Submitter

    run = context.get("dag_run")
    dag_id = _of(run, "dag_id") or context["dag"].dag_id
    run_id = _of(run, "run_id") or _of(run, "dag_run_id") or context["run_id"]
    part, ti = f"{part} {_of(run, 'start_date') or ''}", None if "reason" in context else context.get("ti")
    if ti is None:
        return Submitter(name_of(dag_id, run_id, "", part=f"{part} {_of(context.get('deadline'), 'id') or ''}"))
    # Each attempt has callbacks of its own, which must not join what the last one has started: it is part of the name.
    return Submitter(name_of(dag_id, run_id, ti.task_id, getattr(ti, "map_index", -1), f"{part} {ti.try_number}"))


def _of(source: Any, name: str) -> Any:
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
