"""What a user can ask of TechFlow, in the words of the vendor's own SDK.

Each operation is a conversation (see `exchange`), so it serves `Client` and `AsyncClient` alike. Some take more than
one call: starting an execution and learning its id, finding one, waiting for one, changing a workflow.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from techflow_provider.client import calls
from techflow_provider.client.errors import (
    AmbiguousExecutionError,
    AmbiguousWorkflowError,
    ExecutionNotFoundError,
    ExecutionTimeoutError,
    InvalidParameterError,
    TechFlowError,
    backoff_seconds,
    had_no_effect,
    log_or_raise,
)
from techflow_provider.client.flow import Flow, FlowContext, collect, exchange
from techflow_provider.client.history import ExecutionSelector, ExecutionTracker, History, HistoryFilter, select
from techflow_provider.client.json_stream import keep_all
from techflow_provider.client.models import Execution, Workflow
from techflow_provider.client.paging import ConditionalCache
from techflow_provider.client.parsing import Json, quote
from techflow_provider.client.settings import check_positive
from techflow_provider.state.budget import RequestClass

log = logging.getLogger(__name__)

# An HTTP date has no fractions, and a history may be written a little before the answer leaves.
SERVER_CLOCK_TOLERANCE = timedelta(seconds=2)
# How often, and how far apart, the history is read for an execution whose start was answered without an id.
DEFAULT_POLL_INTERVAL_SECONDS = 5.0
LONGEST_LOOK_SECONDS = 120.0
LOOKS = 6
LOOK_INTERVAL_SECONDS = 2.0


def list_workflows(context: FlowContext) -> Flow[list[Workflow]]:
    """Return all workflows (List Workflows)."""
    return collect(calls.list_workflows(), context)


def get_workflow(context: FlowContext, workflow_id: str) -> Flow[Workflow]:
    """Return one workflow (Get Workflow)."""
    return exchange(calls.get_workflow(workflow_id), context)


def create_workflow(
    context: FlowContext,
    name: str,
    description: str | None = None,
    triggers: Sequence[calls.Trigger] = (),
    known: Collection[str] | None = None,
) -> Flow[Workflow]:
    """Create a workflow (Create Workflow). It is not idempotent: each call creates one more, and none is sent twice.

    When the answer is lost, the workflow is looked for by its name (List Workflows).

    :param known: the ids of the workflows that had the name before; None when nobody has looked
    :raises TechFlowError: `AmbiguousWorkflowError` when one may have been created and can't be told, or what the call
        raises when none was
    """
    return _create(context, calls.create_workflow(name, description, triggers), name, known)


async def _create(
    context: FlowContext, call: calls.Call[Workflow], name: str, known: Collection[str] | None
) -> Workflow:
    try:
        return await exchange(call, context)
    except TechFlowError as error:
        if had_no_effect(error):
            raise
        log.warning("The answer is lost (%s): looking for the workflow %r in the list", error, name)
        created = await _find_created(context, name, known, error)
        if created is None:
            raise
        log.warning("Workflow %s is the one that was created: no other of its name is new", created.id)
        return created


async def _find_created(
    context: FlowContext, name: str, known: Collection[str] | None, lost: TechFlowError
) -> Workflow | None:
    """Return the one new workflow of a name, or None when there is none after some looks.

    :raises AmbiguousWorkflowError: there are several, or nobody knows which ones are new
    """
    for look in range(LOOKS):
        if look:
            await context.io.sleep(LOOK_INTERVAL_SECONDS)
        try:
            listed = await collect(calls.list_workflows(), context)
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


def update_workflow(
    context: FlowContext,
    workflow_id: str,
    name: str | None = None,
    description: str | None = None,
    triggers: Sequence[calls.Trigger] | None = None,
) -> Flow[Workflow]:
    """Change the fields of a workflow that are given (Get Workflow, Update Workflow).

    The workflow is read, changed and written whole, since PUT may drop what is left out.

    :raises TechFlowError: `InvalidParameterError` before anything is sent, or what the two calls raise
    """
    changes = _changes(name, description, triggers)
    return _write_changed(context, workflow_id, changes)


async def _write_changed(context: FlowContext, workflow_id: str, changes: dict[str, Json]) -> Workflow:
    workflow = await exchange(calls.get_workflow(workflow_id), context)
    changed = replace(Workflow.read({**workflow.to_dict(), **changes}), id=workflow.id)
    return await exchange(calls.replace_workflow(changed), context)


def _changes(name: str | None, description: str | None, triggers: Sequence[calls.Trigger] | None) -> dict[str, Json]:
    if name is None and description is None and triggers is None:
        raise InvalidParameterError("name, description, triggers", "none of them", "at least one to change")
    asked = calls.workflow_fields("kept" if name is None else name, description, triggers or ())
    given = {"name": name, "description": description, "triggers": triggers}
    return {key: value for key, value in asked.items() if given[key] is not None}


def delete_workflow(context: FlowContext, workflow_id: str) -> Flow[None]:
    """Delete a workflow for good (Delete Workflow)."""
    return exchange(calls.delete_workflow(workflow_id), context)


async def list_executions(
    context: FlowContext, workflow_id: str | None = None, status: str | None = None
) -> list[Execution]:
    """Return the execution history (List Executions), of one workflow or with one status when given."""
    history = await collect(calls.list_executions(), context)
    return select(history, workflow_id, status)


async def get_execution(context: FlowContext, execution_id: str) -> Execution:
    """Return one execution, found in the history (List Executions).

    :raises TechFlowError: `ExecutionNotFoundError`, or what reading the history raises
    """
    target = ExecutionSelector(execution_id)
    history = History(await collect(calls.list_executions(), context))
    execution = history.find(target)
    if execution is None:
        raise ExecutionNotFoundError(str(target), 0.0)
    return execution


async def wait_for_execution(
    context: FlowContext,
    target: ExecutionSelector,
    interval_seconds: float = DEFAULT_POLL_INTERVAL_SECONDS,
    timeout_seconds: float | None = None,
) -> Execution:
    """Read the history until an execution has ended, and return it whichever way it ended.

    A look that fails in passing does not end the wait.

    :raises TechFlowError: `ExecutionTimeoutError`, `ExecutionNotFoundError`, or what no further look would change
    """
    check_positive("interval_seconds", interval_seconds)
    if timeout_seconds is not None and not timeout_seconds >= 0:
        raise InvalidParameterError("timeout_seconds", quote(timeout_seconds), "a number from 0, or None")
    deadline = context.clock() + (float("inf") if timeout_seconds is None else timeout_seconds)
    began, failures, watch = context.clock(), 0, ExecutionTracker(target)
    while True:
        ended, failures = await _poll_for(watch, context, deadline, failures)
        if ended is not None:
            return ended
        left = deadline - context.clock()
        if left <= 0:
            raise ExecutionTimeoutError(str(target), context.clock() - began, watch.last_seen)
        await context.io.sleep(min(backoff_seconds(interval_seconds, failures), left))


async def _poll_for(
    watch: ExecutionTracker, context: FlowContext, deadline: float, failures: int
) -> tuple[Execution | None, int]:
    """Return the execution when it has ended, and how many looks in a row have failed by now."""
    try:
        history = await poll_history(context, deadline - context.clock(), watch.history_filter)
        return watch.update(history, context.clock()), 0
    except TechFlowError as error:
        log_or_raise(error, log.warning)
        return None, failures + 1


async def poll_history(
    context: FlowContext,
    within_seconds: float,
    interest: HistoryFilter | None = None,
    memory: ConditionalCache[Execution] | None = None,
) -> History:
    """Read the execution history as a wait does: after the commands, and within a time (List Executions).

    :param within_seconds: how long to wait for a slot in the budget, and for further tries
    :param interest: what is wanted of the history; the rest is left out, nothing without it
    :param memory: the pages of the last look; what a server says is unchanged since is left out, too
    """
    settings = replace(context.settings, deadline_seconds=min(max(within_seconds, 0.001), LONGEST_LOOK_SECONDS))
    call = calls.list_executions(RequestClass.POLL, interest.skips if interest else keep_all)
    return History(await collect(call, replace(context, settings=settings), memory))


async def start_execution(
    context: FlowContext, workflow_id: str, payload: Mapping[str, Json] | None = None, within_seconds: float = math.inf
) -> Execution:
    """Start an execution (Trigger Execution). It is not idempotent: each call starts one more.

    Its id comes from the answer or, where that is empty, from the history.

    :param within_seconds: how long to wait for a slot in the rate budget; when that is too short, nothing was started
    :raises TechFlowError: `BudgetTimeoutError` or `RateLimitError` when nothing was started for want of a slot,
        `AmbiguousExecutionError` when it was started and its id can't be told, or what the call raises
    """
    admission = replace(context, admission_seconds=within_seconds)
    start = await exchange(calls.execute_workflow(workflow_id, payload), admission)
    if start.execution is not None:
        return start.execution
    return await _find_started(context, workflow_id, start.sent_at - SERVER_CLOCK_TOLERANCE)


async def _find_started(context: FlowContext, workflow_id: str, since: datetime) -> Execution:
    """Return the one execution of the workflow that started since then, when two looks agree that it is the only one.

    :raises AmbiguousExecutionError: there is none after some looks, or more than one
    """
    found: list[Execution] = []
    for look in range(LOOKS):
        if look:
            await context.io.sleep(LOOK_INTERVAL_SECONDS)
        before = [each.id for each in found]
        found = History(await collect(calls.list_executions(), context)).started(workflow_id, since)
        ids = [each.id for each in found]
        if len(ids) > 1:
            facts = f"the answer named no id, and {len(ids)} executions began since: {', '.join(ids[:5])}"
            raise AmbiguousExecutionError(workflow_id, facts)
        if ids and ids == before:
            log.warning("The answer named no execution; %s is the only one that began since", ids[0])
            return found[0]
    seconds = (LOOKS - 1) * LOOK_INTERVAL_SECONDS
    facts = f"the answer named no id, and none appeared in the history within {seconds:.0f} s"
    raise AmbiguousExecutionError(workflow_id, facts)
