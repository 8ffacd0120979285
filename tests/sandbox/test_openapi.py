"""The OpenAPI document: it marks each of its parts as documented or assumed, and the sandbox serves it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from techflow_provider import __version__
from techflow_provider.sandbox.control import document

METHODS = {"get", "post", "put", "delete"}
DOCUMENT: Any = document()
OPERATIONS = [
    (method, path, operation)
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
    if method in METHODS
]


def parts() -> Iterator[tuple[str, Any]]:
    for method, path, operation in OPERATIONS:
        yield f"{method} {path}", operation
        yield f"{method} {path} 200", operation["responses"]["200"]
        if "requestBody" in operation:
            yield f"{method} {path} body", operation["requestBody"]
    for kind, components in DOCUMENT["components"].items():
        for name, component in components.items():
            yield f"{kind} {name}", component
            for field, schema in component.get("properties", {}).items():
                yield f"{kind} {name}.{field}", schema


def is_marked(part: Any) -> bool:
    return part.get("x-techflow-basis") in ("documented", "assumed") and bool(part.get("x-techflow-reason"))


def test_each_part_is_marked_with_a_reason():
    assert [name for name, part in parts() if not is_marked(part)] == []
    assert len(list(parts())) > 50


def test_the_operations_are_those_of_the_reference():
    assert {(method.upper(), path) for method, path, _ in OPERATIONS} == {
        ("GET", "/workflows"),
        ("POST", "/workflows"),
        ("GET", "/workflows/{workflow_id}"),
        ("PUT", "/workflows/{workflow_id}"),
        ("DELETE", "/workflows/{workflow_id}"),
        ("GET", "/executions"),
        ("POST", "/workflows/{workflow_id}/execute"),
    }
    assert all(set(each["responses"]) == {"200", "400", "401", "404", "429", "500"} for _, _, each in OPERATIONS)


def test_the_sandbox_serves_the_document_with_its_url_and_version(api, sandbox):
    url = api.base_url.join("/openapi.json")
    response = api.get(str(url), headers={"authorization": ""})

    assert response.json() == DOCUMENT
    assert sandbox.count() == 0
    assert url.join(response.json()["servers"][0]["url"] + "/") == api.base_url
    assert response.json()["info"]["version"] == __version__
