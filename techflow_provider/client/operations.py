"""What a user can ask of TechFlow, in the words of the vendor's own SDK.

Each method is a flow over `IO`: awaited, it serves `AsyncClient`; `Client` runs it at once. Some take more than one
call: starting an execution and learning its id, finding one, waiting for one, changing a workflow.
"""

from __future__ import annotations

import builtins
import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from techflow_provider.client import calls
from techflow_provider.client.errors import (
    AmbiguousExecutionError,
    AmbiguousWorkflowError,
    ExecutionNotFoundError,
    ExecutionTimeoutError,
    InvalidParameterError,
    TechFlowError,
    log_or_raise,
)
from techflow_provider.client.flow import FlowContext, exchange
from techflow_provider.client.history import (
    ExecutionSelector,
    ExecutionTracker,
    History,
    select,
    select_workflows,
)
from techflow_provider.client.models import Execution, Workflow
from techflow_provider.client.paging import collect
from techflow_provider.client.parsing import Json, quote, set_fields
from techflow_provider.client.reading import (
    DEFAULT_POLL_INTERVAL_SECONDS,
    PollMemory,
    ReadTerms,
    read_history,
    sleep_until_woken,
)
from techflow_provider.client.retry import backoff_seconds
from techflow_provider.client.settings import check_positive
from techflow_provider.client.text import get_logger
from techflow_provider.client.values import Id, Payload, as_id, as_payload, as_text, suggestion

log: logging.Logger = get_logger(__name__)

# An HTTP date has no fractions, and a history entry may be written shortly before the response is sent.
SERVER_CLOCK_TOLERANCE = timedelta(seconds=2)
# How often, and how far apart, a list is read for something whose creation returned no id.
LOOKUPS = 6
LOOKUP_INTERVAL_SECONDS = 2.0


class _Operations:
    """What users ask for, by calls that run in a context.

    :param context: what the calls run with
    """

    def __init__(self, context: FlowContext) -> None:
        self._context = context


