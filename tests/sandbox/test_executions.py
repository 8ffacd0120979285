"""Executions: their duration, their final status, and how the history shows them."""

from __future__ import annotations

import math
from typing import Any

import httpx
import pytest

from techflow_provider.sandbox import ManualClock, Sandbox, SettingError
from tests.sandbox.conftest import client_of


@pytest.fixture
def workflow_id(sandbox: Sandbox) -> str:
    return sandbox.add_workflow("n")


def history(api: httpx.Client) -> Any:
    return api.get("/executions").json()["executions"]


def test_an_execution_runs_until_its_duration_has_passed(local, clock, workflow_id):
    started = local.post(f"/workflows/{workflow_id}/execute").json()

    clock.advance(4.999)
    assert history(local) == [started]
    clock.advance(0.001)

    final = {"status": "completed", "finished_at": "2026-01-01T00:00:05.000000Z"}
    assert started["status"] == "running"
    assert history(local) == [started | final]


def test_a_plan_configures_the_executions_of_a_workflow(local, sandbox, clock, workflow_id):
    sandbox.plan(workflow_id, seconds=2, outcome="failed", error="no disk")
    local.post(f"/workflows/{workflow_id}/execute")
    clock.advance(2)

    assert [(each["status"], each["error"]) for each in history(local)] == [("failed", "no disk")]


def test_a_plan_falls_back_to_the_settings(sandbox, clock, workflow_id):
    sandbox.plan(workflow_id, outcome="failed")
    sandbox.start(workflow_id)
    clock.advance(5)

    (execution,) = sandbox.executions
    assert execution.status == "failed"
    assert execution.error


def test_the_body_of_a_start_may_plan_its_execution(local, sandbox, clock, workflow_id):
    sandbox.plan(workflow_id, seconds=100, error="from the plan")
    payload = {"region": "eu", "sandbox": {"seconds": 1, "outcome": "failed"}}
    local.post(f"/workflows/{workflow_id}/execute", json=payload)
    clock.advance(1)

    (execution,) = sandbox.executions
    assert (execution.status, execution.error, execution.payload) == ("failed", "from the plan", payload)


@pytest.mark.parametrize(
    "plan",
    [1, None, {"second": 1}, {"seconds": -1}, {"seconds": True}, {"seconds": "1"}, {"outcome": "x"}, {"error": 1}],
)
def test_an_invalid_plan_starts_nothing(local, sandbox, workflow_id, plan):
    response = local.post(f"/workflows/{workflow_id}/execute", json={"sandbox": plan})

    assert response.status_code == 400
    assert "received" in response.json()["error"]["message"]
    assert sandbox.executions == ()


def test_an_execution_without_a_duration_runs_until_it_is_finished(sandbox, clock, workflow_id):
    sandbox.plan(workflow_id, seconds=math.inf)
    execution = sandbox.start(workflow_id)
    clock.advance(1_000_000)
    assert sandbox.executions[0].status == "running"

    finished = sandbox.finish(execution.id, outcome="failed", error="stopped")

    assert (finished.status, finished.error, finished.finished_at) == ("failed", "stopped", clock.now())


def test_an_execution_finishes_only_once(sandbox, clock, workflow_id):
    execution = sandbox.start(workflow_id)
    clock.advance(1)
    sandbox.finish(execution.id)
    clock.advance(10)

    assert [event.name for event in sandbox.events if "completed" in event.name] == ["execution.completed"]
    with pytest.raises(SettingError, match="this one is completed"):
        sandbox.finish(execution.id)


def test_an_unknown_id_can_neither_start_nor_finish(sandbox):
    with pytest.raises(KeyError):
        sandbox.start("none")
    with pytest.raises(KeyError):
        sandbox.finish("none")


def test_every_change_is_an_event_with_its_time(sandbox, clock, local):
    workflow_id = local.post("/workflows", json={"name": "n"}).json()["id"]
    sandbox.plan(workflow_id, seconds=3)
    first = sandbox.start(workflow_id)
    sandbox.plan(workflow_id, seconds=1, outcome="failed")
    second = sandbox.start(workflow_id)
    start = clock.now()
    clock.advance(10)
    local.put(f"/workflows/{workflow_id}", json={"name": "m"})
    local.delete(f"/workflows/{workflow_id}")

    assert [(each.name, (each.at - start).total_seconds(), each.execution_id) for each in sandbox.events] == [
        ("workflow.created", 0, None),
        ("execution.started", 0, first.id),
        ("execution.started", 0, second.id),
        ("execution.failed", 1, second.id),
        ("execution.completed", 3, first.id),
        ("workflow.updated", 10, None),
        ("workflow.deleted", 10, None),
    ]
    assert {each.workflow_id for each in sandbox.events} == {workflow_id}


def served(**settings: Any) -> tuple[Sandbox, ManualClock, str]:
    clock = ManualClock()
    sandbox = Sandbox(clock=clock, **settings)
    return sandbox, clock, sandbox.add_workflow("n")


