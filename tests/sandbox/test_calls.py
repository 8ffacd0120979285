"""The documented calls, their error codes, and the order of the checks."""

from __future__ import annotations

import pytest

CALLS = [
    ("GET", "/workflows"),
    ("POST", "/workflows"),
    ("GET", "/workflows/wf_1"),
    ("PUT", "/workflows/wf_1"),
    ("DELETE", "/workflows/wf_1"),
    ("POST", "/workflows/wf_1/execute"),
    ("GET", "/executions"),
    ("GET", "/nothing"),
]


def test_a_created_workflow_is_listed_as_the_reference_shows(api):
    created = api.post("/workflows", json={"name": "My Workflow", "description": "d", "triggers": ["manual"]})

    assert created.status_code == 200
    workflow = created.json()
    assert workflow | {"name": "My Workflow", "description": "d", "triggers": ["manual"]} == workflow
    listed = {"workflows": [{"id": workflow["id"], "name": "My Workflow", "status": "active"}]}
    assert api.get("/workflows").json() == listed
    assert api.get(f"/workflows/{workflow['id']}").json() == workflow


def test_unknown_fields_of_a_workflow_are_kept(local, sandbox):
    workflow = local.post("/workflows", json={"name": "n", "owner": {"team": "t"}, "id": "mine"}).json()

    assert workflow["owner"] == {"team": "t"}
    assert workflow["id"] != "mine"
    assert sandbox.workflows == (workflow,)


def test_put_replaces_the_whole_workflow(local, sandbox):
    workflow_id = sandbox.add_workflow("n", description="d", triggers=["manual"])

    assert local.put(f"/workflows/{workflow_id}", json={"name": "m"}).status_code == 200
    assert local.get(f"/workflows/{workflow_id}").json() == {"id": workflow_id, "name": "m", "status": "active"}


def test_put_does_not_change_the_id(local, sandbox):
    workflow_id = sandbox.add_workflow("n")

    assert local.put(f"/workflows/{workflow_id}", json={"name": "m", "id": "other"}).status_code == 400
    assert local.put(f"/workflows/{workflow_id}", json={"name": "m", "id": workflow_id}).status_code == 200


def test_a_deleted_workflow_is_not_found_and_its_executions_stay(local, sandbox):
    workflow_id = sandbox.add_workflow("n")
    sandbox.start(workflow_id)

    deleted = local.delete(f"/workflows/{workflow_id}")

    assert (deleted.status_code, deleted.json()) == (200, {"id": workflow_id, "deleted": True})
    assert local.get(f"/workflows/{workflow_id}").status_code == 404
    assert local.delete(f"/workflows/{workflow_id}").status_code == 404
    assert len(local.get("/executions").json()["executions"]) == 1


def test_names_need_not_be_unique(local):
    ids = {local.post("/workflows", json={"name": "n"}).json()["id"] for _ in range(2)}
    assert len(ids) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"name"',
        b"null",
        b"\xff",
        b"{}",
        b'{"name": ""}',
        b'{"name": null}',
        b'{"name": 1}',
        b'{"name": "n", "description": 1}',
        b'{"name": "n", "status": null}',
        b'{"name": "n", "triggers": "manual"}',
        b'{"name": "n", "triggers": [1]}',
        b'{"name": "n", "x": NaN}',
        b'{"name": "n", "x": 1e999}',
        b'{"name": "n", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"name": "n", "x": ' + b"[" * 200 + b"]" * 200 + b"}",
    ],
)
def test_an_invalid_workflow_is_rejected_and_changes_nothing(local, sandbox, content):
    workflow_id = sandbox.add_workflow("n")
    before = sandbox.workflows

    for method, path in (("POST", "/workflows"), ("PUT", f"/workflows/{workflow_id}")):
        response = local.request(method, path, content=content, headers={"content-type": "application/json"})
        assert response.status_code == 400
        assert response.json()["error"]["message"]
    assert sandbox.workflows == before


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_of_another_content_type_is_rejected(local, content_type):
    response = local.post("/workflows", content=b'{"name": "n"}', headers={"content-type": content_type})
    assert response.status_code == 400


def test_a_content_type_may_have_parameters(local):
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert local.post("/workflows", content='{"name": "ñ"}'.encode(), headers=headers).json()["name"] == "ñ"


def test_an_unknown_workflow_path_or_method_is_not_found(api):
    requests = [
        ("GET", "/workflows/none"),
        ("PUT", "/workflows/none"),
        ("DELETE", "/workflows/none"),
        ("POST", "/workflows/none/execute"),
        ("GET", "/nothing"),
        ("GET", "/workflows/"),
        ("GET", "/executions/exec_1"),
        ("PATCH", "/workflows"),
        ("DELETE", "/executions"),
        ("OPTIONS", "/workflows"),
        ("HEAD", "/workflows"),
    ]
    found = [each for each in requests if api.request(*each).status_code != 404]
    assert found == []


def test_only_paths_below_the_base_url_are_calls(local):
    assert local.get("https://api.techflow.com/workflows").status_code == 404
    assert local.get("https://api.techflow.com/v3/workflows").status_code == 404


def test_ids_are_percent_decoded(local, sandbox):
    sandbox.add_workflow("n", id="a/b ü")
    assert local.get("/workflows/a%2Fb%20%C3%BC").json()["name"] == "n"


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic {}", "{}", "bearer {}"]
)
def test_authorization_is_checked_first(local, api_key, authorization):
    headers = {} if authorization is None else {"authorization": authorization.format(api_key)}
    for method, path in CALLS:
        request = local.build_request(method, path, content=b"{")
        request.headers.pop("authorization")
        request.headers.update(headers)

        response = local.send(request)

        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer"), (method, path)


def test_a_repeated_authorization_header_is_rejected(api, api_key):
    headers = [("authorization", f"Bearer {api_key}")] * 2
    assert api.get("/workflows", headers=headers).status_code == 401


def test_every_response_has_the_sandboxs_date(api, clock):
    clock.advance(61)
    for path in ("/workflows", "/nothing"):
        assert api.get(path).headers["date"] == "Thu, 01 Jan 2026 00:01:01 GMT"