class AsyncWorkflows(_Operations):
    """Workflows. Every method raises `TechFlowError` in one of its kinds."""

    async def list(self) -> builtins.list[Workflow]:
        """Return all workflows (List Workflows)."""
        return await collect(calls.list_workflows(), self._context)

    async def named(self, name: Id) -> Workflow:
        """Return the one workflow of a name (List Workflows).

        :raises TechFlowError: `InvalidParameterError` when there is none, or several
        """
        listed = await self.list()
        found = only_named("workflow_name", name, select_workflows(listed, None, name))
        if found is None:
            names = sorted({each.name for each in listed if each.name})
            expected = f"the name of a workflow (TechFlow lists {', '.join(names[:10]) or 'none'})"
            raise InvalidParameterError("workflow_name", quote(name) + suggestion(str(name), names), expected)
        return found

    async def get(self, workflow_id: Id) -> Workflow:
        """Return one workflow (Get Workflow)."""
        return await exchange(calls.get_workflow(workflow_id), self._context)

    async def create(
        self,
        name: Id,
        description: Id | None = None,
        triggers: Sequence[calls.Trigger] = (),
        known: Collection[str] | None = None,
    ) -> Workflow:
        """Create a workflow (Create Workflow). It isn't idempotent: each call creates one more, and none is retried.

        When the response is lost, the list of workflows is searched for the new one by its name (List Workflows).

        :param known: the ids of the workflows that had the name before; None when that is unknown
        :raises TechFlowError: `AmbiguousWorkflowError` when one may have been created but cannot be determined, or
            what the call raises when none was
        """
        name = as_text("name", name)
        call = calls.create_workflow(name, description, triggers, self._context.settings.names["workflow"])
        try:
            return await exchange(call, self._context)
        except TechFlowError as error:
            if error.had_no_effect:
                raise
            log.warning("The response is lost (%s): searching the list for the workflow %r", error, name)
            created = await self._find_created(name, known, error)
            if created is None:
                raise
            log.warning("Workflow %s is the one that was created: no other workflow of its name is new", created.id)
            return created

    async def ensure(
        self,
        name: Id,
        description: Id | None = None,
        triggers: Sequence[calls.Trigger] = (),
        if_exists: str = "create",
    ) -> Workflow:
        """Create a workflow, or use the one that has its name (List, Create and Update Workflow).

        :param if_exists: what to do about that one: `create` another, `return` it, `update` it, or `fail`
        :raises TechFlowError: as `create`; `InvalidParameterError` when several have the name and one is meant
        """
        named = select_workflows(await self.list(), None, name)
        existing = None if if_exists == "create" else only_named("name", name, named)
        if existing is None:
            # Comparing with these shows which one is new when the response to the creation is lost.
            workflow = await self.create(name, description, triggers, [each.id for each in named])
        elif if_exists == "fail":
            raise InvalidParameterError("name", f"{name!r}, the name of {existing.id}", "a name that is not taken")
        else:
            is_update = if_exists == "update"
            workflow = await self.update(existing.id, name, description, triggers) if is_update else existing
        result = "Created" if existing is None else "Updated" if if_exists == "update" else "Found"
        log.info("%s workflow %s (%s)", result, workflow.id, name)
        return workflow

    async def _find_created(self, name: str, known: Collection[str] | None, lost: TechFlowError) -> Workflow | None:
        """Return the one new workflow of a name, or None when there is none after several lookups.

        :raises AmbiguousWorkflowError: there are several, or it is unknown which ones are new
        """
        for lookup in range(LOOKUPS):
            if lookup:
                await self._context.io.sleep(LOOKUP_INTERVAL_SECONDS)
            try:
                listed = await self.list()
            except TechFlowError as error:
                log.warning("The list of workflows can't be read: %s", error)
                return None
            found = [each for each in listed if each.name == name and each.id not in (known or ())]
            if found and (known is None or len(found) > 1):
                ids = ", ".join(each.id for each in found[:5])
                new = "may be new" if known is None else "are new"
                raise AmbiguousWorkflowError(name, f"{lost}, and of that name {ids} {new}") from lost
            if found:
                return found[0]
        return None

    async def update(
        self,
        workflow_id: Id,
        name: Id | None = None,
        description: Id | None = None,
        triggers: Sequence[calls.Trigger] | None = None,
    ) -> Workflow:
        """Change the given fields of a workflow (Get Workflow, Update Workflow).

        The workflow is read, changed and written whole, since a PUT may drop what it leaves out.

        :raises TechFlowError: `InvalidParameterError` before anything is sent, or what the two calls raise
        """
        given = {"name": name, "description": description, "triggers": triggers}
        if all(value is None for value in given.values()):
            raise InvalidParameterError("name, description, triggers", "none of them", "at least one to change")
        checked = calls.workflow_fields("unchanged" if name is None else name, description, triggers or ())
        changes = {key: value for key, value in checked.items() if given[key] is not None}
        workflow = await exchange(calls.get_workflow(workflow_id), self._context)
        names = self._context.settings.names["workflow"]
        changed = Workflow.read(set_fields(workflow.raw, {**workflow.known, **changes}, names), names)
        return await exchange(calls.replace_workflow(replace(changed, id=workflow.id), names), self._context)

    async def delete(self, workflow_id: Id) -> None:
        """Delete a workflow permanently (Delete Workflow)."""
        return await exchange(calls.delete_workflow(workflow_id), self._context)

    async def execute(
        self, workflow_id: Id, payload: Payload | None = None, within_seconds: float = math.inf
    ) -> Execution:
        """Start an execution (Trigger Execution). It isn't idempotent: each call starts one more.

        Its id comes from the response or, when that is empty, from the history.

        :param within_seconds: how long to wait for a slot in the rate budget; without one, nothing was started
        :raises TechFlowError: `BudgetTimeoutError` or `RateLimitError` when nothing was started for want of a slot,
            `AmbiguousExecutionError` when one was started but cannot be determined, or what the call raises
        """
        workflow_id, content = as_id("workflow_id", workflow_id), as_payload("payload", payload)
        starts, use_state = self._context.starts, self._context.io.use_state
        if starts is None:
            return await self._start(workflow_id, content, within_seconds)
        intent = await use_state(partial(starts.announce, workflow_id, content))
        try:
            execution = await self._start(workflow_id, content, within_seconds)
        except TechFlowError as error:
            await use_state(partial(starts.withdraw, intent, had_effect=not error.had_no_effect))
            raise
        await use_state(partial(starts.claim, intent, execution))
        return execution

    async def _start(self, workflow_id: str, payload: dict[str, Json] | None, within_seconds: float) -> Execution:
        context = replace(self._context, admission_seconds=within_seconds)
        start = await exchange(calls.execute_workflow(workflow_id, payload), context)
        if start.execution is not None:
            return start.execution
        return await self._find_started(workflow_id, start.sent_at - SERVER_CLOCK_TOLERANCE)

    async def _find_started(self, workflow_id: str, since: datetime) -> Execution:
        """Return the workflow's only execution that started since then, when two lookups in a row show it alone.

        :raises AmbiguousExecutionError: there is none after several lookups, or more than one
        """
        ids: list[str] = []
        for lookup in range(LOOKUPS):
            if lookup:
                await self._context.io.sleep(LOOKUP_INTERVAL_SECONDS)
            before = ids
            history = History(await collect(calls.list_executions(), self._context))
            found = history.started(workflow_id, since)
            ids = [each.id for each in found]
            if len(ids) > 1:
                reason = f"the response named no id, and {len(ids)} executions began since: {', '.join(ids[:5])}"
                raise AmbiguousExecutionError(workflow_id, reason)
            if ids and ids == before:
                log.warning("The response named no execution; %s is the only one that began since", ids[0])
                return found[0]
        seconds = (LOOKUPS - 1) * LOOKUP_INTERVAL_SECONDS
        reason = f"the response named no id, and none appeared in the history within {seconds:.0f} s"
        raise AmbiguousExecutionError(workflow_id, reason)


