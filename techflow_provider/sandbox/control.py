"""The control API under `/_sandbox/`: the sandbox's Python surface for other processes, from this machine only."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from techflow_provider.sandbox.faults import Fault
from techflow_provider.sandbox.messages import Answer, ApiError, Json, Object, Request, json_answer, read_body
from techflow_provider.sandbox.settings import SettingError
from techflow_provider.sandbox.state import Plan
from techflow_provider.sandbox.webhooks import Webhooks

if TYPE_CHECKING:
    from techflow_provider.sandbox.sandbox import Sandbox

CONTROL_PREFIX = "/_sandbox/"


def control(sandbox: Sandbox, request: Request) -> Answer:
    """Carry out a request to the control API."""
    try:
        return json_answer(_route(sandbox, request))
    except ApiError as error:
        return error.answer()
    except SettingError as error:
        return ApiError(400, str(error)).answer()


def _route(sandbox: Sandbox, request: Request) -> Json:  # noqa: C901, PLR0911  # one case a call
    if not request.local:
        raise ApiError(403, "the control API answers requests from this machine only")
    parts = request.target.partition("?")[0].removeprefix(CONTROL_PREFIX).split("/")
    match request.method, parts:
        case "GET", ["state"]:
            return _state(sandbox)
        case "GET", ["requests"]:
            return {"requests": [_plain(record) for record in sandbox.requests]}
        case "GET", ["stats"]:
            return _stats(sandbox)
        case "POST", ["faults"]:
            return {"fault": sandbox.faults.add(Fault.read(_fields(request))).to_dict()}
        case "DELETE", ["faults"]:
            sandbox.faults.clear()
            return {"faults": []}
        case "POST", ["webhooks"]:
            sandbox.webhooks = Webhooks.read(_fields(request))
            return {"events": list(sandbox.webhooks.events)}
        case "DELETE", ["webhooks"]:
            sandbox.webhooks = None
            return {"events": []}
        case "GET", ["deliveries"]:
            return {"deliveries": [_plain(delivery) for delivery in sandbox.deliveries]}
        case "POST", ["plan"]:
            return _plan(sandbox, _fields(request))
        case "POST", ["executions", execution_id, "finish"]:
            return _finish(sandbox, execution_id, _fields(request))
        case "POST", ["reset"]:
            sandbox.reset()
            return _state(sandbox)
    raise ApiError(404, f"the control API has no call {request.method} {request.path}")


def _fields(request: Request) -> Object:
    return read_body(request) or {}


def _state(sandbox: Sandbox) -> Json:
    return {
        "now": sandbox.clock.now().isoformat(),
        "workflows": list(sandbox.workflows),
        "executions": [_plain(execution) for execution in sandbox.executions],
        "events": [_plain(event) for event in sandbox.events],
        "faults": [fault.to_dict() for fault in sandbox.faults.active()],
    }


def _stats(sandbox: Sandbox) -> Json:
    names = ("method", "path", "status", "count")
    rows: list[Json] = [dict(zip(names, row, strict=True)) for row in sandbox.counts()]
    return {"count": sandbox.count(), "requests": rows}


def _plan(sandbox: Sandbox, fields: Object) -> Json:
    workflow_id = fields.pop("workflow_id", None)
    if not isinstance(workflow_id, str):
        raise SettingError("workflow_id", workflow_id, "text")
    return {"workflow_id": workflow_id, "plan": _plain(sandbox.keep_plan(workflow_id, Plan.read(fields)))}


def _finish(sandbox: Sandbox, execution_id: str, fields: Object) -> Json:
    plan = Plan.read(fields)
    try:
        return {"execution": _plain(sandbox.finish(execution_id, outcome=plan.outcome, error=plan.error))}
    except KeyError as error:
        raise ApiError(404, f"there is no execution {execution_id!r}") from error


def _plain(value: Any) -> Object:
    """Return a dataclass instance as JSON."""
    return {name: _written(field) for name, field in asdict(value).items()}


def _written(value: Any) -> Json:
    result: Json = value.isoformat() if isinstance(value, datetime) else value
    return result
