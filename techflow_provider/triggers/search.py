"""Search in the triggerer for what a start has started whose response is lost; the worker claims it or starts again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from techflow_provider.client.errors import AmbiguousExecutionError, TechFlowError, rebuild_error
from techflow_provider.client.models import Execution
from techflow_provider.client.parsing import DecodeError
from techflow_provider.hooks.state import open_state
from techflow_provider.hooks.techflow import TechFlowHook
from techflow_provider.polling.registry import shared_history
from techflow_provider.state.store import StoreError
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.matching import Match, NoMatch
from techflow_provider.submission.model import Attempt, Submission, SubmissionPolicy, Submitter
from techflow_provider.submission.records import AttemptRecord
from techflow_provider.submission.recovery import Found, LostResponse, OtherAttemptError, search
from techflow_provider.submission.reuse import LostStartError
from techflow_provider.submission.start import MAX_SENDS
from techflow_provider.triggers.outcomes import (
    FIRST_EVENT_SECONDS,
    WaitOutcome,
    event_of,
    seconds_until,
    sleep_until,
    unreadable,
)


@dataclass(frozen=True, slots=True)
class LostStart:
    """A start whose execution is searched for, as it crosses from a worker to the triggerer and back.

    :param submitter: the submitter's name
    :param record: the start's record
    :param loss: what happened to the response
    :param sent: how many requests were sent
    :param error: what the last one raised
    """

    submitter: str
    record: AttemptRecord
    loss: LostResponse
    sent: int = 0
    error: TechFlowError | None = None

    @classmethod
    def of(cls, submitter: Submitter, lost: LostStartError) -> LostStart:
        """Return what a start was interrupted with."""
        return cls(submitter.name, lost.record, lost.loss, lost.sent, lost.error)

    def to_dict(self) -> dict[str, Any]:
        """Return the start as JSON."""
        error = self.error and event_of(self.error)["error"]
        fields = {"record": self.record.to_dict(), "loss": asdict(self.loss), "error": error}
        return {"submitter": self.submitter, "sent": self.sent, **fields}

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> LostStart:
        """Read what a trigger or an event holds.

        :raises TypeError: it isn't a start
        :raises KeyError: a field is missing
        :raises StoreError: its record can't be read
        """
        error = value["error"] and rebuild_error(value["error"]["class"], value["error"]["args"])
        record, loss = AttemptRecord.read(value["record"], 0.0), LostResponse(**value["loss"])
        return cls(value["submitter"], record, loss, value["sent"], error)

    def check_sent(self, submission: Submission | None) -> None:
        """Check that another request may be sent, where those before had no effect.

        :raises TechFlowError: what the last request raised, since there were too many
        """
        if submission is None and self.sent >= MAX_SENDS and self.error is not None:
            raise self.error


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
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(seconds_until(self.deadline)):
                event = await self._search()
        except TimeoutError:
            reason = "the time to search for its execution is over"
            event = event_of(AmbiguousExecutionError(self.start["record"]["workflow_id"], reason))
        except (TechFlowError, StoreError) as error:
            event = event_of(error if isinstance(error, TechFlowError) else TechFlowError(str(error)))
        await sleep_until(began, FIRST_EVENT_SECONDS)
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]  # as above

    async def _search(self) -> dict[str, Any]:
        start = LostStart.read(self.start)
        record = start.record
        connection = await TechFlowHook(self.techflow_conn_id).aget_techflow_connection()
        store, settings = open_state(connection)[0], connection.settings
        former = ((settings.account, start.submitter),)
        attempts = AttemptStore(store, settings.site, start.submitter, former=former)
        submitter = Submitter(start.submitter, record.generation, attempts, attempt_id=record.attempt_id)
        policy = SubmissionPolicy(history_lag_seconds=self.history_lag)
        async with shared_history(connection) as shared:
            context = shared.client.context
            attempt = Attempt(context, submitter, policy, record.workflow_id, poll=shared.poll)
            try:
                found = await search(attempt, record, start.loss)
            except OtherAttemptError:
                # The worker finds what the other one has recorded.
                return {"start": self.start, "found": None}
        return {"start": self.start, "found": _to_dict(found)}


def _to_dict(found: Found) -> dict[str, Any]:
    if isinstance(found.match, NoMatch):
        return {"times": found.times}
    fields = {**asdict(found.match), "execution": found.match.execution.to_dict()}
    return {"times": found.times, "match": fields}


def read_search(event: Any) -> tuple[LostStart, Found | None]:
    """Check the payload that a task is resumed with after a search; without a result the task begins anew.

    :raises TechFlowError: why there is none, or `UnexpectedResponseError` for another payload
    """
    fields: Mapping[str, Any] = event if isinstance(event, Mapping) else {}
    if not isinstance(fields.get("start"), Mapping):
        raise WaitOutcome.from_event(event).error or unreadable(event)
    try:
        start, found = LostStart.read(fields["start"]), fields["found"]
        if found is None:
            return start, None
        if "match" not in found:
            return start, Found(NoMatch(), found["times"])
        match = {**found["match"], "execution": Execution.read(found["match"]["execution"])}
        return start, Found(Match(**match), found["times"])
    except (DecodeError, TypeError, KeyError, StoreError) as error:
        raise unreadable(event) from error
