"""Search in the triggerer for what a start has started whose response is lost; the worker claims it or starts again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from techflow_provider.client.errors import AmbiguousExecutionError, TechFlowError
from techflow_provider.client.models import Execution
from techflow_provider.client.parsing import DecodeError
from techflow_provider.hooks.state import open_state
from techflow_provider.hooks.techflow import TechFlowHook
from techflow_provider.polling.registry import shared_searches
from techflow_provider.state.store import StoreError
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.legacy import LegacyState
from techflow_provider.submission.matching import Match, NoMatch
from techflow_provider.submission.model import Attempt, SubmissionPolicy, Submitter
from techflow_provider.submission.recovery import LostStart, OtherAttemptError, search
from techflow_provider.triggers.outcomes import (
    error_of,
    event_of,
    first_event_delay,
    seconds_until,
    sleep_until,
    unreadable,
)


class TechFlowSearchTrigger(BaseTrigger):
    """Search the execution history for what a start has started; it claims nothing and changes nothing in TechFlow.

    >>> trigger = TechFlowSearchTrigger("techflow_default", start=start.to_dict(), history_lag=120.0)
    >>> self.defer(trigger=trigger, method_name="execute_searched")

    :param techflow_conn_id: connection of the type `techflow`
    :param start: the fields of a `LostStart`
    :param history_lag: how long a started execution may be missing from the history, in seconds
    :param deadline: ISO 8601, with a time zone: when to give up; None never
    """

    def __init__(
        self, techflow_conn_id: str, *, start: dict[str, Any], history_lag: float, deadline: str | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow leaves it unannotated
        self.techflow_conn_id = techflow_conn_id
        self.start = start
        self.history_lag = history_lag
        self.deadline = deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return all that another triggerer needs to continue."""
        names = ("techflow_conn_id", "start", "history_lag", "deadline")
        return f"{__name__}.TechFlowSearchTrigger", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event, when it is determined what was started, or cannot be."""
        began, delay = asyncio.get_running_loop().time(), first_event_delay()
        try:
            async with asyncio.timeout(seconds_until(self.deadline)):
                event = await self._search()
        except TimeoutError:
            reason = "the time to search for its execution is over"
            event = event_of(AmbiguousExecutionError(self.start["record"]["workflow_id"], reason))
        except (TechFlowError, StoreError) as error:
            event = event_of(error if isinstance(error, TechFlowError) else TechFlowError(str(error)))
        await sleep_until(began, delay)
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]  # as above

    async def _search(self) -> dict[str, Any]:
        start = LostStart.read(self.start)
        record = start.record
        connection = await TechFlowHook(self.techflow_conn_id).aget_techflow_connection()
        store, settings = open_state(connection).store, connection.settings
        name = record.submission_id.rpartition("#")[0]
        attempts = AttemptStore(store, settings.site, name, legacy=LegacyState(store, settings.account, name))
        submitter = Submitter(name, record.generation, attempt_id=record.attempt_id)
        policy = SubmissionPolicy(history_lag_seconds=self.history_lag)
        async with shared_searches(connection) as shared:
            context, polls = shared.client.context, shared.history
            attempt = Attempt(context, submitter, attempts, policy, record.workflow_id, polls=polls)
            try:
                found = await search(attempt, start)
            except OtherAttemptError:
                # The worker finds what the other one has recorded.
                return {"start": self.start, "found": None}
        return {"start": self.start, "found": _to_dict(found)}


def _to_dict(found: Match | NoMatch) -> dict[str, Any]:
    return {**asdict(found), "execution": found.execution.to_dict()} if isinstance(found, Match) else {}


def read_search(event: Any) -> tuple[LostStart, Match | NoMatch | None]:
    """Check the payload that a task is resumed with after a search; without a result the task begins anew.

    :raises TechFlowError: why there is none, or `UnexpectedResponseError` for another payload
    """
    fields: Mapping[str, Any] = event if isinstance(event, Mapping) else {}
    if not isinstance(fields.get("start"), Mapping):
        raise error_of(event)
    try:
        start, found = LostStart.read(fields["start"]), fields["found"]
        if not found:
            return start, None if found is None else NoMatch()
        return start, Match(**{**found, "execution": Execution.read(found["execution"])})
    except (DecodeError, TypeError, KeyError, StoreError) as error:
        raise unreadable(event) from error