def test_the_history_may_lag():
    sandbox, clock, workflow_id = served(history_lag_seconds=3)
    sandbox.start(workflow_id)

    with client_of(sandbox, sandbox.base_url, sandbox.transport()) as client:
        clock.advance(2.9)
        assert history(client) == []
        clock.advance(0.1)
        assert len(history(client)) == 1
    assert len(sandbox.executions) == 1


def test_pages_are_linked_and_stay_complete_while_executions_start(connect):
    sandbox, _, workflow_id = served(page_size=2)
    api = connect(sandbox)
    ids = [sandbox.start(workflow_id).id for _ in range(5)]
    seen = []
    url = "/v2/executions"
    while url:
        page = api.get(str(api.base_url.join(url)))
        seen += [each["id"] for each in page.json()["executions"]]
        url = page.links.get("next", {}).get("url")
        sandbox.start(workflow_id)

    assert seen == ids[::-1]


def test_a_full_last_page_has_no_link(local, sandbox):
    sandbox.page_size = 2
    workflow_id = sandbox.add_workflow("n")
    for _ in range(2):
        sandbox.start(workflow_id)

    assert "link" not in local.get("/executions").headers
    assert local.get("/executions?after=none").status_code == 400


def test_the_next_page_may_be_named_in_the_body(local, sandbox, workflow_id):
    sandbox.page_size, sandbox.next_page = 1, "body"
    for _ in range(2):
        sandbox.start(workflow_id)

    first = local.get("/executions")
    last = local.get(str(local.base_url.join(first.json()["next"]))).json()

    assert "link" not in first.headers
    assert "next" not in last
    assert len(last["executions"]) == 1


@pytest.mark.parametrize(
    ("response", "fields"),
    [("execution", {"id", "workflow_id", "status", "started_at", "finished_at", "error"}), ("wrapped", {"execution"})],
)
def test_a_start_may_return_an_execution(local, sandbox, workflow_id, response, fields):
    sandbox.execute_response = response
    assert set(local.post(f"/workflows/{workflow_id}/execute").json()) == fields


def test_a_start_may_return_only_an_id(local, sandbox, workflow_id):
    sandbox.execute_response = "id"
    body = local.post(f"/workflows/{workflow_id}/execute").json()
    assert body == {"execution_id": sandbox.executions[0].id}


def test_a_start_may_return_an_empty_body(api, sandbox, workflow_id):
    sandbox.execute_response = "empty"
    response = api.post(f"/workflows/{workflow_id}/execute")
    assert (response.status_code, response.content) == (200, b"")
    assert len(sandbox.executions) == 1


def test_times_and_statuses_may_have_other_formats(local, sandbox, clock, workflow_id):
    clock.advance(0.25)
    sandbox.start(workflow_id)
    sandbox.status_words = {"running": "in_progress"}
    sandbox.times = "epoch"
    (execution,) = history(local)
    assert (execution["status"], execution["started_at"]) == ("in_progress", clock.now().timestamp())
    sandbox.times = "iso_seconds"
    assert history(local)[0]["started_at"] == "2026-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 0}, "limit: received 0, expected an integer above 0"),
        ({"limit": True}, "limit: received True"),
        ({"period_seconds": 0}, "period_seconds: received 0, expected a number of seconds above 0"),
        ({"period_seconds": math.inf}, "period_seconds: received inf"),
        ({"execution_seconds": -1}, "execution_seconds: received -1"),
        ({"execution_seconds": math.nan}, "execution_seconds: received nan"),
        ({"algorithm": "fair"}, "algorithm: received 'fair', expected one of fixed_window, sliding_log"),
        ({"outcome": "won"}, "outcome: received 'won', expected one of completed, failed"),
        ({"burst": 0}, "burst: received 0"),
        ({"page_size": 1.5}, "page_size: received 1.5"),
        ({"retry_after": "soon"}, "retry_after: received 'soon'"),
        ({"status_words": {"done": "x"}}, "status_words: received 'done'"),
    ],
)
def test_an_invalid_setting_is_reported_with_what_was_received_and_what_was_expected(settings, message):
    with pytest.raises(SettingError) as caught:
        Sandbox(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("keys", [(), "secret-key", ("secret-key", "")])
def test_an_error_about_keys_does_not_contain_them(keys):
    with pytest.raises(SettingError) as caught:
        Sandbox(api_keys=keys)
    assert "secret" not in str(caught.value)


def test_a_seed_makes_ids_reproducible():
    assert Sandbox(seed=7).add_workflow("n") == Sandbox(seed=7).add_workflow("n")
    assert Sandbox().add_workflow("n") != Sandbox().add_workflow("n")


def test_a_clock_does_not_go_backwards(clock):
    with pytest.raises(ValueError, match="expected 0 or more"):
        clock.advance(-1)
