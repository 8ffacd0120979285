"""The endpoints of TechFlow's API, one function each: what to send and how to read the response, without I/O.

Section names are those of the vendor's reference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias, TypeVar
from urllib.parse import quote as percent_encode
from urllib.parse import unquote

import httpx

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.flow import Call, Method, Query
from techflow_provider.client.json_stream import RowMemory
from techflow_provider.client.models import Execution, Workflow, read_executions, read_workflows
from techflow_provider.client.paging import Page, page_reader, server_time
from techflow_provider.client.parsing import Json, Names, json_of, quote, set_fields
from techflow_provider.client.settings import Settings
from techflow_provider.client.values import (
    Id,
    Payload,
    as_description,
    as_id,
    as_json,
    as_payload,
    as_text,
    as_triggers,
)
from techflow_provider.state.budget import RequestClass

T = TypeVar("T")
Trigger: TypeAlias = str | Mapping[str, Json]

# More often than any server or proxy decodes a path.
MAX_DECODINGS = 5
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
HEADER_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
CONNECTION_HEADERS = frozenset(
    {"host", "content-length", "transfer-encoding", "te", "trailer", "connection", "keep-alive", "upgrade"}
    | {"proxy-connection", "proxy-authorization", "expect"}
)
JSON_HEADERS = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Start:
    """The response to a start.

    :param execution: what was started, or None when the response is empty
    :param sent_at: when the request was sent, on the server's clock when it sends its Date, to the second
    :param responded_at: when the server responded, likewise
    """

    execution: Execution | None
    sent_at: datetime
    responded_at: datetime


def list_workflows(request_class: RequestClass = RequestClass.COMMAND) -> Call[Page[Workflow]]:
    """`GET /workflows` (List Workflows)."""
    read = page_reader("workflow", lambda value, _, names, left_out: read_workflows(value, names, left_out))
    return Call("GET", "/workflows", read, request_class=request_class)


def get_workflow(workflow_id: Id) -> Call[Workflow]:
    """`GET /workflows/{workflow_id}` (Get Workflow)."""
    return Call("GET", _workflow_path(workflow_id), _read_workflow)


def create_workflow(
    name: Id, description: Id | None = None, triggers: Sequence[Trigger] = (), names: Names = ()
) -> Call[Workflow]:
    """`POST /workflows` (Create Workflow).

    :param names: this TechFlow's own names of a workflow's fields
    :raises InvalidParameterError: a parameter has an unusable value
    """
    content = encode_json("triggers", set_fields({}, workflow_fields(name, description, triggers), names))
    return Call("POST", "/workflows", _read_workflow, content, JSON_HEADERS)


def replace_workflow(workflow: Workflow, names: Names = ()) -> Call[Workflow]:
    """`PUT /workflows/{workflow_id}` (Update Workflow) with the whole workflow; an empty response means it was stored.

    :param names: this TechFlow's own names of its fields
    :raises InvalidParameterError: a field can't be written as JSON
    """

    def read(response: httpx.Response, _: Settings) -> Workflow:
        value = json_of(response) if response.content.strip() else {}
        return workflow if value == {} else Workflow.read(value, names)

    content = encode_json("workflow", set_fields(workflow.raw, workflow.known, names))
    return Call("PUT", _workflow_path(workflow.id), read, content, JSON_HEADERS)


def delete_workflow(workflow_id: Id) -> Call[None]:
    """`DELETE /workflows/{workflow_id}` (Delete Workflow). The response's body is ignored."""
    return Call("DELETE", _workflow_path(workflow_id), lambda _, __: None)


