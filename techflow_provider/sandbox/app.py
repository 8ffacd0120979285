"""The seven documented calls, from an authenticated request to a response. Knows no transport and no rate limit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
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


class App:
    """Responds to requests from a state, whose settings select the behaviour where the reference leaves it open."""

    def __init__(self, state: State) -> None:
        self._state = state

    def respond(self, request: Request) -> Response:
        """Act on a request and return the response.

        :raises ApiError: the request is rejected
        :raises SettingError: a part of its body is invalid
        :raises KeyError: what it names doesn't exist
        """
        response = self._route(request)
        return self._with_etag(request, response) if self._state.etags and request.method == "GET" else response

    def _route(self, request: Request) -> Response:  # noqa: PLR0911  # one return per call
        match request.method, request.segments:
            case "GET", ("workflows",):
                return self._list_workflows()
            case "POST", ("workflows",):
                return json_response(self._state.create_workflow(read_body(request) or {}))
            case "GET", ("workflows", workflow_id):
                return json_response(self._state.workflow(workflow_id))
            case "PUT", ("workflows", workflow_id):
                return self._replace_workflow(request, workflow_id)
            case "DELETE", ("workflows", workflow_id):
                self._state.delete_workflow(workflow_id)
                return json_response({"id": workflow_id, "deleted": True})
            case "POST", ("workflows", workflow_id, "execute"):
                return self._execute(request, workflow_id)
            case "GET", ("executions",):
                return self._history(request)
        raise ApiError(404, f"the API has no call {request.method} {request.path}")

    def _list_workflows(self) -> Response:
        listed = [{name: each[name] for name in LISTED_FIELDS} for each in self._state.workflows]
        return json_response({"workflows": listed})

    def _replace_workflow(self, request: Request, workflow_id: str) -> Response:
        fields = read_body(request) or {}
        if fields.get("id", workflow_id) != workflow_id:
            raise ApiError(400, "id cannot be changed")
        return json_response(self._state.replace_workflow(workflow_id, fields))

    def _execute(self, request: Request, workflow_id: str) -> Response:
        self._state.workflow(workflow_id)
        payload = read_body(request)
        plan = from_json(Plan, payload["sandbox"]) if payload and "sandbox" in payload else None
        execution = self._state.start(workflow_id, payload, plan)
        match self._state.execute_response:
            case "execution":
                return json_response(self.render(execution))
            case "wrapped":
                return json_response({"execution": self.render(execution)})
            case "id":
                return json_response({"execution_id": execution.id})
            case "empty":
                return Response(200)

    def _history(self, request: Request) -> Response:
        page, cursor = self._page(self._filtered(request.query), request.query.get("after"))
        body: Object = {"executions": [self.render(each) for each in page]}
        if cursor is None:
            return json_response(body)
        link = f"{PREFIX}/executions?after={quote(cursor)}"
        if self._state.next_page == "body":
            return json_response({**body, "next": link})
        return json_response(body, headers={"link": f'<{link}>; rel="next"'})

    def _filtered(self, query: Mapping[str, str]) -> list[Execution]:
        """Return the executions that the history shows, through the filters of the request that are honoured."""
        asked = {name: query[name] for name in self._state.history_filters if name in query}
        latest = self._state.clock.now() - timedelta(seconds=self._state.history_lag_seconds)
        shown = [
            each
            for each in self._state.executions
            if each.started_at <= latest
            and asked.get("workflow_id") in (None, each.workflow_id)
            and asked.get("status") in (None, self._word(each.status))
            and ("since" not in asked or each.started_at >= datetime.fromisoformat(asked["since"]))
        ]
        ordered = shown if asked.get("sort") == "started_at" else shown[::-1]
        return ordered[: int(asked["limit"])] if asked.get("limit", "").isdigit() else ordered

    def _page(self, executions: Sequence[Execution], cursor: str | None) -> tuple[Sequence[Execution], str | None]:
        """Return one page of executions, and the cursor of the next page."""
        size = self._state.page_size
        if size is None:
            return executions, None
        start = 0
        if cursor is not None:
            start = next((index for index, each in enumerate(executions, 1) if each.id == cursor), -1)
        if start < 0:
            raise ApiError(400, f"after: execution {cursor!r} doesn't exist")
        page = executions[start : start + size]
        return page, page[-1].id if len(executions) > start + size else None

    def render(self, execution: Execution) -> Object:
        """Return an execution as JSON."""
        return {
            "id": execution.id,
            "workflow_id": execution.workflow_id,
            "status": self._word(execution.status),
            "started_at": self._timestamp(execution.started_at),
            "finished_at": self._timestamp(execution.finished_at),
            "error": execution.error,
        }

    def _word(self, status: str) -> str:
        return self._state.status_words.get(status, status)

    def _timestamp(self, at: datetime | None) -> Json:
        if at is None:
            return None
        if self._state.times == "epoch":
            return at.timestamp()
        timespec = "seconds" if self._state.times == "iso_seconds" else "microseconds"
        return at.isoformat(timespec=timespec).replace("+00:00", "Z")

    def _with_etag(self, request: Request, response: Response) -> Response:
        tag = f'"{hashlib.sha256(response.body).hexdigest()[:32]}"'
        known = [each.strip() for each in request.headers.get("if-none-match", "").split(",")]
        if tag in known or "*" in known:
            return Response(304, b"", {"etag": tag})
        return replace(response, headers={**response.headers, "etag": tag})
