"""Wait for `execution.completed` or `execution.failed`: in a worker slot, rescheduled, or in the triggerer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from inspect import unwrap
from typing import TYPE_CHECKING, Any

import pendulum
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from techflow_provider.client.errors import (
    BudgetTimeoutError,
    ExecutionFailedError,
    InvalidParameterError,
    TechFlowError,
    log_or_raise,
)
from techflow_provider.client.history import DEFAULT_APPEAR_SECONDS, ExecutionSelector, ExecutionTracker
from techflow_provider.client.parsing import Json, in_seconds, quote
from techflow_provider.compat import first_reschedule_date
from techflow_provider.deferral import (
    as_timedelta,
    check_ended,
    default_poll_interval,
    defer_until_ended,
    ended_execution,
)
from techflow_provider.links.techflow import TechFlowLink, keep_link

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from techflow_provider.client.models import Execution
    from techflow_provider.hooks.techflow import TechFlowHook

# Airflow's own default of a sensor that pokes.
POKE_SECONDS = 60.0
# `dag.test()` resumes a task that its trigger has ended with this, in place of the event, and drops its result.
ENDED_BY_TRIGGER = "success"
# A look from a worker does not wait longer than this for its slot in the budget: the next poke comes anyway.
LOOK_SECONDS = 10.0


class TechFlowExecutionSensor(BaseSensorOperator):
    """Wait until an execution has ended, and return it as a dict, the same in every mode (List Executions).

    Give `execution_id`, or `workflow_id` with `started_after` for the first execution of a workflow since then. A wait
    that looks and fails to reach TechFlow looks again; it ends with the reason when no look can succeed any more.

    :param execution_id: the execution, as `TechFlowTriggerWorkflowOperator` returns it
    :param workflow_id: the workflow whose next execution is waited for
    :param started_after: a datetime or ISO 8601 text, with a time zone, such as `"{{ data_interval_end }}"`
    :param allowed_statuses: the ends that are a success: `completed`, `failed`, or TechFlow's own words; any other end
        fails the task at once, since another try would see the same end
    :param deferrable: whether to wait in the triggerer, where one look serves all waits
    :param end_from_trigger: with `deferrable`, whether a success ends the task in the triggerer, without a worker: it
        is seen about a second sooner. Then no listener hears of it, and the result is not put into an XCom backend of
        your own; a task with outlets, or without a result, ends in a worker all the same
    :param poke_interval: timedelta or seconds between two looks; None takes 60 s, and `[techflow] poll_interval` when
        deferrable
    :param techflow_conn_id: connection of the type `techflow`
    :raises AirflowSensorTimeout: it had not ended within `timeout`
    :raises AirflowFailException: it ended with a status that is not allowed
    :raises TechFlowError: `ExecutionNotFoundError` when it did not appear in the history within two minutes, or what
        the call raises
    """

    template_fields: Sequence[str] = ("execution_id", "workflow_id", "started_after", "techflow_conn_id")
    ui_color = "#e6f1f2"
    operator_extra_links = (TechFlowLink(),)

    def __init__(
        self,
        *,
        execution_id: str | None = None,
        workflow_id: str | None = None,
        started_after: datetime | str | None = None,
        allowed_statuses: Sequence[str] = ("completed",),
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
        self._ended: Execution | None = None

    @cached_property
    def hook(self) -> TechFlowHook:
        """The hook of the connection."""
        from techflow_provider.hooks.techflow import TechFlowHook

        return TechFlowHook(self.techflow_conn_id)

    @cached_property
    def _target(self) -> ExecutionSelector:
        return ExecutionSelector(self.execution_id, self.workflow_id, _instant(self.started_after))

    def execute(self, context: Context) -> Any:
        """Wait in the way that was chosen; what is over already ends the task at once."""
        if self.execution_id:
            keep_link(self.hook, self.execution_id)
        if not self.deferrable:
            # Unwrapped, or Airflow 2.11 warns at every poke that execute is called from outside a task.
            return unwrap(BaseSensorOperator.execute)(self, context)
        over = self._poll(ExecutionTracker(self._target), within_seconds=0)
        if over is not None:
            return self._conclude(over)
        self._defer()
        return None

    def poke(self, context: Context) -> bool | PokeReturnValue:
        """Look once."""
        execution = self._poll(self._watch(context), LOOK_SECONDS)
        return False if execution is None else PokeReturnValue(is_done=True, xcom_value=self._conclude(execution))

    def _watch(self, context: Context) -> ExecutionTracker:
        if self.mode != "reschedule":
            return self._patient_watch
        first = first_reschedule_date(context)
        looked_for = (datetime.now(UTC) - first).total_seconds() if first else 0.0
        return ExecutionTracker(
            self._target, max(0.0, DEFAULT_APPEAR_SECONDS - looked_for) if first else DEFAULT_APPEAR_SECONDS
        )

    @cached_property
    def _patient_watch(self) -> ExecutionTracker:
        return ExecutionTracker(self._target)

    def _poll(self, watch: ExecutionTracker, within_seconds: float) -> Execution | None:
        try:
            execution = watch.update(self.hook.poll_history(within_seconds, watch.history_filter), time.monotonic())
        except BudgetTimeoutError as error:
            self.log.info("The rate budget is used up; looking again later: %s", error)
            return None
        except TechFlowError as error:
            log_or_raise(error, self.log.warning)
            return None
        self.log.info("%s: %s", self._target, watch.last_seen)
        return execution

    def _defer(self) -> None:
        interval = self.poke_interval if self._own_interval else default_poll_interval()
        # What Airflow does for a worker's success alone: events of outlets, and leaving a result out.
        in_trigger = self.end_from_trigger and self.do_xcom_push and not self.outlets
        defer_until_ended(
            self,
            self.techflow_conn_id,
            self._target,
            poll_interval=interval,
            timeout=as_timedelta("timeout", self.timeout),
            success_statuses=self.allowed_statuses if in_trigger else None,
        )

    def execute_complete(self, context: Context, event: Any) -> dict[str, Json]:
        """Resume after the trigger: return the execution, or fail as the wait in a worker would."""
        if event == ENDED_BY_TRIGGER:
            return self._conclude(self.hook.get_conn().executions.wait(self._target))
        try:
            return self._conclude(ended_execution(self, event, timedelta(seconds=self.timeout), _timeout_error))
        except (AirflowSensorTimeout, AirflowTaskTimeout) as error:
            if self._skips:
                raise AirflowSkipException(str(error)) from error
            raise

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Return what OpenLineage is told about the execution."""
        from techflow_provider.lineage import execution_lineage

        return execution_lineage(self.hook, self._ended)

    def _conclude(self, execution: Execution) -> dict[str, Json]:
        self._ended = execution
        keep_link(self.hook, execution.id, execution.workflow_id, execution.status)
        try:
            check_ended(execution, self.allowed_statuses)
        except ExecutionFailedError as error:
            kind = AirflowSkipException if self._skips else AirflowFailException
            raise kind(str(error)) from error
        self.log.info("Execution %s ended with status %r", execution.id, execution.status)
        return execution.to_dict()

    @property
    def _skips(self) -> bool:
        """Whether a wait that fails skips its task; Airflow looks at `soft_fail` in most places, not in all."""
        return bool(self.soft_fail or getattr(self, "never_fail", False))


def _instant(value: datetime | str | None) -> datetime | None:
    """Return `started_after` as a datetime; a template renders it as text, in one of several spellings.

    :raises InvalidParameterError: it is no time
    """
    if not isinstance(value, str):
        return value
    try:
        instant = pendulum.parse(value.strip(), exact=True, tz=None) if value.strip() else None
    except ValueError as error:
        raise InvalidParameterError("started_after", quote(value), "an ISO 8601 time with a time zone") from error
    if instant is None or isinstance(instant, datetime):
        return instant
    raise InvalidParameterError("started_after", quote(value), "an ISO 8601 time with a time zone")


def _timeout_error(wanted: str, timeout: timedelta, last_seen: str) -> AirflowSensorTimeout:
    return AirflowSensorTimeout(f"{wanted} did not end within {in_seconds(timeout.total_seconds())}: {last_seen}")
