"""Wait for `execution.completed` or `execution.failed`: in a worker slot, rescheduled, or in the triggerer."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
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
from techflow_provider.client.history import (
    DEFAULT_APPEAR_SECONDS,
    ExecutionSelector,
    ExecutionTracker,
    HistoryFilter,
    has_status,
)
from techflow_provider.client.text import get_logger
from techflow_provider.client.values import (
    as_flag,
    as_id,
    as_ids,
    as_instant,
    as_statuses,
    as_text,
    check_final,
    optional,
    rendered,
)
from techflow_provider.compat import first_reschedule_date
from techflow_provider.deferral import (
    Deferring,
    as_timedelta,
    check_ended,
    default_poll_interval,
    defer_until_ended,
    ended_executions,
    log_wait,
)
from techflow_provider.links.techflow import TechFlowLink, keep_links, links
from techflow_provider.parameters import Check, UsesConnection, check_one_given, check_plain, is_template, read

if TYPE_CHECKING:
    from airflow.sdk import BaseSensorOperator, Context, XComArg

    from techflow_provider.client.models import Execution
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
IDS = ("execution_id", "execution_ids", "workflow_id")
# A template renders these as text, and Airflow's own code expects seconds.
TIMES = ("poke_interval", "timeout")

log: logging.Logger = get_logger(__name__)


def _as_duration(parameter: str, value: Any) -> timedelta:
    """Return a timedelta, which Airflow lets be 0 here."""
    return timedelta(0) if value in (0, timedelta(0)) and value is not False else as_timedelta(parameter, value)


def _seconds(value: Any) -> Any:
    """Return an interval in seconds, as Airflow has it, or what is to be rendered and checked."""
    return value.total_seconds() if isinstance(value, timedelta) else value


class TechFlowExecutionSensor(Deferring, UsesConnection, BaseSensorOperator):
    """Wait until an execution has ended, and return it as a dict, the same in every mode (List Executions).

    Give `execution_id`, or `execution_ids` for several, which are returned as a list; or `workflow_id` with
    `started_after` for the first execution of a workflow since then, or with `latest_active` for the one that runs now.
    A poll that doesn't reach TechFlow is retried; the wait ends with the reason when no further poll can succeed.

    >>> wait = TechFlowExecutionSensor(task_id="wait", execution_id="{{ ti.xcom_pull('start') }}", deferrable=True)

    :param execution_id: the execution, as `TechFlowTriggerWorkflowOperator` returns it
    :param execution_ids: several executions, all of which are waited for
    :param fail_fast: with `execution_ids`, whether the task fails as soon as one of them has ended with a status that
        isn't allowed, and not only when all have ended
    :param workflow_id: the workflow whose execution is waited for
    :param started_after: a datetime or ISO 8601 text, with a time zone, such as `"{{ data_interval_end }}"`
    :param latest_active: with `workflow_id` alone, whether to wait for its latest execution that is running when the
        wait begins or, when none is, for the next one
    :param allowed_statuses: the final statuses that are a success: `completed`, `failed`, or TechFlow's own words; any
        other one fails the task without a retry, which would see the same
    :param deferrable: whether to wait in the triggerer, where one poll serves all waits
    :param end_from_trigger: with `deferrable` and `execution_id`, or `workflow_id` with `started_after`, whether a
        success ends the task in the triggerer, without a worker and about a second sooner. Then no listener is called,
        and the result is not put into an XCom backend of your own; a task with outlets, or without a result, still ends
        in a worker
    :param poke_interval: timedelta or seconds between two polls; None takes 60 s, and `[techflow] poll_interval` when
        deferrable
    :param timeout: timedelta or seconds to wait at most; None takes `[sensors] default_timeout`, seven days
    :param techflow_conn_id: connection of the type `techflow`
    :raises AirflowSensorTimeout: it had not ended within `timeout`
    :raises AirflowFailException: it ended with a status that is not allowed
    :raises TechFlowError: `ExecutionNotFoundError` when it did not appear in the history within two minutes, or what
        the call raises
    """

    template_fields: Sequence[str] = (*IDS, "started_after", *TIMES, "techflow_conn_id")
    ui_color = "#e6f1f2"
    operator_extra_links: Sequence[TechFlowLink] = (TechFlowLink(),)
    checks: ClassVar[Mapping[str, Check]] = {
        **dict.fromkeys(("execution_id", "workflow_id"), optional(as_id)),
        "execution_ids": optional(as_ids),
        "started_after": as_instant,
        **dict.fromkeys(("latest_active", "fail_fast"), as_flag),
        **dict.fromkeys(TIMES, rendered(_as_duration)),
        "allowed_statuses": as_statuses,
        "deferrable": as_flag,
        "end_from_trigger": as_flag,
        "techflow_conn_id": as_text,
    }

    def __init__(
        self,
        *,
        execution_id: Text | None = None,
        execution_ids: Sequence[Text] | str | XComArg | None = None,
        workflow_id: Text | None = None,
        started_after: datetime | str | XComArg | None = None,
        latest_active: bool = False,
        fail_fast: bool = False,
        allowed_statuses: Sequence[str] | str = ("completed",),
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        end_from_trigger: bool = False,
        poke_interval: timedelta | float | str | XComArg | None = None,
        timeout: timedelta | float | str | XComArg | None = None,
        techflow_conn_id: str = "techflow_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.poke_interval: Any = POKE_SECONDS if poke_interval is None else _seconds(poke_interval)
        # Airflow has set its default.
        self.timeout: Any = self.timeout if timeout is None else _seconds(timeout)
        self.execution_id = execution_id
        self.execution_ids = execution_ids
        self.workflow_id = workflow_id
        self.started_after = started_after
        self.latest_active = latest_active
        self.fail_fast = fail_fast
        self.allowed_statuses = allowed_statuses
        self.deferrable = deferrable
        self.end_from_trigger = end_from_trigger
        self.techflow_conn_id = techflow_conn_id
        self._own_interval = poke_interval is not None
        self.operator_extra_links = links(self)
        self._ended: dict[ExecutionSelector, Execution] = {}
        self._trackers: list[ExecutionTracker] = []
        check_plain(self)
        check_one_given(self, IDS)
        values = [getattr(self, name) for name in (*IDS, "started_after")]
        if not any(map(is_template, values)):
            self._select(datetime.now(UTC))

    def _select(self, began: datetime) -> list[ExecutionSelector]:
        """Return what is waited for.

        :param began: when the wait began
        """
        check_one_given(self, IDS)
        execution_id, execution_ids, workflow_id = (read(self, each) for each in IDS)
        instant = read(self, "started_after")
        if self.latest_active:
            if instant is not None or workflow_id is None:
                raise InvalidParameterError("latest_active", "True", "False, or workflow_id without started_after")
            instant = began
        ids = [execution_id] if execution_ids is None else execution_ids
        return [ExecutionSelector(each, workflow_id, instant, self.latest_active) for each in ids]

    @property
    def _statuses(self) -> tuple[str, ...]:
        statuses: tuple[str, ...] = read(self, "allowed_statuses")
        return statuses

    def execute(self, context: Context) -> Any:
        """Wait in the chosen mode; a deferrable sensor whose execution has ended already does not defer."""
        # Airflow may run the same object, or copies that share its attributes, in one run after the other.
        self._ended, self._trackers = {}, []
        with self._skipping():
            self._read_times()
            check_final("allowed_statuses", self._statuses, self.hook.connection.settings.status_words)
            if not self.deferrable:
                # Unwrapped, or Airflow 2.11 warns at every poke that execute is called from outside a task.
                return unwrap(BaseSensorOperator.execute)(self, context)
            self._begin(None)
            return self._finish() if self._poll() else self._defer()

    def _read_times(self) -> None:
        self.poke_interval, self.timeout = (read(self, each).total_seconds() for each in TIMES)

    def _begin(self, first: datetime | None) -> None:
        """Prepare the first poll of this process, and log what is waited for.

        :param first: the time of a rescheduled sensor's first poke
        """
        now = datetime.now(UTC)
        left_seconds = max(0.0, DEFAULT_APPEAR_SECONDS - (now - (first or now)).total_seconds())
        selectors = self._select(first or now)
        self._trackers = [ExecutionTracker(each, left_seconds) for each in selectors]
        url = None
        if read(self, "execution_id"):
            url = keep_links(self.hook, (selectors[0].execution_id or "", None, None))
        if first is None:
            timeout = timedelta(seconds=self.timeout)
            log_wait(", ".join(map(str, selectors)), self._interval(), timeout, url, in_triggerer=self.deferrable)

    def _interval(self) -> float:
        return self.poke_interval if self._own_interval or not self.deferrable else default_poll_interval()

    def poke(self, context: Context) -> bool | PokeReturnValue:
        """Poll once."""
        if not self._trackers:
            self._begin(first_reschedule_date(context) if self.mode == "reschedule" else None)
        max_age_seconds = MAX_AGE_SECONDS if self.mode == "reschedule" else 0.0
        # Others poll for the execution until the next poke.
        is_over = self._poll(POLL_SECONDS, max_age_seconds, keep_seconds=60.0 + 2 * self.poke_interval)
        return PokeReturnValue(is_done=True, xcom_value=self._finish()) if is_over else False

    def _get_next_poke_interval(self, *args: Any, **kwargs: Any) -> float:
        """Return how long Airflow sleeps before the next poke; a sensor that pokes sleeps until a webhook arrives."""
        from techflow_provider.client.reading import sleep_until_woken

        seconds: float = super()._get_next_poke_interval(*args, **kwargs)
        if self.mode == "reschedule":
            return seconds
        client = self.hook.get_conn()
        client.run(sleep_until_woken(client.context, seconds))
        return 0.0

    def _poll(self, within_seconds: float = 0.0, max_age_seconds: float = 0.0, keep_seconds: float = 0.0) -> bool:
        """Poll once, and return whether the wait is over; see `ReadTerms`."""
        from techflow_provider.client.reading import ReadTerms, read_history

        if not self._trackers:
            return True
        left = [each for each in self._trackers if each.selector not in self._ended]
        client, wanted = self.hook.get_conn(), HistoryFilter()
        for tracker in left:
            tracker.add_to(wanted)
        try:
            terms = ReadTerms(within_seconds, max_age_seconds=max_age_seconds, keep_seconds=keep_seconds)
            history = client.run(read_history(client.context, wanted, terms))
            for tracker in left:
                execution = tracker.update(history, time.monotonic())
                if execution is not None:
                    self._ended[tracker.selector] = execution
        except BudgetTimeoutError as error:
            log.info("No poll yet: the next slot in the rate budget is %.1f s away", error.next_slot_seconds)
        except TechFlowError as error:
            log_or_raise(error, log.warning)
        else:
            for tracker in left:
                if tracker.selector not in self._ended:
                    log.info("Waiting for %s to finish: %s", tracker.selector, tracker.last_seen)
        has_failed = self.fail_fast and not all(has_status(each, self._statuses) for each in self._ended.values())
        return has_failed or len(self._ended) == len(self._trackers)

    def _defer(self) -> None:
        # What Airflow only does for a worker's success: events of outlets, and leaving a result out.
        in_trigger = self.end_from_trigger and self.do_xcom_push and not self.outlets
        # What `dag.test()` resumes without its result is found again by its id or its time alone.
        in_trigger = in_trigger and self.execution_ids is None and not self.latest_active
        defer_until_ended(
            self,
            self.hook.techflow_conn_id,
            *(each.selector for each in self._trackers),
            poll_interval=self._interval(),
            timeout=timedelta(seconds=self.timeout),
            success_statuses=self._statuses if in_trigger else None,
            allowed_statuses=self._statuses if self.fail_fast else None,
        )

    def execute_complete(self, context: Context, event: Any) -> Any:
        """Resume after the trigger: return what was waited for, or fail as the wait in a worker would."""
        with self._skipping():
            self._read_times()
            if event == ENDED_BY_TRIGGER:
                (selector,) = self._select(datetime.now(UTC))
                self._ended = {selector: self.hook.get_conn().executions.wait(selector)}
                return self._finish()
            try:
                ended = ended_executions(self, event, timedelta(seconds=self.timeout))
            except ExecutionTimeoutError as error:
                raise AirflowSensorTimeout(str(error)) from error
            self._ended = {ExecutionSelector(each.id): each for each in ended}
            return self._finish()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Return the execution's facets for OpenLineage."""
        from techflow_provider.lineage import execution_lineage

        return execution_lineage(self.hook, next(iter(self._ended.values()), None))

    def _finish(self) -> Any:
        """Return the execution that has ended, or the list of them."""
        ids, ended = read(self, "execution_ids"), list(self._ended.values())
        if ids is not None:
            ended.sort(key=lambda each: ids.index(each.id))
        if ended:
            keep_links(self.hook, *((each.id, each.workflow_id, each.status) for each in ended))
        failures = []
        for execution in ended:
            try:
                check_ended(execution, self._statuses, self.hook.connection.settings)
                log.info("Execution %s ended with status %r", execution.id, execution.status)
            except ExecutionFailedError as error:
                failures.append(error)
        if failures:
            raise AirflowFailException("; ".join(map(str, failures))) from failures[0]
        return ended[0].to_dict() if ids is None else [each.to_dict() for each in ended]

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
