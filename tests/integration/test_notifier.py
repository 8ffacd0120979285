"""A callback starts one execution of a workflow, however often Airflow calls it; and the link of a task."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from techflow_provider.links.techflow import TechFlowLink
from techflow_provider.notifications.techflow import TechFlowNotifier, submitter_of
from techflow_provider.sandbox import Fault, Sandbox

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:::techflow_provider"),
]
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def sandbox(served: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sandbox:
    """A sandbox with a workflow to start, and an empty shared state."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    served.add_workflow("alarm", id="wf_alarm")
    return served


def context(try_number: int = 1, map_index: int = -1, **more: Any) -> Any:
    run = SimpleNamespace(dag_id="d", run_id="r", start_date=BEGAN)
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=map_index, try_number=try_number)
    return {"dag_run": run, "ti": ti, **more}


def notifier(**fields: Any) -> TechFlowNotifier:
    return TechFlowNotifier(workflow_id="wf_alarm", **fields)


def test_a_callback_that_is_called_again_starts_nothing_more(sandbox: Sandbox) -> None:
    for _ in range(3):
        notifier(payload={"a": 1}).notify(context())
    (execution,) = sandbox.executions
    assert (execution.workflow_id, execution.payload) == ("wf_alarm", {"a": 1})


def test_each_try_task_run_and_notifier_starts_its_own(sandbox: Sandbox) -> None:
    notifier().notify(context())
    notifier().notify(context(try_number=2))
    notifier().notify(context(map_index=3))
    notifier().notify(context(reason="task_failure"))
    notifier(payload={"a": 1}).notify(context())
    notifier(name="another").notify(context())
    assert len(sandbox.executions) == 6


def test_a_lost_answer_starts_no_second_execution(sandbox: Sandbox) -> None:
    sandbox.faults.add(Fault("lost_response", path="/workflows/*/execute", times=1))
    notifier().notify(context())
    notifier().notify(context())
    assert len(sandbox.executions) == 1


async def test_a_deadlines_callback_in_the_triggerer_starts_one(sandbox: Sandbox) -> None:
    run = {"dag_id": "d", "dag_run_id": "r", "start_date": BEGAN.isoformat()}
    for deadline in ("one", "one", "two"):
        await notifier().async_notify(cast("Any", {"dag_run": run, "deadline": {"id": deadline}}))
    assert len(sandbox.executions) == 2


def test_a_dag_callback_without_a_run_is_known_by_its_dag_and_run_id() -> None:
    submitter = submitter_of({"dag": SimpleNamespace(dag_id="d"), "run_id": "r", "reason": "success"}, "p")
    assert submitter.name.startswith("d/r//-1/p")


def test_a_link_is_a_name_and_the_key_of_an_xcom() -> None:
    link: Any = TechFlowLink()
    assert (link.name, link.xcom_key) == ("Open in TechFlow", "techflow_link")
