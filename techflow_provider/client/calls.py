"""The operations of TechFlow's API as values: one function per endpoint, no I/O.

A `Call` says what to send and how to read the answer; it knows neither the base URL nor the key. Section names are
those of the vendor's reference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Generic, Literal, TypeVar
from urllib.parse import quote as percent_encode

import httpx

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.json_stream import keep_all, parse_list
from techflow_provider.client.models import Execution, StatusWords, Workflow, read_executions, read_workflows
from techflow_provider.client.parsing import DecodeError, Json, http_date, parse_json, quote
from techflow_provider.state.budget import RequestClass

T = TypeVar("T")
Trigger = str | Mapping[str, Json]
Query = Mapping[str, str] | tuple[tuple[str, str], ...]
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]

JSON_HEADERS = {"content-type": "application/json"}
# The documented methods that may be sent again when it is unknown whether the server acted on them.
IDEMPOTENT_METHODS = frozenset({"GET", "PUT", "DELETE"})


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request and the way to read its answer.

    :param method: HTTP method
    :param path: path below the base URL, percent-encoded
    :param read: turns a 2xx response into the result, given what the status words of this TechFlow mean; raises
        `DecodeError` for an implausible one
    :param content: the body's bytes
    :param headers: headers beside the standard ones
    :param params: the query
    :param request_class: whether a user asked for it or a wait polls
    :param url: an absolute URL in place of the path, for a further page
    :param unchanged: what a 304 stands for, when the headers ask on condition
    :param any_status: whether an answer that is not a 2xx is read as well, in place of an error
    """

    method: Method
    path: str
    read: Callable[[httpx.Response, StatusWords], T]
    content: bytes | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    params: Query | None = None
    request_class: RequestClass = RequestClass.COMMAND
    url: str | None = None
    unchanged: T | None = None
    any_status: bool = False

    @property
    def idempotent(self) -> bool:
        """Whether sending it twice does the same as sending it once."""
        return self.method in IDEMPOTENT_METHODS

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list. The reference knows no paging, so a page with a successor is an assumption.

    :param items: what the page lists
    :param next_url: the next page's URL as the server wrote it, or None
    :param headers: those of the answer
    """

    items: tuple[T, ...]
    next_url: str | None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def answered_at(self) -> datetime:
        """The server's clock when it answered, to the second, or this host's where it tells none."""
        return answered_at(self.headers)


@dataclass(frozen=True, slots=True)
class Start:
    """The answer to a start.

    :param execution: what was started, or None when the answer is empty
    :param sent_at: when the request was sent, on the server's clock where it tells the time, to the second
    """

    execution: Execution | None
    sent_at: datetime


def list_workflows(request_class: RequestClass = RequestClass.COMMAND) -> Call[Page[Workflow]]:
    """`GET /workflows` (List Workflows)."""
    return Call("GET", "/workflows", _page_reader(lambda value, _: read_workflows(value)), request_class=request_class)


def get_workflow(workflow_id: str) -> Call[Workflow]:
    """`GET /workflows/{workflow_id}` (Get Workflow)."""
    return Call("GET", _workflow_path(workflow_id), _json_reader(Workflow.read))


def create_workflow(name: str, description: str | None = None, triggers: Sequence[Trigger] = ()) -> Call[Workflow]:
    """`POST /workflows` (Create Workflow).

    :raises InvalidParameterError: a parameter has an unusable value
    """
    content = _encode("triggers", workflow_fields(name, description, triggers))
    return Call("POST", "/workflows", _json_reader(Workflow.read), content, JSON_HEADERS)


def replace_workflow(workflow: Workflow) -> Call[Workflow]:
    """`PUT /workflows/{workflow_id}` (Update Workflow) with the whole workflow; an empty answer means that it was kept.

    :raises InvalidParameterError: a field can't be written as JSON
    """

    def read(response: httpx.Response, _: StatusWords) -> Workflow:
        value = parse_json(response.content) if response.content.strip() else {}
        return workflow if value == {} else Workflow.read(value)

    content = _encode("workflow", workflow.to_dict())
    return Call("PUT", _workflow_path(workflow.id), read, content, JSON_HEADERS)


def delete_workflow(workflow_id: str) -> Call[None]:
    """`DELETE /workflows/{workflow_id}` (Delete Workflow). The answer's body is not looked at."""
    return Call("DELETE", _workflow_path(workflow_id), lambda _, __: None)


def execute_workflow(workflow_id: str, payload: Mapping[str, Json] | None = None) -> Call[Start]:
    """`POST /workflows/{workflow_id}/execute` (Trigger Execution).

    :param payload: sent as JSON when given; the reference shows no body
    :raises InvalidParameterError: a parameter has an unusable value
    """

    def read(response: httpx.Response, words: StatusWords) -> Start:
        empty = not response.content.strip()
        execution = None if empty else Execution.read_started(parse_json(response.content), workflow_id, words)
        return Start(execution, answered_at(response.headers) - response.elapsed)

    path = f"{_workflow_path(workflow_id)}/execute"
    if payload is None:
        return Call("POST", path, read)
    if not isinstance(payload, Mapping):
        raise InvalidParameterError("payload", quote(payload), "a dict or None")
    return Call("POST", path, read, _encode("payload", dict(payload)), JSON_HEADERS)


