"""The parts that the OpenAPI document's operations refer to, each marked as documented or assumed, with the reason."""

from __future__ import annotations

from typing import Literal

from techflow_provider.sandbox.messages import Json, Object

Basis = Literal["documented", "assumed"]

ERRORS = {
    "BadRequest": (400, "Bad Request", "what is wrong with a request is assumed; the code is documented"),
    "Unauthorized": (401, "Unauthorized", "Error Codes; that it is looked at first is assumed"),
    "NotFound": (404, "Not Found", "Error Codes; also for a method that a path doesn't have, as 405 isn't documented"),
    "RateLimited": (429, "Rate Limit Exceeded", "Rate Limiting; Retry-After is assumed"),
    "ServerError": (500, "Server Error", "Error Codes; the sandbox answers so only when it is told to"),
}


def marked(basis: Basis, reason: str, **part: Json) -> Object:
    """Return a part of the document with its mark.

    :param basis: whether the vendor's reference says so
    :param reason: the reference's section, or why the assumption was made
    """
    return {**part, "x-techflow-basis": basis, "x-techflow-reason": reason}


def ref(kind: str, name: str) -> Object:
    """Return a reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def json_content(schema: Object) -> Object:
    """Return the content of a JSON body."""
    return {"application/json": {"schema": schema}}


def components() -> Object:
    """Return the components object."""
    return {
        "securitySchemes": {
            "apiKey": marked("documented", "Authentication", type="http", scheme="bearer"),
        },
        "schemas": _schemas(),
        "parameters": {
            "workflow_id": marked(
                "documented",
                "Get Workflow; that it is text follows from the example wf_123",
                name="workflow_id",
                required=True,
                schema={"type": "string", "minLength": 1},
                **{"in": "path"},
            )
        },
        "headers": {
            "Date": marked("assumed", "HTTP asks for it", required=True, schema={"type": "string"}),
            "RetryAfter": marked(
                "assumed", "usual beside 429, and may be absent", schema={"type": "string", "minLength": 1}
            ),
            "Link": marked("assumed", "the way to a further page, when there are pages", schema={"type": "string"}),
        },
        "responses": {name: _error(*error) for name, error in ERRORS.items()},
    }


def _error(status: int, description: str, reason: str) -> Object:
    headers: Object = {"Date": ref("headers", "Date")}
    if status == 429:  # noqa: PLR2004  # the documented code
        headers["Retry-After"] = ref("headers", "RetryAfter")
    return marked(
        "documented",
        f"{reason}; the body is assumed",
        description=description,
        headers=headers,
        content=json_content(ref("schemas", "Error")),
    )


def _schemas() -> Object:
    return {
        "WorkflowSummary": _summary(),
        "Workflow": _workflow("Get Workflow returns details, which are taken to be what was created", "id", "status"),
        "WorkflowFields": _workflow("Create Workflow; that other fields are kept and only name is required is assumed"),
        "DeletedWorkflow": _deleted(),
        "Execution": _execution(),
        "Payload": _payload(),
        "Error": _error_body(),
    }


def _object(basis: Basis, reason: str, required: list[Json], properties: Object) -> Object:
    return marked(basis, reason, type="object", required=required, properties=properties)


def _summary() -> Object:
    properties: Object = {
        name: marked("documented", "List Workflows", type="string") for name in ("id", "name", "status")
    }
    return _object("documented", "List Workflows", ["id", "name", "status"], properties)


def _workflow(reason: str, *given: str) -> Object:
    """Return the schema of a workflow; the fields that the server gives are required where they are given."""
    trigger: list[Json] = [{"type": "string"}, {"type": "object"}]
    properties: Object = {
        "name": marked("documented", "Create Workflow", type="string", minLength=1),
        "description": marked("documented", "Create Workflow; null is assumed", type=["string", "null"]),
        "triggers": marked(
            "documented",
            "Create Workflow; that an item may be an object is assumed",
            type="array",
            items={"anyOf": trigger},
        ),
        "status": marked("documented", "List Workflows; that a client may set it is assumed", type="string"),
    }
    if given:
        properties["id"] = marked("documented", "List Workflows", type="string")
    return _object("documented", reason, ["name", *given], properties)


def _deleted() -> Object:
    properties: Object = {
        "id": marked("assumed", "the reference shows no answer", type="string"),
        "deleted": marked("assumed", "the reference shows no answer", const=True),
    }
    return _object("assumed", "the reference shows no answer to Delete Workflow", ["id", "deleted"], properties)


def _execution() -> Object:
    instant: Object = {"type": "string", "format": "date-time"}
    properties: Object = {
        "id": marked("assumed", "executions are listed, so each has one", type="string"),
        "workflow_id": marked("assumed", "an execution belongs to a workflow", type="string"),
        "status": marked(
            "assumed", "two words from Webhook Events, one for before", enum=["running", "completed", "failed"]
        ),
        "started_at": marked("assumed", "a history has times", **instant),
        "finished_at": marked("assumed", "a history has times", anyOf=[instant, {"type": "null"}]),
        "error": marked("assumed", "a failure has a reason", type=["string", "null"]),
    }
    return _object("assumed", "the reference describes no execution", list(properties), properties)


def _payload() -> Object:
    duration: Object = {"type": ["number", "null"], "minimum": 0, "maximum": 1_000_000_000}
    plan: Object = {
        "seconds": marked("assumed", "of the sandbox only: how long the execution takes", **duration),
        "outcome": marked("assumed", "of the sandbox only: how it ends", enum=["completed", "failed", None]),
        "error": marked("assumed", "of the sandbox only: why it fails", type=["string", "null"]),
    }
    sandbox = {
        **_object("assumed", "of the sandbox only: how the execution goes", [], plan),
        "additionalProperties": False,
    }
    return _object("assumed", "the reference shows no body; any object is taken", [], {"sandbox": sandbox})


def _error_body() -> Object:
    properties: Object = {
        "status": marked("assumed", "the reference shows no error's body", type="integer"),
        "message": marked("assumed", "the reference shows no error's body", type="string"),
    }
    error = _object("assumed", "the reference shows no error's body", ["status", "message"], properties)
    return _object("assumed", "the reference shows no error's body", ["error"], {"error": error})
