"""Start a workflow, and wait for its execution if asked to."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import AirflowSkipException, conf

from techflow_provider.client.errors import (
    BudgetTimeoutError,
    ExecutionFailedError,
    InvalidParameterError,
    RateLimitError,
)
from techflow_provider.client.history import ExecutionSelector, has_status
from techflow_provider.client.parsing import Json
from techflow_provider.client.text import get_logger, storable
from techflow_provider.client.values import (
    as_choice,
    as_flag,
    as_id,
    as_payload,
    as_statuses,
    as_text,
    check_final,
    optional,
    rendered,
)
from techflow_provider.deferral import (
    DEFAULT_TIMEOUT,
    DEFERRAL_GRACE,
    Deferring,
    as_timedelta,
    check_ended,
    default_poll_interval,
    defer_until_ended,
    ended_executions,
    log_wait,
    shorter,
)
from techflow_provider.links.techflow import TechFlowLink, keep_links, links, push
from techflow_provider.operators.base import Checks, TechFlowOperator
from techflow_provider.parameters import check_one_given, check_plain, read
from techflow_provider.triggers.outcomes import ADMISSION_SECONDS, check_admitted, deadline_after

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

    from techflow_provider.client.models import Execution
    from techflow_provider.client.values import Payload
    from techflow_provider.parameters import Text
    from techflow_provider.submission.airflow import ExecutionStarter
    from techflow_provider.submission.matching import Match, NoMatch
    from techflow_provider.submission.model import OnAmbiguous, OnShared, Submission
    from techflow_provider.submission.recovery import LostStart, LostStartError

log: logging.Logger = get_logger(__name__)

# The XCom with the finished execution, and the part of a payload that says which task started it.
EXECUTION_KEY = "execution"
ANNOTATION = "airflow"
WORKFLOW = ("workflow_id", "workflow_name")


class TechFlowTriggerWorkflowOperator(Deferring, TechFlowOperator):
    """Start an execution of a workflow (Trigger Execution), wait for its completion if asked to, and return its id.

    The id is returned in every mode, and a task that waits has the finished execution as the XCom `execution`. TechFlow
    documents no call to cancel an execution: when the task is killed, the log names the one that keeps running. A task
    gets one execution, whatever is lost on the way: a retry joins the one that an earlier attempt has started, and
    starts another when that failed. The log and the XCom `techflow_start` show how the task got its execution.

    >>> TechFlowTriggerWorkflowOperator(task_id="run", workflow_id="wf_123", wait_for_completion=True, deferrable=True)

    :param workflow_id: the workflow's id
    :param workflow_name: its name instead, which no other workflow may have
    :param payload: a dict to send as JSON; the reference shows no body
    :param annotate_payload: whether `airflow` is added to the payload: an object with the task's `dag_id`, `run_id`,
        `task_id` and `map_index`, the same in each attempt
    :param wait_for_completion: whether the task lasts until the execution is over, and fails when that failed
    :param allowed_statuses: the final statuses that are a success: `completed`, `failed`, or TechFlow's own words
    :param skip_on_statuses: the final statuses with which the task is skipped
    :param deferrable: whether that wait takes place in the triggerer instead of a worker slot, as does the wait for a
        slot in the rate budget that is more than 5 seconds away
    :param poll_interval: timedelta or seconds between two polls; None takes `[techflow] poll_interval`
    :param timeout: timedelta or seconds to wait at most, seven days by default, for completion and for a slot in the
        rate budget in the triggerer; the execution keeps running after it
    :param reuse_running: whether to join the workflow's latest execution that is running, even one that another
        task or person started with another payload, and start one only when none is
    :param on_ambiguous: what to do when it is unknown whether a request started an execution, because its response is
        lost or the worker was killed: `adopt` it from the execution history, and start one when it isn't there; or
        `fail`, without retries
    :param on_shared: what to do when TechFlow responds with an execution that it has started for another task: `fail`,
        so that a retry starts one later, or `join` it
    :param reattach: whether a retry, or the task when it is cleared, joins an execution that is still running
    :raises TechFlowError: `ExecutionFailedError` when the execution ended with another status, `ExecutionTimeoutError`
        when it took longer than `timeout`, `AmbiguousExecutionError` when it cannot be determined what was started, or
        what the call raises
    """

    template_fields: Sequence[str] = (
        *(*WORKFLOW, "payload", "wait_for_completion", "poll_interval", "timeout"),
        *TechFlowOperator.template_fields,
    )
    template_ext: Sequence[str] = (".json",)
    template_fields_renderers: ClassVar[dict[str, str]] = {"payload": "json"}
    operator_extra_links: Sequence[TechFlowLink] = (TechFlowLink(),)

    checks: ClassVar[Checks] = TechFlowOperator.checks | {
        "workflow_id": optional(as_id),
        "workflow_name": optional(as_text),
        "payload": as_payload,
        "annotate_payload": as_flag,
        "wait_for_completion": rendered(as_flag),
        "allowed_statuses": as_statuses,
        "skip_on_statuses": optional(as_statuses),
        "deferrable": as_flag,
        "reuse_running": as_flag,
        "reattach": as_flag,
        "poll_interval": rendered(optional(as_timedelta)),
        "timeout": rendered(as_timedelta),
        "on_ambiguous": partial(as_choice, choices=("adopt", "fail")),
        "on_shared": partial(as_choice, choices=("fail", "join")),
    }

    def __init__(
        self,
        *,
        workflow_id: Text | None = None,
        workflow_name: Text | None = None,
        payload: Payload | XComArg | None = None,
        annotate_payload: bool = False,
        wait_for_completion: bool | str | XComArg = False,
        allowed_statuses: Sequence[str] | str = ("completed",),
        skip_on_statuses: Sequence[str] | str | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: timedelta | float | str | XComArg | None = None,
        timeout: timedelta | float | str | XComArg = DEFAULT_TIMEOUT,
        reuse_running: bool = False,
        on_ambiguous: OnAmbiguous = "adopt",
        on_shared: OnShared = "fail",
        reattach: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.workflow_id = workflow_id
        self.workflow_name = workflow_name
        self.payload = payload
        # Airflow would also read a file for each text inside of a payload that ends like this.
        self.template_ext = (".json",) if isinstance(payload, str) else ()
        self.annotate_payload = annotate_payload
        self.wait_for_completion = wait_for_completion
        self.allowed_statuses = allowed_statuses
        self.skip_on_statuses = skip_on_statuses
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.reuse_running = reuse_running
        self.on_ambiguous = on_ambiguous
        self.on_shared = on_shared
        self.reattach = reattach
        self.operator_extra_links = links(self)
        self._execution: Execution | None = None
        check_plain(self)
        check_one_given(self, WORKFLOW)

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
        from techflow_provider.submission.recovery import LostStartError

        if self._waits:
            # Whatever is wrong with the wait shows before anything is started.
            timeout, interval = self._bounds()
            for name, statuses in self._statuses.items():
                check_final(name, statuses, self.hook.connection.settings.status_words)
        starter = self._starter(context)
        try:
            submission = self._start(context, starter, **resumed)
        except LostStartError as lost:
            self._defer_search(starter, lost)
            raise
        execution = submission.execution
        push(context, starter.xcom_key, submission.to_dict())
        url = keep_links(self.hook, (execution.id, execution.workflow_id, execution.status))
        if not self._waits:
            if url:
                log.info("Execution %s in TechFlow: %s", execution.id, url)
            return storable(execution.id)
        if not execution.ended:
            selector, conn_id = ExecutionSelector(execution.id, execution.workflow_id), self.hook.techflow_conn_id
            log_wait(selector, interval, timeout, url, in_triggerer=self.deferrable)
            if self.deferrable:
                defer_until_ended(self, conn_id, selector, poll_interval=interval, timeout=timeout)
            execution = self.hook.get_conn().executions.wait(selector, interval, timeout.total_seconds())
        return self._complete(context, starter, execution)

    @cached_property
    def _waits(self) -> bool:
        waits: bool = read(self, "wait_for_completion")
        return waits

    @cached_property
    def _statuses(self) -> dict[str, tuple[str, ...]]:
        return {name: read(self, name) or () for name in ("allowed_statuses", "skip_on_statuses")}

    def _bounds(self) -> tuple[timedelta, float]:
        interval: timedelta | None = read(self, "poll_interval")
        return read(self, "timeout"), interval.total_seconds() if interval else default_poll_interval()

    def _find_workflow(self) -> str:
        """Return the id of the workflow, which may be given by its name (List Workflows)."""
        workflow_id: str | None = read(self, "workflow_id")
        if workflow_id and self.workflow_name is None:
            return workflow_id
        check_one_given(self, WORKFLOW)
        name = read(self, "workflow_name")
        if workflow_id:
            return workflow_id
        found = self.hook.get_conn().workflows.named(name)
        log.info("Workflow %s has the name %r", found.id, name)
        return found.id

    def _starter(self, context: Context) -> ExecutionStarter:
        from techflow_provider.submission.airflow import ExecutionStarter, history_lag, part_of, submitter_of
        from techflow_provider.submission.model import SubmissionPolicy

        is_own = self.task_id == context["ti"].task_id and isinstance(context.get("task", self), type(self))
        policy = SubmissionPolicy(
            self.on_ambiguous,
            self.reattach,
            self._waits,
            history_lag(),
            self.on_shared,
            defers_search=self.deferrable and is_own,
            reuse_running=self.reuse_running,
            accepted_statuses=tuple(chain(*self._statuses.values())) if self._waits else (),
        )
        submitter = submitter_of(context, "" if is_own else part_of(context, self.task_id))
        return ExecutionStarter(self.hook, submitter, policy, context, on_known=partial(setattr, self, "_execution"))

    def _start(
        self,
        context: Context,
        starter: ExecutionStarter,
        *,
        is_admitted: bool = False,
        searched: tuple[LostStart | None, Match | NoMatch | None] = (None, None),
    ) -> Submission:
        """Return the task's execution, or defer the task until there is a slot in the rate budget for its request."""
        lost, found = searched
        # A name may belong to another workflow by now.
        workflow_id = self._find_workflow() if lost is None else lost.record.workflow_id
        payload: dict[str, Json] | None = read(self, "payload")
        wanted = workflow_id, _annotated(payload, context) if self.annotate_payload else payload
        submission = None if lost is None or found is None else starter.finish_search(*wanted, lost, found)
        submission = submission or starter.resolve(*wanted)
        if submission is not None:
            return submission
        if not self.deferrable:
            return starter.send(*wanted)
        if not is_admitted and not self.hook.get_conn().budget.admit(ADMISSION_SECONDS).granted:
            self._defer_admission("others are waiting")
        try:
            return starter.send(*wanted, ADMISSION_SECONDS, 0 if lost is None else lost.sent)
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

        log.warning("%s: the triggerer searches the history for the execution", lost.start.reason)
        lag = starter.policy.history_lag_seconds
        self._defer(TechFlowSearchTrigger, "execute_searched", start=lost.start.to_dict(), history_lag=lag)

    def _defer(self, trigger: type[Any], method_name: str, **fields: Any) -> None:
        bound = shorter(self._bounds()[0], self.execution_timeout)
        waiting = trigger(self.hook.techflow_conn_id, deadline=deadline_after(bound), **fields)
        self.defer(trigger=waiting, method_name=method_name, timeout=bound + DEFERRAL_GRACE)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> str:
        """Resume after the trigger: return the execution's id, or fail as the wait in a worker would."""
        (execution,) = ended_executions(self, event, self._bounds()[0])
        return self._complete(context, self._starter(context), execution)

    def _complete(self, context: Context, starter: ExecutionStarter, execution: Execution) -> str:
        self._execution = execution
        workflow_id = execution.workflow_id or read(self, "workflow_id")
        keep_links(self.hook, (execution.id, workflow_id, execution.status))
        push(context, EXECUTION_KEY, execution.to_dict())
        allowed, skipped = self._statuses.values()
        is_skipped = bool(skipped) and has_status(execution, skipped)
        try:
            if not is_skipped:
                check_ended(execution, allowed, self.hook.connection.settings)
        except ExecutionFailedError:
            starter.discard(execution.id)
            raise
        report = starter.mark_done(execution.id)
        if report is not None:
            # Airflow deletes a task's XComs when it resumes it.
            push(context, starter.xcom_key, dict(report))
        if is_skipped:
            raise AirflowSkipException(f"execution {execution.id} ended with status {execution.status!r}")
        log.info("Execution %s %s", execution.id, execution.status)
        return storable(execution.id)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Return the execution's facet for OpenLineage."""
        from techflow_provider.lineage import execution_lineage

        return execution_lineage(self.hook, self._execution)

    def on_kill(self) -> None:
        """Log which execution keeps running."""
        if self._execution is not None:
            log.warning("Execution %s keeps running: TechFlow has no call to cancel it", self._execution.id)


def _annotated(payload: dict[str, Json] | None, context: Context) -> dict[str, Json]:
    """Return a payload that says which task sends it."""
    if payload and ANNOTATION in payload:
        expected = "a payload without it, since annotate_payload adds it"
        raise InvalidParameterError("payload", f"one with the key {ANNOTATION!r}", expected)
    # Without the number of the try: all attempts want the same execution.
    names = ("dag_id", "run_id", "task_id", "map_index")
    return {**(payload or {}), ANNOTATION: {name: getattr(context["ti"], name) for name in names}}
