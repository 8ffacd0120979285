"""Operators for every documented call: workflows, and the execution of one, which has a module of its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

from techflow_provider.client.errors import NotFoundError
from techflow_provider.client.history import newest
from techflow_provider.client.parsing import Json
from techflow_provider.client.text import get_logger, storable
from techflow_provider.client.values import (
    as_choice,
    as_count,
    as_description,
    as_flag,
    as_id,
    as_instant,
    as_text,
    as_triggers,
    optional,
    rendered,
)
from techflow_provider.operators.base import Checks, TechFlowOperator
from techflow_provider.operators.trigger_workflow import TechFlowTriggerWorkflowOperator
from techflow_provider.parameters import check_plain, read

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

    from techflow_provider.client.calls import Trigger
    from techflow_provider.parameters import Text

    Triggers: TypeAlias = Sequence[Trigger] | str | XComArg

__all__ = ["TechFlowCreateWorkflowOperator", "TechFlowDeleteWorkflowOperator", "TechFlowGetWorkflowOperator"]
__all__ += ["TechFlowListExecutionsOperator", "TechFlowListWorkflowsOperator", "TechFlowTriggerWorkflowOperator"]
__all__ += ["TechFlowUpdateWorkflowOperator"]

log: logging.Logger = get_logger(__name__)

IfExists = Literal["create", "return", "update", "fail"]
IF_EXISTS: tuple[IfExists, ...] = get_args(IfExists)
# The parameters that the calls take, in their order.
CREATE_FIELDS = ("name", "description", "triggers", "if_exists")
LIST_FIELDS = ("workflow_id", "status", "since", "limit")
UPDATE_FIELDS = ("workflow_id", "name", "description", "triggers")


class TechFlowListWorkflowsOperator(TechFlowOperator):
    """List workflows (List Workflows) as dicts, ready for `.expand()`.

    >>> TechFlowListWorkflowsOperator(task_id="list_active", status="active")

    :param status: only those with this status word, such as `active`
    :param name: only those with exactly this name
    :param limit: at most so many, in TechFlow's order
    :raises TechFlowError: the call failed
    """

    template_fields: Sequence[str] = ("status", "name", "limit", *TechFlowOperator.template_fields)

    checks: ClassVar[Checks] = TechFlowOperator.checks | {
        "status": optional(as_text),
        "name": optional(as_text),
        "limit": rendered(optional(as_count)),
    }

    def __init__(
        self, *, status: Text | None = None, name: Text | None = None, limit: Text | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.status = status
        self.name = name
        self.limit = limit
        check_plain(self)

    def execute(self, context: Context) -> list[dict[str, Json]]:
        """Return the workflows."""
        workflows = self.hook.list_workflows(read(self, "status"), read(self, "name"))[: read(self, "limit")]
        log.info("TechFlow lists %d workflows", len(workflows))
        return [workflow.to_dict() for workflow in workflows]


class TechFlowGetWorkflowOperator(TechFlowOperator):
    """Return one workflow as a dict (Get Workflow).

    >>> TechFlowGetWorkflowOperator(task_id="get", workflow_id="wf_123")

    :param workflow_id: its id, such as `wf_123`
    :raises TechFlowError: the call failed; `NotFoundError` when there is no such workflow
    """

    template_fields: Sequence[str] = ("workflow_id", *TechFlowOperator.template_fields)

    checks: ClassVar[Checks] = TechFlowOperator.checks | {"workflow_id": as_id}

    def __init__(self, *, workflow_id: Text, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.workflow_id = workflow_id
        check_plain(self)

    def execute(self, context: Context) -> dict[str, Json]:
        """Return the workflow."""
        return self.hook.get_workflow(read(self, "workflow_id")).to_dict()


class TechFlowCreateWorkflowOperator(TechFlowOperator):
    """Create a workflow (Create Workflow) and return its id.

    Names need not be unique in TechFlow, so a DAG that runs daily with the default leaves a workflow a day. When the
    response is lost, the workflow is the one of this name that the list did not show before; nothing is sent twice.

    >>> TechFlowCreateWorkflowOperator(task_id="create", name="Nightly report", if_exists="return")

    :param name: the workflow's name
    :param description: its description
    :param triggers: a list such as `["manual"]`; the reference does not say what a trigger looks like, so texts and
        dicts are sent as they are
    :param if_exists: what to do when there is a workflow of this name: `create` another, `return` its id, `update` it,
        or `fail`
    :raises TechFlowError: the call failed; `InvalidParameterError` when several have the name and one is meant
    """

    template_fields: Sequence[str] = ("name", "description", "triggers", *TechFlowOperator.template_fields)

    checks: ClassVar[Checks] = TechFlowOperator.checks | {
        "name": as_text,
        "description": as_description,
        "triggers": as_triggers,
        "if_exists": partial(as_choice, choices=IF_EXISTS),
    }

    def __init__(
        self,
        *,
        name: Text,
        description: Text | None = None,
        triggers: Triggers = (),
        if_exists: IfExists = "create",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.description = description
        self.triggers = triggers
        self.if_exists = if_exists
        check_plain(self)

    def execute(self, context: Context) -> str:
        """Create the workflow, or use the one there is."""
        fields = (read(self, each) for each in CREATE_FIELDS)
        return storable(self.hook.get_conn().workflows.ensure(*fields).id)


class TechFlowUpdateWorkflowOperator(TechFlowOperator):
    """Change some fields of a workflow (Update Workflow) and return its id.

    It is read, changed and written whole, since the reference does not say whether PUT keeps what is left out.

    >>> TechFlowUpdateWorkflowOperator(task_id="rename", workflow_id="wf_123", name="Weekly report")

    :param workflow_id: its id
    :param name: the new name; None keeps the old one
    :param description: the new description; None keeps the old one
    :param triggers: the new triggers; None keeps the old ones
    :raises TechFlowError: a call failed; `InvalidParameterError` when nothing is to be changed
    """

    template_fields: Sequence[str] = (*UPDATE_FIELDS, *TechFlowOperator.template_fields)

    checks: ClassVar[Checks] = TechFlowOperator.checks | {
        "workflow_id": as_id,
        "name": optional(as_text, blank=False),
        "description": as_description,
        "triggers": optional(as_triggers, blank=False),
    }

    def __init__(
        self,
        *,
        workflow_id: Text,
        name: Text | None = None,
        description: Text | None = None,
        triggers: Triggers | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.workflow_id = workflow_id
        self.name = name
        self.description = description
        self.triggers = triggers
        check_plain(self)

    def execute(self, context: Context) -> str:
        """Update the workflow."""
        workflow = self.hook.update_workflow(*(read(self, each) for each in UPDATE_FIELDS))
        log.info("Updated workflow %s", workflow.id)
        return storable(workflow.id)


class TechFlowDeleteWorkflowOperator(TechFlowOperator):
    """Delete a workflow permanently (Delete Workflow).

    >>> TechFlowDeleteWorkflowOperator(task_id="delete", workflow_id="wf_123")

    :param workflow_id: its id
    :param ignore_if_missing: whether a workflow that is gone already counts as deleted
    :raises TechFlowError: the call failed
    """

    template_fields: Sequence[str] = ("workflow_id", *TechFlowOperator.template_fields)

    checks: ClassVar[Checks] = TechFlowOperator.checks | {"workflow_id": as_id, "ignore_if_missing": as_flag}

    def __init__(self, *, workflow_id: Text, ignore_if_missing: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.workflow_id = workflow_id
        self.ignore_if_missing = ignore_if_missing
        check_plain(self)

    def execute(self, context: Context) -> None:
        """Delete the workflow."""
        workflow_id = read(self, "workflow_id")
        try:
            self.hook.delete_workflow(workflow_id)
        except NotFoundError:
            if not self.ignore_if_missing:
                raise
            log.info("Workflow %s was gone already", workflow_id)
        else:
            log.info("Deleted workflow %s", workflow_id)


class TechFlowListExecutionsOperator(TechFlowOperator):
    """List the execution history (List Executions) as dicts.

    >>> TechFlowListExecutionsOperator(task_id="list_failed", workflow_id="wf_123", status="failed")

    :param workflow_id: only those of this workflow
    :param status: only those with this status word, or in this state: `running`, `completed`, `failed`
    :param since: only those that have started at or after this time, a datetime or ISO 8601 text with a time zone
    :param limit: at most so many; the newest come first
    :raises TechFlowError: the call failed
    """

    template_fields: Sequence[str] = (*LIST_FIELDS, *TechFlowOperator.template_fields)

    checks: ClassVar[Checks] = TechFlowOperator.checks | {
        "workflow_id": optional(as_id),
        "status": optional(as_text),
        "since": as_instant,
        "limit": rendered(optional(as_count)),
    }

    def __init__(
        self,
        *,
        workflow_id: Text | None = None,
        status: Text | None = None,
        since: datetime | str | XComArg | None = None,
        limit: Text | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.workflow_id = workflow_id
        self.status = status
        self.since = since
        self.limit = limit
        check_plain(self)

    def execute(self, context: Context) -> list[dict[str, Json]]:
        """Return the executions."""
        workflow_id, status, since, limit = (read(self, each) for each in LIST_FIELDS)
        executions = newest(self.hook.list_executions(workflow_id, status), since, limit)
        log.info("TechFlow lists %d executions", len(executions))
        return [execution.to_dict() for execution in executions]
