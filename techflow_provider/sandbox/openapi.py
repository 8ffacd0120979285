"""TechFlow's seven calls as an OpenAPI 3.1 document, of a sandbox with default settings.

Each part has `x-techflow-basis`, which tells whether the vendor's reference says so or this package assumes it, and
`x-techflow-reason`. The control API is no part of TechFlow, and not in it.
"""

from __future__ import annotations

from techflow_provider.sandbox.messages import PREFIX, Object
from techflow_provider.sandbox.schemas import Basis, components, json_content, marked, ref


def document() -> Object:
    """Return the document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "TechFlow API (sandbox)",
            "version": "2",
            "description": "Parts marked assumed are not in the vendor's reference of November 2020.",
        },
        "servers": [{"url": PREFIX}],
        "security": [{"apiKey": []}],
        "paths": _paths(),
        "components": components(),
    }


def _paths() -> Object:
    return {
        "/workflows": {"get": _list_workflows(), "post": _create_workflow()},
        "/workflows/{workflow_id}": {
            "parameters": [ref("parameters", "workflow_id")],
            "get": _get_workflow(),
            "put": _update_workflow(),
            "delete": _delete_workflow(),
        },
        "/workflows/{workflow_id}/execute": {
            "parameters": [ref("parameters", "workflow_id")],
            "post": _execute_workflow(),
        },
        "/executions": {"get": _list_executions()},
    }


def _list_workflows() -> Object:
    return _operation("listWorkflows", "List Workflows", _ok("documented", "List Workflows", _many("WorkflowSummary")))


def _create_workflow() -> Object:
    reason = "Error Codes has no 201; that the workflow is returned is assumed"
    success = _ok("assumed", reason, ref("schemas", "Workflow"))
    by_id: Object = {"parameters": {"workflow_id": "$response.body#/id"}}
    success["links"] = {
        name: {"operationId": name, **by_id}
        for name in ("getWorkflow", "updateWorkflow", "deleteWorkflow", "executeWorkflow")
    }
    body = _body("documented", "Create Workflow", "WorkflowFields", required=True)
    return {**_operation("createWorkflow", "Create Workflow", success), "requestBody": body}


def _get_workflow() -> Object:
    success = _ok("documented", "Get Workflow; the answer's shape is assumed", ref("schemas", "Workflow"))
    return _operation("getWorkflow", "Get Workflow", success)


def _update_workflow() -> Object:
    success = _ok("assumed", "that the workflow is returned", ref("schemas", "Workflow"))
    reason = "that the body replaces the whole workflow, as PUT does in HTTP"
    body = _body("assumed", reason, "WorkflowFields", required=True)
    return {**_operation("updateWorkflow", "Update Workflow", success), "requestBody": body}


def _delete_workflow() -> Object:
    success = _ok("assumed", "the reference shows no answer", ref("schemas", "DeletedWorkflow"))
    return _operation("deleteWorkflow", "Delete Workflow", success)


def _execute_workflow() -> Object:
    success = _ok("assumed", "that the execution is returned as it started", ref("schemas", "Execution"))
    body = _body("assumed", "the reference shows no body", "Payload", required=False)
    return {**_operation("executeWorkflow", "Trigger Execution", success), "requestBody": body}


def _list_executions() -> Object:
    success = _ok("assumed", "named after List Workflows; one page", _many("Execution"), "Link")
    return _operation("listExecutions", "List Executions", success)


def _operation(operation_id: str, section: str, success: Object) -> Object:
    names = {"400": "BadRequest", "401": "Unauthorized", "404": "NotFound", "429": "RateLimited", "500": "ServerError"}
    errors: Object = {status: ref("responses", name) for status, name in names.items()}
    return marked(
        "documented", section, operationId=operation_id, summary=section, responses={"200": success, **errors}
    )


def _ok(basis: Basis, reason: str, schema: Object, *headers: str) -> Object:
    fields: Object = {name: ref("headers", name) for name in ("Date", *headers)}
    return marked(basis, reason, description="Success", headers=fields, content=json_content(schema))


def _body(basis: Basis, reason: str, schema: str, *, required: bool) -> Object:
    return marked(basis, reason, required=required, content=json_content(ref("schemas", schema)))


def _many(schema: str) -> Object:
    name = "executions" if schema == "Execution" else "workflows"
    items: Object = {"type": "array", "items": ref("schemas", schema)}
    return {"type": "object", "required": [name], "properties": {name: items}}