def list_executions(
    request_class: RequestClass = RequestClass.COMMAND, skips: Callable[[Json], bool] = keep_all
) -> Call[Page[Execution]]:
    """`GET /executions` (List Executions).

    :param skips: whether an execution, as it came, is of no interest and need not be read
    """
    return Call("GET", "/executions", _page_reader(read_executions, skips), request_class=request_class)


def raw(
    method: Method,
    path: str,
    *,
    params: Query | None = None,
    content: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    any_status: bool = False,
) -> Call[httpx.Response]:
    """Any request below the base URL; the response is returned as it came.

    :param any_status: whether an answer that is not a 2xx is returned as well, in place of an error
    :raises InvalidParameterError: the path is not one below the base URL
    """
    absolute = path if path.startswith("/") else f"/{path}"
    if any(part in (".", "..") for part in absolute.split("/")) or "://" in absolute or absolute[1:2] == "/":
        raise InvalidParameterError("endpoint", quote(path), "a path below the connection's base URL")
    return Call(method, absolute, lambda response, _: response, content, headers or {}, params, any_status=any_status)


def next_page(call: Call[Page[T]], page: Page[T], current_url: str) -> Call[Page[T]] | None:
    """Return the call for the page after this one, or None when this is the last.

    :param current_url: the URL of this page, against which the next one's is resolved
    :raises ShapeError: it is no URL, or lies on another origin, where the key must not go
    """
    if page.next_url is None:
        return None
    current = httpx.URL(current_url)
    try:
        following = current.join(page.next_url)
    except (httpx.InvalidURL, ValueError) as error:
        raise DecodeError("the URL of a next page", quote(page.next_url)) from error
    if (following.scheme, following.host, following.port) != (current.scheme, current.host, current.port):
        raise DecodeError("a next page on the same origin", quote(page.next_url))
    return replace(call, url=str(following))


def workflow_fields(name: str, description: str | None, triggers: Sequence[Trigger]) -> dict[str, Json]:
    """Return the body of Create Workflow.

    :raises InvalidParameterError: a parameter has an unusable value
    """
    if not isinstance(name, str) or not name.strip():
        raise InvalidParameterError("name", quote(name), "text that is not empty")
    if description is not None and not isinstance(description, str):
        raise InvalidParameterError("description", quote(description), "text or None")
    described: dict[str, Json] = {} if description is None else {"description": description}
    return {"name": name, **described, "triggers": check_triggers(triggers)}


def check_triggers(triggers: Iterable[Trigger]) -> list[Json]:
    """Return the triggers as a JSON list.

    :raises InvalidParameterError: they are no sequence of texts or objects
    """
    if isinstance(triggers, str | Mapping) or not isinstance(triggers, Iterable):
        raise InvalidParameterError("triggers", quote(triggers), 'a list such as ["manual"]')
    checked: list[Json] = []
    for trigger in triggers:
        if not isinstance(trigger, str | Mapping):
            raise InvalidParameterError("triggers", f"an item that is {quote(trigger)}", "texts or dicts")
        checked.append(trigger if isinstance(trigger, str) else dict(trigger))
    return checked


def _workflow_path(workflow_id: str) -> str:
    return f"/workflows/{path_segment('workflow_id', workflow_id)}"


def path_segment(parameter: str, value: str) -> str:
    """Return a value as one percent-encoded segment of a path.

    :raises InvalidParameterError: it is no text, or is empty, `.` or `..`, which would name another resource
    """
    if not isinstance(value, str) or value.strip() in ("", ".", ".."):
        raise InvalidParameterError(parameter, quote(value), "an id such as 'wf_123'")
    try:
        return percent_encode(value, safe="")
    except UnicodeEncodeError as error:
        raise InvalidParameterError(parameter, ascii(value), "text that UTF-8 can hold") from error


def _encode(parameter: str, value: Json) -> bytes:
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidParameterError(parameter, str(error), "a value that JSON can hold") from error


def _json_reader(read: Callable[[Json], T]) -> Callable[[httpx.Response, StatusWords], T]:
    return lambda response, _: read(parse_json(response.content))


def _page_reader(
    read: Callable[[Json, StatusWords], tuple[T, ...]], skips: Callable[[Json], bool] = keep_all
) -> Callable[[httpx.Response, StatusWords], Page[T]]:
    def read_page(response: httpx.Response, words: StatusWords) -> Page[T]:
        value = parse_list(response.content, skips)
        linked = response.links.get("next", {}).get("url")
        following = value.get("next") if isinstance(value, dict) else None
        next_url = linked or (following if isinstance(following, str) and following else None)
        return Page(read(value, words), next_url, response.headers)

    return read_page


def answered_at(headers: Mapping[str, str]) -> datetime:
    """Return the server's clock when it answered, to the second, or this host's where it tells none."""
    return http_date(headers.get("date", "")) or datetime.now(UTC)
