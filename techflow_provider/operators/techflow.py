"""Operators for every documented call: workflows, and the execution of one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

from airflow.providers.common.compat.sdk import conf

from techflow_provider.client.errors import (
    BudgetTimeoutError,
    ExecutionFailedError,
    NotFoundError,
    RateLimitError,
)
from techflow_provider.client.parsing import Json
from techflow_provider.client.text import get_logger, storable
from techflow_provider.client.values import (
    as_choice,
    as_description,
    as_flag,
    as_id,
    as_payload,
    as_text,
    as_triggers,
    optional,
)
from techflow_provider.deferral import (
    DEFAULT_TIMEOUT,
    DEFERRAL_GRACE,
    as_timedelta,
    check_ended,
    default_poll_interval,
    defer_until_ended,
    ended_execution,
    shorter,
)
from techflow_provider.links.techflow import TechFlowLink, keep_link, links, push
from techflow_provider.parameters import Check, check_plain, read
from techflow_provider.triggers.outcomes import ADMISSION_SECONDS, check_admitted, deadline_after

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context, XComArg

    from techflow_provider.client.calls import Trigger
    from techflow_provider.client.models import Execution
    from techflow_provider.client.values import Payload
    from techflow_provider.hooks.techflow import TechFlowHook
    from techflow_provider.parameters import Text
    from techflow_provider.submission.airflow import ExecutionStarter
    from techflow_provider.submission.matching import Match, NoMatch
    from techflow_provider.submission.model import OnAmbiguous, OnShared, Submission
    from techflow_provider.submission.recovery import LostStart, LostStartError

    Triggers: TypeAlias = Sequence[Trigger] | str | XComArg
else:
    # Type checkers don't know the class under this name.
    from airflow.providers.common.compat.sdk import BaseOperator

log: logging.Logger = get_logger(__name__)

Checks: TypeAlias = dict[str, Check]
IfExists = Literal["create", "return", "update", "fail"]
IF_EXISTS: tuple[IfExists, ...] = get_args(IfExists)
# The parameters that the calls take, in their order.
CREATE_FIELDS = ("name", "description", "triggers", "if_exists")
UPDATE_FIELDS = ("workflow_id", "name", "description", "triggers")


class TechFlowOperator(BaseOperator):
    """What the operators have in common: a connection and its hook.

    :param techflow_conn_id: connection of the type `techflow`
    """

    template_fields: Sequence[str] = ("techflow_conn_id",)
    ui_color = "#dcecf7"

    checks: ClassVar[Checks] = {"techflow_conn_id": as_text}

    def __init__(self, *, techflow_conn_id: str = "techflow_default", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.techflow_conn_id = techflow_conn_id

    @cached_property
    def hook(self) -> TechFlowHook:
        """The hook of the connection."""
        from techflow_provider.hooks.techflow import TechFlowHook

        return TechFlowHook(read(self, "techflow_conn_id"))


class TechFlowListWorkflowsOperator(TechFlowOperator):
    """List workflows (List Workflows) as dicts, ready for `.expand()`.

    >>> TechFlowListWorkflowsOperator(task_id="list_active", status="active")

    :param status: only those with this status word, such as `active`
    :param name: only those with exactly this name
    :raises TechFlowError: the call failed
    """

    template_fields: Sequence[str] = ("status", "name", *TechFlowOperator.template_fields)

    checks: ClassVar[Checks] = TechFlowOperator.checks | {
        "status": optional(as_text),
        "name": optional(as_text),
    }

    def __init__(self, *, status: Text | None = None, name: Text | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.status = status
        self.name = name
        check_plain(self)

    def execute(self, context: Context) -> list[dict[str, Json]]:
        """Return the workflows."""
        workflows = self.hook.list_workflows(read(self, "status"), read(self, "name"))
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
    :raises TechFlowError: the call failed
    """

    template_fields: Sequence[str] = ("workflow_id", "status", *TechFlowOperator.template_fields)

    checks: ClassVar[Checks] = TechFlowOperator.checks | {
        "workflow_id": optional(as_id),
        "status": optional(as_text),
    }

    def __init__(self, *, workflow_id: Text | None = None, status: Text | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.workflow_id = workflow_id
        self.status = status
        check_plain(self)

    def execute(self, context: Context) -> list[dict[str, Json]]:
        """Return the executions."""
        executions = self.hook.list_executions(read(self, "workflow_id"), read(self, "status"))
        log.info("TechFlow lists %d executions", len(executions))
        return [execution.to_dict() for execution in executions]


class TechFlowTriggerWorkflowOperator(TechFlowOperator):
    """Start an execution of a workflow (Trigger Execution), wait for its completion if asked to, and return its id.

    The id is returned in every mode. TechFlow documents no call to cancel an execution: when the task is killed, the
    log names the one that keeps running. A task gets one execution, whatever is lost on the way: a retry joins the one
    that an earlier attempt has started, and starts another when that failed. The log and the XCom `techflow_start` show
    how the task got its execution.

    >>> TechFlowTriggerWorkflowOperator(task_id="run", workflow_id="wf_123", wait_for_completion=True, deferrable=True)

    :param workflow_id: the workflow's id
    :param payload: a dict to send as JSON; the reference shows no body
    :param wait_for_completion: whether the task lasts until the execution is over, and fails when that failed
    :param deferrable: whether that wait takes place in the triggerer instead of a worker slot, as does the wait for a
        slot in the rate budget that is more than 5 seconds away
    :param poll_interval: seconds between two polls; None takes `[techflow] poll_interval`
    :param timeout: timedelta or seconds to wait at most, for completion and for a slot in the rate budget in the
        triggerer; the execution keeps running after it
    :param on_ambiguous: what to do when it is unknown whether a request started an execution, because its response is
        lost or the worker was killed: `adopt` it from the execution history, and start one when it isn't there; or
        `fail`, without retries
    :param on_shared: what to do when TechFlow responds with an execution that it has started for another task: `fail`,
        so that a retry starts one later, or `join` it
    :param reattach: whether a retry, or the task when it is cleared, joins an execution that is still running
    :raises TechFlowError: `ExecutionFailedError` when the execution failed, `ExecutionTimeoutError` when it took
        longer than `timeout`, `AmbiguousExecutionError` when it cannot be determined what was started, or what the
        call raises
    """

    template_fields: Sequence[str] = ("workflow_id", "payload", *TechFlowOperator.template_fields)
    template_ext: Sequence[str] = (".json",)
    template_fields_renderers: ClassVar[dict[str, str]] = {"payload": "json"}
    operator_extra_links: Sequence[TechFlowLink] = (TechFlowLink(),)

    checks: ClassVar[Checks] = TechFlowOperator.checks | {
        "workflow_id": as_id,
        "payload": as_payload,
        "wait_for_completion": as_flag,
        "deferrable": as_flag,
        "reattach": as_flag,
        "poll_interval": optional(as_timedelta, blank=False),
        "timeout": as_timedelta,
        "on_ambiguous": partial(as_choice, choices=("adopt", "fail")),
        "on_shared": partial(as_choice, choices=("fail", "join")),
    }

    def __init__(
        self,
        *,
        workflow_id: Text,
        payload: Payload | XComArg | None = None,
        wait_for_completion: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float | None = None,
        timeout: timedelta | float = DEFAULT_TIMEOUT,
        on_ambiguous: OnAmbiguous = "adopt",
        on_shared: OnShared = "fail",
        reattach: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.workflow_id = workflow_id
        self.payload = payload
        # Airflow would also read a file for each text inside of a payload that ends like this.
        self.template_ext = (".json",) if isinstance(payload, str) else ()
        self.on_ambiguous = on_ambiguous
        self.on_shared = on_shared
        self.reattach = reattach
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.operator_extra_links = links(self)
        self._execution: Execution | None = None
        check_plain(self)

    def execute(self, context: Context) -> str:
        """Start the execution, and wait for its completion if asked to."""
        return self._run(context)

    def execute_admitted(self, context: Context, event: dict[str, Any]) -> str:
        """Resume when a slot in the rate budget is near: start the execution, and wait for it if asked to."""
        check_admitted(event)
        return self._run(context, is_admitted=True)

    def execute_searched(self, context: Context, event: dict[str, Any]) -> str:
        """Resume after a search for what was started: wait for it if asked to, or start again where there is none."""
        from techflow_provider.triggers.search import read_search

        return self._run(context, searched=read_search(event))

    def _run(self, context: Context, **resumed: Any) -> str:
        from techflow_provider.client.history import ExecutionSelector
        from techflow_provider.submission.recovery import LostStartError

        timeout, interval = self._bounds()
        starter = self._starter(context)
        try:
            submission = self._start(starter, **resumed)
        except LostStartError as lost:
            self._defer_search(starter, lost)
            raise
        self._execution = execution = submission.execution
        push(context, starter.xcom_key, submission.to_dict())
        keep_link(self.hook, execution.id, self._wanted[0], execution.status)
        if not self.wait_for_completion:
            return storable(execution.id)
        if not execution.ended:
            selector, conn_id = ExecutionSelector(execution.id, execution.workflow_id), self.hook.techflow_conn_id
            if self.deferrable:
                defer_until_ended(self, conn_id, selector, poll_interval=interval, timeout=timeout)
            execution = self.hook.get_conn().executions.wait(selector, interval, timeout.total_seconds())
        return self._complete(context, starter, execution)

    @cached_property
    def _wanted(self) -> tuple[str, dict[str, Json] | None]:
        return read(self, "workflow_id"), read(self, "payload")

    def _bounds(self) -> tuple[timedelta, float]:
        interval: timedelta | None = read(self, "poll_interval")
        return read(self, "timeout"), interval.total_seconds() if interval else default_poll_interval()

    def _starter(self, context: Context) -> ExecutionStarter:
        from techflow_provider.submission.airflow import ExecutionStarter, history_lag, part_of, submitter_of
        from techflow_provider.submission.model import SubmissionPolicy

        is_own = self.task_id == context["ti"].task_id and isinstance(context.get("task", self), type(self))
        policy = SubmissionPolicy(
            self.on_ambiguous,
            self.reattach,
            self.wait_for_completion,
            history_lag(),
            self.on_shared,
            defers_search=self.deferrable and is_own,
        )
        submitter = submitter_of(context, "" if is_own else part_of(context, self.task_id))
        return ExecutionStarter(self.hook, submitter, policy, context)

    def _start(
        self,
        starter: ExecutionStarter,
        *,
        is_admitted: bool = False,
        searched: tuple[LostStart | None, Match | NoMatch | None] = (None, None),
    ) -> Submission:
        """Return the task's execution, or defer the task until there is a slot in the rate budget for its request."""
        lost, found = searched
        submission = None if lost is None or found is None else starter.finish_search(*self._wanted, lost, found)
        submission = submission or starter.resolve(*self._wanted)
        if submission is not None:
            return submission
        if not self.deferrable:
            return starter.send(*self._wanted)
        if not is_admitted and not self.hook.is_admitted(ADMISSION_SECONDS):
            self._defer_admission("others are waiting")
        try:
            return starter.send(*self._wanted, ADMISSION_SECONDS, 0 if lost is None else lost.sent)
        except (BudgetTimeoutError, RateLimitError) as error:
            # Neither was carried out, so waiting for a slot again starts nothing twice.
            self._defer_admission(str(error))
            raise

    def _defer_admission(self, reason: str) -> None:
        from techflow_provider.triggers.admission import TechFlowAdmissionTrigger

        log.info("Waiting in the triggerer for a slot in the rate budget, not in this worker: %s", reason)
        self._defer(TechFlowAdmissionTrigger, "execute_admitted")

    def _defer_search(self, starter: ExecutionStarter, lost: LostStartError) -> None:
        from techflow_provider.triggers.search import TechFlowSearchTrigger

        log.warning("%s: the triggerer searches the history for the execution", lost)
        lag = starter.policy.history_lag_seconds
        self._defer(TechFlowSearchTrigger, "execute_searched", start=lost.start.to_dict(), history_lag=lag)

    def _defer(self, trigger: type[Any], method_name: str, **fields: Any) -> None:
        bound = shorter(self._bounds()[0], self.execution_timeout)
        waiting = trigger(self.hook.techflow_conn_id, deadline=deadline_after(bound), **fields)
        self.defer(trigger=waiting, method_name=method_name, timeout=bound + DEFERRAL_GRACE)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> str:
        """Resume after the trigger: return the execution's id, or fail as the wait in a worker would."""
        execution = ended_execution(self, event, self._bounds()[0])
        return self._complete(context, self._starter(context), execution)

    def _complete(self, context: Context, starter: ExecutionStarter, execution: Execution) -> str:
        self._execution = execution
        keep_link(self.hook, execution.id, self._wanted[0], execution.status)
        try:
            check_ended(execution)
        except ExecutionFailedError:
            starter.discard(execution.id)
            raise
        report = starter.mark_done(execution.id)
        if report is not None:
            # Airflow deletes a task's XComs when it resumes it.
            push(context, starter.xcom_key, dict(report))
        log.info("Execution %s completed", execution.id)
        return storable(execution.id)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Return the execution's facet for OpenLineage."""
        from techflow_provider.lineage import execution_lineage

        return execution_lineage(self.hook, self._execution)

    def on_kill(self) -> None:
        """Log which execution keeps running."""
        if self._execution is not None:
            log.warning("Execution %s keeps running: TechFlow has no call to cancel it", self._execution.id)
