"""What a sandbox serves outside TechFlow's base URL: its OpenAPI document, and the control API under `/_sandbox/`.

The control API is the sandbox's Python interface for other processes on this machine; it also has a page per execution.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import resources
from typing import TYPE_CHECKING, Any

from techflow_provider import __version__
from techflow_provider.sandbox.dashboard import execution_page
from techflow_provider.sandbox.faults import Fault
from techflow_provider.sandbox.messages import PREFIX, ApiError, Object, Request, Response, json_response, read_body
from techflow_provider.sandbox.settings import check, from_json
from techflow_provider.sandbox.state import Plan
from techflow_provider.sandbox.webhooks import Webhooks

if TYPE_CHECKING:
    from techflow_provider.sandbox.sandbox import Sandbox

CONTROL_PREFIX = "/_sandbox/"
DOCUMENT = "openapi.json"


def document() -> Object:
    """Return TechFlow's seven calls as an OpenAPI 3.1 document, for a sandbox with default settings.

    The server's URL is relative, so it is right for every address under which a client reaches the sandbox.
    """
    parts = json.loads(resources.files(__package__).joinpath(DOCUMENT).read_text("utf-8"))
    return {**parts, "info": {**parts["info"], "version": __version__}, "servers": [{"url": PREFIX}]}


def is_special(request: Request) -> bool:
    """Whether a request is for this module."""
    return request.target.startswith(CONTROL_PREFIX) or (request.method, request.target) == ("GET", f"/{DOCUMENT}")


def respond(sandbox: Sandbox, request: Request) -> Response:
    """Act on a request and return the response.

    :raises ApiError: the request is rejected
    :raises SettingError: a part of its body is invalid
    :raises KeyError: what it names doesn't exist
    """
    found = _act(sandbox, request) if request.target.startswith(CONTROL_PREFIX) else document()
    return found if isinstance(found, Response) else json_response(found)


def _act(sandbox: Sandbox, request: Request) -> Any:  # noqa: C901, PLR0911, PLR0912  # one case per call
    """Return what is sent as JSON, or a page."""
    if not request.local:
        raise ApiError(403, "the control API is only available on this machine, as localhost, and not to web pages")
    parts = request.target.partition("?")[0].removeprefix(CONTROL_PREFIX).split("/")
    fields = read_body(request) or {}
    match request.method, parts:
        case "GET", ["state"]:
            return _state(sandbox)
        case "GET", ["requests"]:
            return {"requests": sandbox.requests}
        case "GET", ["stats"]:
            names = ("method", "path", "status", "count")
            return {
                "count": sandbox.count(),
                "requests": [dict(zip(names, row, strict=True)) for row in sandbox.counts()],
            }
        case "POST", ["faults"]:
            return {"fault": sandbox.faults.add(from_json(Fault, fields))}
        case "DELETE", ["faults"]:
            sandbox.faults.clear()
            return {"faults": []}
        case "POST", ["webhooks"]:
            sandbox.webhooks = from_json(Webhooks, fields)
            return {"events": sandbox.webhooks.events}
        case "DELETE", ["webhooks"]:
            sandbox.webhooks = None
            return {"events": []}
        case "GET", ["deliveries"]:
            return {"deliveries": sandbox.deliveries}
        case "POST", ["plan"]:
            workflow_id: Any = fields.pop("workflow_id", None)
            check("workflow_id", workflow_id, str)
            plan = from_json(Plan, fields)
            sandbox.plan(workflow_id, **asdict(plan))
            return {"workflow_id": workflow_id, "plan": plan}
        case "GET", ["executions", execution_id]:
            return execution_page(execution_id, sandbox.executions, sandbox.workflows)
        case "POST", ["executions", execution_id, "finish"]:
            plan = from_json(Plan, fields)
            return {"execution": sandbox.finish(execution_id, outcome=plan.outcome, error=plan.error)}
        case "POST", ["reset"]:
            sandbox.reset()
            return _state(sandbox)
    raise ApiError(404, f"the control API has no call {request.method} {request.path}")


def _state(sandbox: Sandbox) -> dict[str, Any]:
    return {
        "now": sandbox.clock.now(),
        "workflows": sandbox.workflows,
        "executions": sandbox.executions,
        "events": sandbox.events,
        "faults": sandbox.faults.active(),
    }