def only_named(parameter: str, name: Id, found: Sequence[Workflow]) -> Workflow | None:
    """Return the one workflow of a name, or None when there is none.

    :raises InvalidParameterError: there are several
    """
    if len(found) > 1:
        ids = ", ".join(workflow.id for workflow in found[:10])
        expected = "the name of one workflow at most: use the id of the one you mean, or rename or delete the others"
        raise InvalidParameterError(parameter, f"{len(found)} workflows named {name!r}: {ids}", expected)
    return found[0] if found else None


class AsyncExecutions(_Operations):
    """The execution history. Every method raises `TechFlowError` in one of its kinds."""

    async def list(self, workflow_id: Id | None = None, status: str | None = None) -> builtins.list[Execution]:
        """Return the execution history (List Executions), of one workflow or with one status when given."""
        words = self._context.settings.status_words
        return select(await collect(calls.list_executions(), self._context), workflow_id, status, words)

    async def get(self, execution_id: Id) -> Execution:
        """Return one execution, found in the history (List Executions).

        :raises TechFlowError: `ExecutionNotFoundError`, or what reading the history raises
        """
        selector = ExecutionSelector(as_id("execution_id", execution_id))
        execution = History(await self.list()).find(selector)
        if execution is None:
            raise ExecutionNotFoundError(str(selector), 0.0)
        return execution

    async def wait(
        self,
        selector: ExecutionSelector,
        interval_seconds: float = DEFAULT_POLL_INTERVAL_SECONDS,
        timeout_seconds: float | None = None,
    ) -> Execution:
        """Poll the history until an execution has reached a final status, and return it whichever that is.

        A poll that fails with a transient error doesn't end the wait.

        :raises TechFlowError: `ExecutionTimeoutError`, `ExecutionNotFoundError`, or an error that isn't transient
        """
        check_positive(interval_seconds=interval_seconds)
        if timeout_seconds is not None and not timeout_seconds >= 0:
            raise InvalidParameterError("timeout_seconds", quote(timeout_seconds), "a number from 0, or None")
        clock = self._context.clock
        began = clock()
        deadline = began + (math.inf if timeout_seconds is None else timeout_seconds)
        tracker, failures, memory = ExecutionTracker(selector), 0, PollMemory()
        seconds = interval_seconds
        while True:
            terms = ReadTerms.every(interval_seconds, deadline - clock())
            try:
                history = await read_history(self._context, tracker.history_filter, terms, memory)
                ended = tracker.update(history, clock())
                if ended is not None:
                    return ended
                failures, seconds = 0, interval_seconds
                if history.next_seconds is not None and history.next_seconds > interval_seconds / 2:
                    seconds = history.next_seconds
                if history.failure is not None:
                    log.warning("A part of the execution history can't be read: %s", history.failure)
            except TechFlowError as error:
                log_or_raise(error, log.warning)
                failures += 1
                seconds = backoff_seconds(interval_seconds, failures)
            left = deadline - clock()
            if left <= 0:
                raise ExecutionTimeoutError(str(selector), clock() - began, tracker.last_seen)
            await sleep_until_woken(self._context, min(seconds, left))
