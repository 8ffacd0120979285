"""The seven documented calls: an authenticated, admitted request in, an answer out. No transport, no rate limit."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NoReturn
from urllib.parse import quote

from techflow_provider.sandbox.messages import (
    PREFIX,
    Answer,
    ApiError,
    Json,
    Object,
    Request,
    json_answer,
    read_body,
)
from techflow_provider.sandbox.settings import SettingError, Settings
from techflow_provider.sandbox.state import Execution, Plan, State

# What the reference's list shows of a workflow.
LISTED_FIELDS = ("id", "name", "status")


class App:
    """Answers requests from a state.

    :param state: the workflows and executions
    :param settings: chooses where the reference is silent
    """

    def __init__(self, state: State, settings: Settings) -> None:
        self._state = state
        self._settings = settings

    def answer(self, request: Request) -> Answer:
        """Act on a request and return the answer."""
        try:
            answer = self._route(request)
        except ApiError as error:
            return error.answer()
        except KeyError as error:
            return ApiError(404, f"there is no workflow {error.args[0]!r}").answer()
        return self._tagged(request, answer) if self._settings.etags and request.method == "GET" else answer

    def _route(self, request: Request) -> Answer:  # noqa: PLR0911  # one return a call
        match request.method, request.segments:
            case "GET", ("workflows",):
                return self._list_workflows()
            case "POST", ("workflows",):
                return json_answer(self._state.create_workflow(self._workflow_fields(request)))
            case "GET", ("workflows", workflow_id):
                return json_answer(self._state.workflow(workflow_id))
            case "PUT", ("workflows", workflow_id):
                return self._replace_workflow(request, workflow_id)
            case "DELETE", ("workflows", workflow_id):
                self._state.delete_workflow(workflow_id)
                return json_answer({"id": workflow_id, "deleted": True})
            case "POST", ("workflows", workflow_id, "execute"):
                return self._execute(request, workflow_id)
            case "GET", ("executions",):
                return self._history(request)
        raise ApiError(404, f"there is no call {request.method} {request.path}")

    def _list_workflows(self) -> Answer:
        return json_answer(
            {"workflows": [{name: each[name] for name in LISTED_FIELDS} for each in self._state.workflows()]}
        )

    def _replace_workflow(self, request: Request, workflow_id: str) -> Answer:
        self._state.workflow(workflow_id)
        fields = self._workflow_fields(request)
        if fields.get("id", workflow_id) != workflow_id:
            raise ApiError(400, "id can't be changed")
        return json_answer(self._state.replace_workflow(workflow_id, fields))

    def _workflow_fields(self, request: Request) -> Object:
        body = read_body(request)
        if body is None:
            raise ApiError(400, "a workflow is missing: a JSON object with name")
        check_workflow(body)
        return {"status": self._word("active"), **body}

    def _execute(self, request: Request, workflow_id: str) -> Answer:
        self._state.workflow(workflow_id)
        payload = read_body(request)
        try:
            plan = Plan.read(payload["sandbox"]) if payload and "sandbox" in payload else None
        except SettingError as error:
            raise ApiError(400, str(error)) from error
        execution = self._state.start(workflow_id, payload, plan)
        match self._settings.execute_answer:
            case "execution":
                return json_answer(self.render(execution))
            case "wrapped":
                return json_answer({"execution": self.render(execution)})
            case "id":
                return json_answer({"execution_id": execution.id})
            case "empty":
                return Answer(200)

    def _history(self, request: Request) -> Answer:
        cursor = request.query.get("after")
        page, following = self._page(self._visible(), cursor)
        rendered: list[Json] = [self.render(each) for each in page]
        link = f"{PREFIX}/executions?after={quote(following)}" if following else None
        if self._settings.history_answer == "list":
            return json_answer(rendered, headers=_link(link))
        body: Object = {self._settings.history_answer: rendered}
        if link and self._settings.next_page == "body":
            return json_answer({**body, "next": link})
        return json_answer(body, headers=_link(link))

    def _visible(self) -> list[Execution]:
        """Return the executions that the history shows, latest first."""
        latest = self._settings.clock.now() - timedelta(seconds=self._settings.history_lag_seconds)
        return [each for each in reversed(self._state.executions()) if each.started_at <= latest]

    def _page(self, executions: Sequence[Execution], cursor: str | None) -> tuple[Sequence[Execution], str | None]:
        """Return the executions after the cursor's, and the cursor of the next page."""
        size = self._settings.page_size
        if size is None:
            return executions, None
        start = 0
        if cursor is not None:
            start = next((place for place, each in enumerate(executions, 1) if each.id == cursor), -1)
        if start < 0:
            raise ApiError(400, f"after: there is no execution {cursor!r}")
        page = executions[start : start + size]
        return page, page[-1].id if len(executions) > start + size else None

    def render(self, execution: Execution) -> Object:
        """Return an execution as JSON."""
        return {
            "id": execution.id,
            "workflow_id": execution.workflow_id,
            "status": self._word(execution.status),
            "started_at": self._instant(execution.started_at),
            "finished_at": self._instant(execution.finished_at),
            "error": execution.error,
        }

    def _word(self, status: str) -> str:
        return self._settings.status_words.get(status, status)

    def _instant(self, at: datetime | None) -> Json:
        if at is None:
            return None
        if self._settings.times == "epoch":
            return at.timestamp()
        timespec = "seconds" if self._settings.times == "iso_seconds" else "microseconds"
        return at.isoformat(timespec=timespec).replace("+00:00", "Z")

    def _tagged(self, request: Request, answer: Answer) -> Answer:
        tag = f'"{hashlib.sha256(answer.body).hexdigest()[:32]}"'
        known = [each.strip() for each in request.headers.get("if-none-match", "").split(",")]
        if tag in known or "*" in known:
            return Answer(304, b"", {"etag": tag})
        return replace(answer, headers={**answer.headers, "etag": tag})


def _link(url: str | None) -> dict[str, str]:
    return {} if url is None else {"link": f'<{url}>; rel="next"'}


def check_workflow(fields: Object) -> None:
    """Check a workflow's fields; those that are not known are none of the check's business.

    :raises ApiError: the name is missing or empty, or a field has a wrong type
    """
    if not isinstance(fields.get("name"), str) or not fields["name"]:
        _refuse("name", "a non-empty text")
    if "description" in fields and not isinstance(fields["description"], str | None):
        _refuse("description", "text or null")
    if "status" in fields and not isinstance(fields["status"], str):
        _refuse("status", "text")
    triggers = fields.get("triggers", [])
    if not isinstance(triggers, list) or not all(isinstance(each, str | dict) for each in triggers):
        _refuse("triggers", "a list of texts or objects")


def _refuse(name: str, expected: str) -> NoReturn:
    raise ApiError(400, f"{name} must be {expected}")
