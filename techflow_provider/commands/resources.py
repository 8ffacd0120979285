"""The commands about workflows, executions and the rate budget."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from techflow_provider.client import Execution, ExecutionState, Workflow
from techflow_provider.client.history import ExecutionSelector, select_workflows
from techflow_provider.client.parsing import Json
from techflow_provider.client.text import printable
from techflow_provider.client.values import as_payload
from techflow_provider.client.webhooks import WebhookSecret
from techflow_provider.commands.console import Report, key_values, open_client, read_connection, table
from techflow_provider.hooks.budget import open_budget
from techflow_provider.state.budget import RequestClass
from techflow_provider.state.snapshot import Snapshot

WORKFLOW_COLUMNS = ("id", "name", "status", "description")
EXECUTION_COLUMNS = ("id", "workflow_id", "status", "started_at", "finished_at", "error")


def list_workflows(args: Namespace) -> Report:
    """List workflows (List Workflows)."""
    with open_client(args.conn_id) as client:
        workflows = client.workflows.list()
    rows = [each.to_dict() for each in select_workflows(workflows, args.status, args.workflow_name)]
    return Report([*rows], table(rows, WORKFLOW_COLUMNS))


def get_workflow(args: Namespace) -> Report:
    """Show a workflow (Get Workflow)."""
    with open_client(args.conn_id) as client:
        return _workflow_report(client.workflows.get(args.workflow_id))


def create_workflow(args: Namespace) -> Report:
    """Create a workflow (Create Workflow)."""
    with open_client(args.conn_id) as client:
        return _workflow_report(client.workflows.create(args.name, args.description, args.trigger or ()))


def update_workflow(args: Namespace) -> Report:
    """Change fields of a workflow (Update Workflow)."""
    changes = (args.workflow_name, args.description, args.trigger or None)
    with open_client(args.conn_id) as client:
        return _workflow_report(client.workflows.update(args.workflow_id, *changes))


def delete_workflow(args: Namespace) -> Report:
    """Delete a workflow permanently (Delete Workflow)."""
    with open_client(args.conn_id) as client:
        client.workflows.delete(args.workflow_id)
    return Report({"id": args.workflow_id, "deleted": True}, f"deleted {args.workflow_id}")


def _workflow_report(workflow: Workflow) -> Report:
    value = workflow.to_dict()
    return Report(value, key_values({**dict.fromkeys(WORKFLOW_COLUMNS), **value}))


def list_executions(args: Namespace) -> Report:
    """List the execution history, newest first (List Executions)."""
    with open_client(args.conn_id) as client:
        executions = client.executions.list(args.workflow_id, args.status)
    executions.sort(key=lambda each: each.started_at.timestamp() if each.started_at else 0.0, reverse=True)
    rows = [each.to_dict() for each in executions[: args.limit]]
    return Report([*rows], table(rows, EXECUTION_COLUMNS))


def trigger(args: Namespace) -> Report:
    """Start an execution (Trigger Execution), and wait for its completion if requested."""
    payload = as_payload("--payload", args.payload)
    progress = Progress()
    with open_client(args.conn_id, progress.sleep) as client:
        execution = client.workflows.execute(args.workflow_id, payload)
        if args.wait and not execution.ended:
            progress.start(execution)
            try:
                execution = client.executions.wait(ExecutionSelector(execution.id), args.poll_interval, args.timeout)
            finally:
                progress.finish()
    value = {**execution.to_dict(), "state": execution.state.value}
    text = key_values({name: value.get(name) for name in EXECUTION_COLUMNS})
    return Report(value, text, 1 if execution.state is ExecutionState.FAILED else 0)


@dataclass
class Progress:
    """Shows on one line of a terminal how long an execution has been running; elsewhere, prints one line.

    :param stream: where to write
    :param clock: monotonic seconds
    :param wait: sleeps for some seconds
    """

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    clock: Callable[[], float] = time.monotonic
    wait: Callable[[float], None] = time.sleep
    _execution_id: str | None = None
    _started_at: float = 0.0

    def start(self, execution: Execution) -> None:
        """Begin to wait for an execution."""
        self._execution_id, self._started_at = printable(execution.id), self.clock()
        if not self.stream.isatty():
            self._write(f"started execution {self._execution_id}; waiting for its completion\n")

    def sleep(self, seconds: float) -> None:
        """Update the line, and wait."""
        if self._execution_id is not None and self.stream.isatty():
            elapsed = self.clock() - self._started_at
            self._write(f"\rexecution {self._execution_id} is still running after {elapsed:.0f} s ")
        self.wait(seconds)

    def finish(self) -> None:
        """End the line."""
        if self.stream.isatty():
            self._write("\n")

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def secret(_: Namespace) -> Report:
    """Print a new secret for webhooks."""
    text = WebhookSecret.generate().text
    return Report({"webhook_secret": text}, text)


def show_budget(args: Namespace) -> Report:
    """Show the state of the rate budget, without a request to TechFlow."""
    snapshot = open_budget(read_connection(args.conn_id)).snapshot()
    value: dict[str, Json] = {
        "requests_per_minute": snapshot.requests_per_minute,
        "uses_per_minute": snapshot.uses_per_minute,
        "burst": snapshot.burst,
        "learned": snapshot.learned,
        "stated_per_minute": snapshot.stated_per_minute,
        "used_last_minute": {each.value: count for each, count in snapshot.used.items()},
        "free_now": snapshot.free,
        "next_slot_seconds": {each.value: round(wait, 3) for each, wait in snapshot.next_slot_seconds.items()},
        "cooldown_seconds": round(snapshot.cooldown_seconds, 3),
        "waiting": snapshot.waiting,
        "store": snapshot.store,
        "shared": snapshot.shared,
    }
    return Report(value, key_values(_budget_lines(snapshot)))


def _budget_lines(snapshot: Snapshot) -> dict[str, object]:
    used, slots = snapshot.used, snapshot.next_slot_seconds
    commands, polls = RequestClass.COMMAND, RequestClass.POLL
    total = f"{sum(used.values())} of {snapshot.requests_per_minute}"
    return {
        "used in the last minute": f"{total}: commands {used.get(commands, 0)}, polls {used.get(polls, 0)}",
        "free now": f"{snapshot.free} of a burst of {snapshot.burst}",
        "next slot": f"commands {_when(slots[commands])}, polls {_when(slots[polls])}",
        "waiting": snapshot.waiting,
        "learned": snapshot.learned or "nothing that limits it",
        "cool-down after a 429": f"{snapshot.cooldown_seconds:.0f} s left" if snapshot.cooldown_seconds else "none",
        "stored in": snapshot.store,
        "shared": "yes" if snapshot.shared else "no: the store is unavailable, so this host uses a reduced limit",
    }


def _when(seconds: float) -> str:
    return f"in {seconds:.1f} s" if seconds > 0 else "now"
