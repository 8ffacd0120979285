"""The OpenAPI document says of each of its parts whether the vendor's reference knows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

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


@pytest.mark.parametrize(("name", "part"), [pytest.param(*each, id=each[0]) for each in parts()])
def test_each_part_is_marked_with_a_reason(name, part):
    assert part["x-techflow-basis"] in ("documented", "assumed")
    assert part["x-techflow-reason"]


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


def test_the_sandbox_serves_the_document(api, sandbox):
    response = api.get(str(api.base_url.join("/openapi.json")), headers={"authorization": ""})
    assert response.json() == DOCUMENT
    assert sandbox.count() == 0
