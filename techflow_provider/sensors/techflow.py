"""Wait for `execution.completed` or `execution.failed`: in a worker slot, rescheduled, or in the triggerer."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from inspect import unwrap
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowNotFoundException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    PokeReturnValue,
    conf,
)

from techflow_provider.client.errors import (
    BudgetTimeoutError,
    ExecutionFailedError,
    ExecutionTimeoutError,
    InvalidParameterError,
    TechFlowError,
    log_or_raise,
)
from techflow_provider.client.history import DEFAULT_APPEAR_SECONDS, ExecutionSelector, ExecutionTracker
from techflow_provider.client.parsing import Json, quote
from techflow_provider.client.text import get_logger
from techflow_provider.client.values import as_flag, as_id, as_statuses, as_text, check_final, optional
from techflow_provider.compat import first_reschedule_date
from techflow_provider.deferral import (
    as_timedelta,
    check_ended,
    default_poll_interval,
    defer_until_ended,
    ended_execution,
)
from techflow_provider.links.techflow import TechFlowLink, keep_link, links
from techflow_provider.parameters import Check, check_plain, is_template, read

if TYPE_CHECKING:
    from airflow.sdk import BaseSensorOperator, Context, XComArg

    from techflow_provider.client.models import Execution
    from techflow_provider.hooks.techflow import TechFlowHook
    from techflow_provider.parameters import Text
else:
    # Type checkers don't know the class under this name.
    from airflow.providers.common.compat.sdk import BaseSensorOperator

# Airflow's own default of a sensor that pokes.
POKE_SECONDS = 60.0
# After its trigger has ended a task, `dag.test()` resumes it with this in place of the event, and drops its result.
ENDED_BY_TRIGGER = "success"
# How long a poke waits for a poll; there will be another poke anyway.
POLL_SECONDS = 10.0
# A rescheduled sensor takes the result of a poll that began so long before the poke; one that pokes waits for the next.
MAX_AGE_SECONDS = 5.0
LONG_AGO = datetime.min.replace(tzinfo=UTC)
IDS = ("execution_id", "workflow_id")


log: logging.Logger = get_logger(__name__)


def _instant(parameter: str, value: Any) -> datetime | None:
    """Return a datetime or None; a template renders it as text, in one of several spellings.

    :raises InvalidParameterError: it isn't a time
    """
    text = value.strip() if isinstance(value, str) else value
    if text is None or isinstance(text, datetime):
        return text
    try:
        return datetime.fromisoformat(text) if text else None
    except (TypeError, ValueError) as error:
        raise InvalidParameterError(parameter, quote(value), "an ISO 8601 time with a time zone") from error


def _select(execution_id: str | None, workflow_id: str | None, started_after: datetime | None) -> ExecutionSelector:
    if execution_id and workflow_id:
        raise InvalidParameterError("execution_id", f"{execution_id!r} and {workflow_id=}", "one of the two")
    return ExecutionSelector(execution_id, workflow_id, started_after)


class TechFlowExecutionSensor(BaseSensorOperator):
    """Wait until an execution has ended, and return it as a dict, the same in every mode (List Executions).

    Give `execution_id`, or `workflow_id` with `started_after` for the first execution of a workflow since then. A poll
    that doesn't reach TechFlow is retried; the wait ends with the reason when no further poll can succeed.

    >>> wait = TechFlowExecutionSensor(task_id="wait", execution_id="{{ ti.xcom_pull('start') }}", deferrable=True)

    :param execution_id: the execution, as `TechFlowTriggerWorkflowOperator` returns it
    :param workflow_id: the workflow whose next execution is waited for
    :param started_after: a datetime or ISO 8601 text, with a time zone, such as `"{{ data_interval_end }}"`
    :param allowed_statuses: the final statuses that are a success: `completed`, `failed`, or TechFlow's own words; any
        other one fails the task without a retry, which would see the same
    :param deferrable: whether to wait in the triggerer, where one poll serves all waits
    :param end_from_trigger: with `deferrable`, whether a success ends the task in the triggerer, without a worker and
        about a second sooner. Then no listener is called, and the result is not put into an XCom backend of your own; a
        task with outlets, or without a result, still ends in a worker
    :param poke_interval: timedelta or seconds between two polls; None takes 60 s, and `[techflow] poll_interval` when
        deferrable
    :param techflow_conn_id: connection of the type `techflow`
    :raises AirflowSensorTimeout: it had not ended within `timeout`
    :raises AirflowFailException: it ended with a status that is not allowed
    :raises TechFlowError: `ExecutionNotFoundError` when it did not appear in the history within two minutes, or what
        the call raises
    """

    template_fields: Sequence[str] = ("execution_id", "workflow_id", "started_after", "techflow_conn_id")
    ui_color = "#e6f1f2"
    operator_extra_links: Sequence[TechFlowLink] = (TechFlowLink(),)
    checks: ClassVar[Mapping[str, Check]] = {
        **dict.fromkeys(IDS, optional(as_id)),
        "started_after": _instant,
        "allowed_statuses": as_statuses,
        "deferrable": as_flag,
        "end_from_trigger": as_flag,
        "techflow_conn_id": as_text,
    }

    def __init__(
        self,
        *,
        execution_id: Text | None = None,
        workflow_id: Text | None = None,
        started_after: datetime | str | XComArg | None = None,
        allowed_statuses: Sequence[str] | str = ("completed",),
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        end_from_trigger: bool = False,
        poke_interval: timedelta | float | None = None,
        techflow_conn_id: str = "techflow_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=POKE_SECONDS if poke_interval is None else poke_interval, **kwargs)
        self.execution_id = execution_id
        self.workflow_id = workflow_id
        self.started_after = started_after
        self.allowed_statuses = allowed_statuses
        self.deferrable = deferrable
        self.end_from_trigger = end_from_trigger
        self.techflow_conn_id = techflow_conn_id
        self._own_interval = poke_interval is not None
        self.operator_extra_links = links(self)
        self._ended: Execution | None = None
        self._tracker: ExecutionTracker | None = None
        check_plain(self)
        self._check_ids()

    def _check_ids(self) -> None:
        """Check which ids are given, unless that is only known when they are rendered."""
        ids = (self.execution_id, self.workflow_id)
        if not any(isinstance(each, str) and is_template(each) for each in ids):
            # An output of another task is not empty.
            execution, workflow = (
                str(each) if is_template(each) else read(self, name) for name, each in zip(IDS, ids, strict=True)
            )
            started_after = LONG_AGO if is_template(self.started_after) else read(self, "started_after")
            _select(execution, workflow, started_after)

    @cached_property
    def hook(self) -> TechFlowHook:
        """The hook of the connection."""
        from techflow_provider.hooks.techflow import TechFlowHook

        return TechFlowHook(read(self, "techflow_conn_id"))

    @cached_property
    def _selector(self) -> ExecutionSelector:
        return _select(*(read(self, each) for each in (*IDS, "started_after")))

    @property
    def _statuses(self) -> tuple[str, ...]:
        statuses: tuple[str, ...] = read(self, "allowed_statuses")
        return statuses

    def execute(self, context: Context) -> Any:
        """Wait in the chosen mode; a deferrable sensor whose execution has ended already does not defer."""
        with self._skipping():
            check_final("allowed_statuses", self._statuses, self.hook.connection.settings.status_words)
            if self._selector.execution_id:
                keep_link(self.hook, self._selector.execution_id)
            if not self.deferrable:
                # Unwrapped, or Airflow 2.11 warns at every poke that execute is called from outside a task.
                return unwrap(BaseSensorOperator.execute)(self, context)
            execution = self._poll(ExecutionTracker(self._selector))
            return self._defer() if execution is None else self._finish(execution)

    def poke(self, context: Context) -> bool | PokeReturnValue:
        """Poll once."""
        if self._tracker is None:
            first = first_reschedule_date(context) if self.mode == "reschedule" else None
            waited = (datetime.now(UTC) - first).total_seconds() if first else 0.0
            self._tracker = ExecutionTracker(self._selector, max(0.0, DEFAULT_APPEAR_SECONDS - waited))
        max_age_seconds = MAX_AGE_SECONDS if self.mode == "reschedule" else 0.0
        # Others poll for the execution until the next poke.
        keep_seconds = 60.0 + 2 * self.poke_interval
        execution = self._poll(self._tracker, POLL_SECONDS, max_age_seconds=max_age_seconds, keep_seconds=keep_seconds)
        return False if execution is None else PokeReturnValue(is_done=True, xcom_value=self._finish(execution))

    def _get_next_poke_interval(self, *args: Any, **kwargs: Any) -> float:
        """Return how long Airflow sleeps before the next poke; a sensor that pokes sleeps until a webhook arrives."""
        seconds: float = super()._get_next_poke_interval(*args, **kwargs)
        if self.mode == "reschedule":
            return seconds
        self.hook.sleep_until_woken(seconds)
        return 0.0

    def _poll(self, tracker: ExecutionTracker, within_seconds: float = 0, **terms: float) -> Execution | None:
        try:
            history = self.hook.poll_history(within_seconds, tracker.history_filter, **terms)
            execution = tracker.update(history, time.monotonic())
        except BudgetTimeoutError as error:
            log.info("No poll this time: %s", error)
            return None
        except TechFlowError as error:
            log_or_raise(error, log.warning)
            return None
        if execution is None:
            log.info("Waiting for %s to finish: %s", self._selector, tracker.last_seen)
        return execution

    def _defer(self) -> None:
        # What Airflow only does for a worker's success: events of outlets, and leaving a result out.
        in_trigger = self.end_from_trigger and self.do_xcom_push and not self.outlets
        defer_until_ended(
            self,
            self.hook.techflow_conn_id,
            self._selector,
            poll_interval=self.poke_interval if self._own_interval else default_poll_interval(),
            timeout=as_timedelta("timeout", self.timeout),
            success_statuses=self._statuses if in_trigger else None,
        )

    def execute_complete(self, context: Context, event: Any) -> dict[str, Json]:
        """Resume after the trigger: return the execution, or fail as the wait in a worker would."""
        with self._skipping():
            if event == ENDED_BY_TRIGGER:
                return self._finish(self.hook.get_conn().executions.wait(self._selector))
            try:
                return self._finish(ended_execution(self, event, timedelta(seconds=self.timeout)))
            except ExecutionTimeoutError as error:
                raise AirflowSensorTimeout(str(error)) from error

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Return the execution's facets for OpenLineage."""
        from techflow_provider.lineage import execution_lineage

        return execution_lineage(self.hook, self._ended)

    def _finish(self, execution: Execution) -> dict[str, Json]:
        self._ended = execution
        keep_link(self.hook, execution.id, execution.workflow_id, execution.status)
        try:
            check_ended(execution, self._statuses)
        except ExecutionFailedError as error:
            raise AirflowFailException(str(error)) from error
        log.info("Execution %s ended with status %r", execution.id, execution.status)
        return execution.to_dict()

    @contextmanager
    def _skipping(self) -> Iterator[None]:
        """Skip the task where `soft_fail` or `never_fail` says so, in every mode; Airflow does so only in some."""
        never_fail = getattr(self, "never_fail", False)
        skipped: tuple[Any, ...] = ()
        if self.soft_fail or never_fail:
            skipped = (AirflowSensorTimeout, AirflowTaskTimeout, AirflowFailException)
        if never_fail:
            skipped = (*skipped, AirflowNotFoundException, TechFlowError)
        try:
            yield
        except skipped as error:
            raise AirflowSkipException(str(error)) from error
