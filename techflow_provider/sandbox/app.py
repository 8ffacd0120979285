"""The seven documented calls, from an authenticated request to a response. Knows no transport and no rate limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from urllib.parse import quote

from techflow_provider.sandbox.messages import (
    PREFIX,
    ApiError,
    Json,
    Object,
    Request,
    Response,
    json_response,
    read_body,
)
from techflow_provider.sandbox.settings import from_json
from techflow_provider.sandbox.state import Execution, Plan, State

# The fields of a workflow that List Workflows shows in the reference.
LISTED_FIELDS = ("id", "name", "status")


def respond(state: State, request: Request) -> Response:  # noqa: PLR0911  # one return per call
    """Act on a request and return the response.

    :raises ApiError: the request is rejected
    :raises SettingError: a part of its body is invalid
    :raises KeyError: what it names doesn't exist
    """
    match request.method, request.segments:
        case "GET", ("workflows",):
            listed = [{name: each[name] for name in LISTED_FIELDS} for each in state.workflows]
            return json_response({"workflows": listed})
        case "POST", ("workflows",):
            return json_response(state.create_workflow(read_body(request) or {}))
        case "GET", ("workflows", workflow_id):
            return json_response(state.workflow(workflow_id))
        case "PUT", ("workflows", workflow_id):
            return _replace_workflow(state, request, workflow_id)
        case "DELETE", ("workflows", workflow_id):
            state.delete_workflow(workflow_id)
            return json_response({"id": workflow_id, "deleted": True})
        case "POST", ("workflows", workflow_id, "execute"):
            return _execute(state, request, workflow_id)
        case "GET", ("executions",):
            return _history(state, request)
    raise ApiError(404, f"the API has no call {request.method} {request.path}")


def _replace_workflow(state: State, request: Request, workflow_id: str) -> Response:
    fields = read_body(request) or {}
    if fields.get("id", workflow_id) != workflow_id:
        raise ApiError(400, "id cannot be changed")
    return json_response(state.replace_workflow(workflow_id, fields))


def _execute(state: State, request: Request, workflow_id: str) -> Response:
    state.workflow(workflow_id)
    payload = read_body(request)
    plan = from_json(Plan, payload["sandbox"]) if payload and "sandbox" in payload else None
    execution = state.start(workflow_id, payload, plan)
    match state.execute_response:
        case "execution":
            return json_response(_render(state, execution))
        case "wrapped":
            return json_response({"execution": _render(state, execution)})
        case "id":
            return json_response({"execution_id": execution.id})
        case "empty":
            return Response(200)


def _history(state: State, request: Request) -> Response:
    page, cursor = _page(state, _filtered(state, request.query), request.query.get("after"))
    body: Object = {"executions": [_render(state, each) for each in page]}
    if cursor is None:
        return json_response(body)
    link = f"{PREFIX}/executions?after={quote(cursor)}"
    if state.next_page == "body":
        return json_response({**body, "next": link})
    return json_response(body, headers={"link": f'<{link}>; rel="next"'})


def _filtered(state: State, query: Mapping[str, str]) -> list[Execution]:
    """Return the executions that the history shows, through the filters of the request that are honoured."""
    asked = {name: query[name] for name in state.history_filters if name in query}
    latest = state.clock.now() - timedelta(seconds=state.history_lag_seconds)
    shown = [
        each
        for each in state.executions
        if each.started_at <= latest
        and asked.get("workflow_id") in (None, each.workflow_id)
        and asked.get("status") in (None, _word(state, each.status))
        and ("since" not in asked or each.started_at >= datetime.fromisoformat(asked["since"]))
    ]
    ordered = shown if asked.get("sort") == "started_at" else shown[::-1]
    return ordered[: int(asked["limit"])] if asked.get("limit", "").isdigit() else ordered


def _page(state: State, executions: Sequence[Execution], cursor: str | None) -> tuple[Sequence[Execution], str | None]:
    """Return one page of executions, and the cursor of the next page."""
    size = state.page_size
    if size is None:
        return executions, None
    start = 0
    if cursor is not None:
        start = next((index for index, each in enumerate(executions, 1) if each.id == cursor), -1)
    if start < 0:
        raise ApiError(400, f"after: execution {cursor!r} doesn't exist")
    page = executions[start : start + size]
    return page, page[-1].id if len(executions) > start + size else None


def _render(state: State, execution: Execution) -> Object:
    """Return an execution as JSON."""
    return {
        "id": execution.id,
        "workflow_id": execution.workflow_id,
        "status": _word(state, execution.status),
        "started_at": _timestamp(state, execution.started_at),
        "finished_at": _timestamp(state, execution.finished_at),
        "error": execution.error,
    }


def _word(state: State, status: str) -> str:
    return state.status_words.get(status, status)


def _timestamp(state: State, at: datetime | None) -> Json:
    if at is None:
        return None
    if state.times == "epoch":
        return at.timestamp()
    timespec = "seconds" if state.times == "iso_seconds" else "microseconds"
    return at.isoformat(timespec=timespec).replace("+00:00", "Z")