def execute_workflow(workflow_id: Id, payload: Payload | None = None) -> Call[Start]:
    """`POST /workflows/{workflow_id}/execute` (Trigger Execution).

    :param payload: sent as JSON when given (see `as_payload`); the reference shows no body
    :raises InvalidParameterError: a parameter has an unusable value
    """

    def read(response: httpx.Response, settings: Settings) -> Start:
        words, names = settings.status_words, settings.names["execution"]
        empty = not response.content.strip()
        execution = None if empty else Execution.read_started(json_of(response), str(workflow_id), words, names)
        responded_at = server_time(response.headers)
        return Start(execution, responded_at - response.elapsed, responded_at)

    path = f"{_workflow_path(workflow_id)}/execute"
    content = as_payload("payload", payload)
    if content is None:
        return Call("POST", path, read)
    return Call("POST", path, read, encode_json("payload", content), JSON_HEADERS)


def list_executions(
    request_class: RequestClass = RequestClass.COMMAND, memory: RowMemory | None = None
) -> Call[Page[Execution]]:
    """`GET /executions` (List Executions).

    :param memory: of the executions that were read last; those that haven't changed or aren't needed are left out
    """
    read = page_reader("execution", read_executions, memory)
    return Call("GET", "/executions", read, request_class=request_class)


def raw(
    method: Method,
    path: str,
    *,
    params: Query | None = None,
    content: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    any_status: bool = False,
) -> Call[httpx.Response]:
    """Any request below the base URL; the response is returned as received.

    :param any_status: whether a response other than a 2xx is returned as well, instead of raised as an error
    :raises InvalidParameterError: the path isn't below the base URL, or a header can't be set
    """
    absolute = path if path.startswith("/") else f"/{path}"
    if not _is_below(absolute):
        raise InvalidParameterError("endpoint", quote(path), "a path below the connection's base URL")
    for name, value in (headers or {}).items():
        _check_header(name, value)
    return Call(method, absolute, lambda response, _: response, content, headers or {}, params, any_status=any_status)


def _is_below(path: str) -> bool:
    """Whether a path stays below the base URL, however often a server or proxy decodes it."""
    decoded = path
    for _ in range(MAX_DECODINGS):
        path, decoded = decoded, unquote(decoded)
    # Some servers ignore what follows a semicolon, and some take a backslash for a slash.
    parts = {part.partition(";")[0].strip() for part in re.split(r"[/\\]", decoded)}
    is_stable = path == decoded and decoded.isprintable()
    return is_stable and not parts & {".", ".."} and "://" not in decoded and decoded[1:2] not in ("/", "\\")


def _check_header(name: object, value: object) -> None:
    """Check that a header doesn't change where the request goes or where it ends."""
    if not isinstance(name, str) or not HEADER_NAME.fullmatch(name) or name.lower() in CONNECTION_HEADERS:
        expected = "names of headers that don't say where a request goes, how long it is or how it is connected"
        raise InvalidParameterError("headers", quote(name), expected)
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if not isinstance(text, str) or not HEADER_VALUE.fullmatch(text) or not (text.isascii() or text is not value):
        # The value may be a secret.
        raise InvalidParameterError("headers", f"{name!r} as {type(value).__name__}", "text without control characters")


def workflow_fields(name: Id, description: Id | None, triggers: Iterable[Trigger] | str) -> dict[str, Json]:
    """Return the body of Create Workflow.

    :raises InvalidParameterError: a parameter has an unusable value
    """
    described = as_description("description", description)
    return {
        "name": as_text("name", name),
        **({} if described is None else {"description": described}),
        "triggers": as_triggers("triggers", triggers),
    }


def _workflow_path(workflow_id: Id) -> str:
    """Return the path of a workflow, with its id percent-encoded."""
    return f"/workflows/{percent_encode(as_id('workflow_id', workflow_id), safe='')}"


def encode_json(parameter: str, value: object) -> bytes:
    """Return a value as JSON (see `as_json`).

    :raises InvalidParameterError: JSON can't represent it
    """
    return json.dumps(as_json(parameter, value), ensure_ascii=False).encode()


def _read_workflow(response: httpx.Response, settings: Settings) -> Workflow:
    return Workflow.read(json_of(response), settings.names["workflow"])
