"""The commands about workflows, executions and the rate budget."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from pathlib import Path

import techflow_provider
from techflow_provider.client import ExecutionState, InvalidParameterError, Workflow
from techflow_provider.client.history import ExecutionSelector, newest, select_workflows
from techflow_provider.client.parsing import Json
from techflow_provider.client.text import get_logger, printable
from techflow_provider.client.values import as_payload
from techflow_provider.client.webhooks import WebhookSecret
from techflow_provider.commands.console import Report, open_client, read_connection
from techflow_provider.hooks.budget import open_budget

log: logging.Logger = get_logger(__name__)

WORKFLOW_COLUMNS = ("id", "name", "status", "description")
EXECUTION_COLUMNS = ("id", "workflow_id", "status", "started_at", "finished_at", "error")


def list_workflows(args: Namespace) -> Report:
    """List workflows (List Workflows)."""
    with open_client(args.conn_id) as client:
        workflows = client.workflows.list()
    rows = [each.to_dict() for each in select_workflows(workflows, args.status, args.workflow_name)]
    return Report(rows, WORKFLOW_COLUMNS)


def get_workflow(args: Namespace) -> Report:
    """Show a workflow (Get Workflow)."""
    with open_client(args.conn_id) as client:
        return _workflow_report(client.workflows.get(args.workflow_id))


def create_workflow(args: Namespace) -> Report:
    """Create a workflow (Create Workflow)."""
    with open_client(args.conn_id) as client:
        return _workflow_report(
            client.workflows.ensure(args.name, args.description, args.trigger or (), args.if_exists)
        )


def update_workflow(args: Namespace) -> Report:
    """Change fields of a workflow (Update Workflow)."""
    changes = (args.workflow_name, args.description, args.trigger or None)
    with open_client(args.conn_id) as client:
        return _workflow_report(client.workflows.update(args.workflow_id, *changes))


def delete_workflow(args: Namespace) -> Report:
    """Delete a workflow permanently (Delete Workflow), if the user is certain."""
    if not (args.yes or _confirm(f"Delete workflow {args.workflow_id} permanently?")):
        return Report({"id": args.workflow_id, "deleted": False}, text="nothing was deleted", code=1)
    with open_client(args.conn_id) as client:
        client.workflows.delete(args.workflow_id)
    return Report({"id": args.workflow_id, "deleted": True}, text=f"deleted {args.workflow_id}")


def _confirm(question: str) -> bool:
    """Ask the user.

    :raises InvalidParameterError: there is no terminal to ask at
    """
    if not sys.stdin.isatty():
        raise InvalidParameterError("--yes", "no terminal to ask at", "--yes where nobody can be asked")
    sys.stderr.write(printable(f"{question} [y/N] "))
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _workflow_report(workflow: Workflow) -> Report:
    return Report({**dict.fromkeys(WORKFLOW_COLUMNS), **workflow.to_dict()})


def list_executions(args: Namespace) -> Report:
    """List the execution history, newest first (List Executions)."""
    with open_client(args.conn_id) as client:
        executions = newest(client.executions.list(args.workflow_id, args.status), None, args.limit)
    return Report([each.to_dict() for each in executions], EXECUTION_COLUMNS)


def trigger(args: Namespace) -> Report:
    """Start an execution (Trigger Execution), and wait for its completion if requested."""
    payload = as_payload("--payload", args.payload)
    with open_client(args.conn_id) as client:
        execution = client.workflows.execute(args.workflow_id, payload)
        if args.wait and not execution.ended:
            log.info("started execution %s; waiting for its completion", execution.id)
            execution = client.executions.wait(
                ExecutionSelector(execution.id, execution.workflow_id), args.poll_interval, args.timeout
            )
    failed = execution.state is ExecutionState.FAILED
    return Report({**execution.to_dict(), "state": execution.state.value}, code=1 if failed else 0)


def secret(_: Namespace) -> Report:
    """Print a new secret for webhooks."""
    text = WebhookSecret.generate().text
    return Report({"webhook_secret": text}, text=text)


def write_examples(args: Namespace) -> Report:
    """Write the example DAGs into a folder; what is there is kept."""
    package, folder = Path(techflow_provider.__path__[0]), Path(args.folder)
    # The wheel contains them; in a checkout they are beside the package.
    source = next(filter(Path.is_dir, (package / "example_dags", package.parent / "dags_examples")))
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Json]] = []
    for example in sorted(source.glob("*.*")):
        target = folder / example.name
        rows.append({"file": str(target), "result": "kept, as it was there" if target.exists() else "written"})
        if not target.exists():
            target.write_bytes(example.read_bytes())
    return Report(rows, ("file", "result"))


def show_budget(args: Namespace) -> Report:
    """Show the state of the rate budget, without a request to TechFlow."""
    snapshot = open_budget(read_connection(args.conn_id)).snapshot()
    value = {
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
    return Report(value)
