"""The commands about workflows."""

from __future__ import annotations

from argparse import Namespace

from techflow_provider.client import Workflow
from techflow_provider.commands.report import Report, facts, listing
from techflow_provider.commands.session import open_client

COLUMNS = ("id", "name", "status", "description")


def list_workflows(args: Namespace) -> Report:
    """List workflows (List Workflows)."""
    with open_client(args.conn_id) as client:
        found = client.workflows.list()
    return listing(
        [
            each.to_dict()
            for each in found
            if args.status in (None, each.status) and args.workflow_name in (None, each.name)
        ],
        COLUMNS,
    )


def get_workflow(args: Namespace) -> Report:
    """Show a workflow (Get Workflow)."""
    with open_client(args.conn_id) as client:
        return _shown(client.workflows.get(args.workflow_id))


def create_workflow(args: Namespace) -> Report:
    """Create a workflow (Create Workflow)."""
    with open_client(args.conn_id) as client:
        return _shown(client.workflows.create(args.name, args.description, args.trigger or ()))


def update_workflow(args: Namespace) -> Report:
    """Change fields of a workflow (Update Workflow)."""
    with open_client(args.conn_id) as client:
        return _shown(
            client.workflows.update(args.workflow_id, args.workflow_name, args.description, args.trigger or None)
        )


def delete_workflow(args: Namespace) -> Report:
    """Delete a workflow for good (Delete Workflow)."""
    with open_client(args.conn_id) as client:
        client.workflows.delete(args.workflow_id)
    return Report({"id": args.workflow_id, "deleted": True}, f"deleted {args.workflow_id}")


def _shown(workflow: Workflow) -> Report:
    value = workflow.to_dict()
    return Report(value, facts({**dict.fromkeys(COLUMNS), **value}))
