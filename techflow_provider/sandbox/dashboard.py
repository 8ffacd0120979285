"""The page of an execution, to which *Open in TechFlow* leads: it stands in for TechFlow's dashboard."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from importlib import resources
from string import Template

from techflow_provider.sandbox.messages import Object, Response
from techflow_provider.sandbox.state import Execution

PAGE = "execution.html"
REFRESH = '<meta http-equiv="refresh" content="2">'
HEADERS = {
    "content-type": "text/html; charset=utf-8",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
}


def execution_page(execution_id: str, executions: Iterable[Execution], workflows: Iterable[Object]) -> Response:
    """Return the page of an execution; it reloads itself until the execution has finished.

    :raises KeyError: no execution has this id
    """
    found = {each.id: each for each in executions}[execution_id]
    name = next((str(each["name"]) for each in workflows if each["id"] == found.workflow_id), "deleted")
    ended = found.finished_at
    seconds = f", after {(ended - found.started_at).total_seconds():.1f} s" if ended else ""
    shown = {
        "id": found.id,
        "state": found.status,
        "status": found.status,
        "workflow": f"{name} ({found.workflow_id})",
        "started": f"{found.started_at:%Y-%m-%d %H:%M:%S} UTC",
        "finished": f"{ended:%Y-%m-%d %H:%M:%S} UTC{seconds}" if ended else "not yet",
        "error": found.error or "none",
        "payload": "none" if found.payload is None else json.dumps(found.payload, indent=2, ensure_ascii=False),
    }
    template = Template(resources.files(__package__).joinpath(PAGE).read_text("utf-8"))
    page = template.substitute({key: escape(text) for key, text in shown.items()}, refresh="" if ended else REFRESH)
    return Response(200, page.encode(errors="replace"), HEADERS)
