"""A TechFlow with other names and words is corrected by the settings that `doctor --learn` prints alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from techflow_provider.cli import main
from techflow_provider.sandbox import Record, Sandbox
from techflow_provider.sandbox.messages import Request, Response
from tests.integration.conftest import KEY, NEVER, AirflowProcess, finish_running

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore")]

WORDS = {"completed": "done", "failed": "broken", "running": "brewing"}
NAMES = {"status": "phase", "started_at": "began_ms", "finished_at": "ended_ms", "error": "problem"}


class OtherTechFlow(Sandbox):
    """A sandbox whose requests and responses have other names, and times in milliseconds."""

    def handle(self, request: Request) -> Generator[float, None, Response]:
        """Handle a request with other names."""
        if request.method in ("POST", "PUT") and not request.path.endswith("/execute"):
            sent = json.loads(request.body)
            assert not sent.keys() & {"id", "name"}
            known = {{"key": "id", "title": "name"}.get(name, name): value for name, value in sent.items()}
            request = replace(request, body=json.dumps(known).encode())
        response = yield from super().handle(request)
        if response.body and response.status and response.status < 300:
            response = replace(response, body=json.dumps(renamed(json.loads(response.body))).encode())
        return response


def renamed(value: Any) -> Any:
    """Return workflows and executions with other names."""
    if isinstance(value, list):
        return [renamed(each) for each in value]
    if "id" not in value:
        return {name: renamed(each) if isinstance(each, list) else each for name, each in value.items()}
    if "workflow_id" not in value:
        return {{"id": "key", "name": "title"}.get(name, name): each for name, each in value.items()}
    other = {NAMES.get(name, name): as_milliseconds(name, each) for name, each in value.items()}
    return {"run_uid": other.pop("id"), "flow": {"ref": other.pop("workflow_id")}, **other}


def as_milliseconds(name: str, value: Any) -> Any:
    """Return a time in milliseconds since 1970, and anything else as it is."""
    is_time = name.endswith("_at") and isinstance(value, str)
    return int(datetime.fromisoformat(value).timestamp() * 1000) if is_time else value


def test_the_settings_that_doctor_prints_correct_a_techflow_with_other_names(
    run_dag: Callable[..., Any],
    airflow_process: AirflowProcess,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    techflow = OtherTechFlow(api_keys=(KEY,), limit=10_000, execution_seconds=NEVER, status_words=WORDS)
    techflow.history_filters = ("workflow_id", "since", "limit")
    flows = [techflow.add_workflow(name) for name in ("Hourly", "Nightly")]
    techflow.plan(flows[1], outcome="failed", error="disk full")
    for flow in (*flows, flows[0]):
        techflow.start(flow)
    finish_running(techflow)
    techflow.start(flows[0])

    def finish(request: Record) -> None:
        if (request.method, request.path) == ("GET", "/executions"):
            finish_running(techflow)

    with techflow.serve() as url:

        def connect(**extra: Any) -> None:
            wide = {"requests_per_minute": 10_000, "burst": 1000}
            connection = {"conn_type": "techflow", "host": url, "password": KEY, "extra": {**wide, **extra}}
            monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps(connection))

        connect()
        tested = airflow_process.command("connections", "test", "techflow_default")
        assert "doctor --learn shows what to set" in " ".join((tested.stdout + tested.stderr).split())
        assert main(["doctor", "--learn"]) == 0
        printed = capsys.readouterr().out
        learned = json.loads(printed[printed.index("\n{") :])
        assert learned == {
            "fields": {
                "workflow.id": "key",
                "workflow.name": "title",
                "execution.id": "run_uid",
                "execution.workflow_id": "flow.ref",
                "execution.status": "phase",
                "execution.started_at": "began_ms",
                "execution.finished_at": "ended_ms",
                "execution.error": "problem",
            },
            "completed_statuses": "done",
            "failed_statuses": "broken",
            "history_query": "limit=200&workflow_id={workflow_id}&since={since}",
        }
        connect(**learned)
        assert main(["doctor", "--learn"]) == 0
        unclear = [line for line in capsys.readouterr().out.splitlines() if "unclear" in line]
        assert [line.split()[1] for line in unclear] == ["'brewing'"]
        techflow.on_request = finish
        for dag_id in ("techflow_create_trigger_wait", "every_operator"):
            run = run_dag(dag_id)
            assert run.state == "success", run.log[-6000:]
            assert set(run.tasks.values()) == {"success"}
    started = {run.returned[task] for task in ("start", "start_and_wait", "start_and_defer")}
    assert {each["id"] for each in run.returned["list_executions"]} == started
    assert run.returned["get"]["description"] == "changed"
