"""Starts whose execution is unknown, as the command line lists, shows and forgets them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from techflow_provider.client import AmbiguousExecutionError
from techflow_provider.sandbox import Fault

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore")]
NAME = "d/r/t/-1"
START: dict[str, Any] = {"method": "POST", "path": "/workflows/*/execute"}


def operator(**options: Any) -> Any:
    from techflow_provider.operators.techflow import TechFlowTriggerWorkflowOperator

    return TechFlowTriggerWorkflowOperator(task_id="t", workflow_id="wf_1", **options)


def context(task: Any, try_number: int) -> Any:
    ti = SimpleNamespace(
        dag_id="d",
        run_id="r",
        task_id="t",
        map_index=-1,
        max_tries=1,
        try_number=try_number,
        xcom_push=lambda **_: None,
    )
    return {"ti": ti, "task": task, "dag_run": SimpleNamespace(start_date=None)}


def test_an_unknown_start_is_listed_shown_and_forgotten(served, techflow):
    served.faults.add(Fault("lost_response", times=1, **START))
    task = operator(on_ambiguous="fail")
    with pytest.raises(AmbiguousExecutionError):
        task.execute(context(task, 1))
    techflow("starts", "list")
    assert [each["name"] for each in techflow("starts", "list", "-o", "json").json] == [NAME]
    assert "a search of the history, or a person" in techflow("starts", "list").out
    shown = techflow("starts", "show", NAME, "-o", "json").json
    assert (shown["workflow_id"], shown["lost"], shown["execution_id"]) == ("wf_1", True, None)
    assert "its next attempt starts an execution" in techflow("starts", "forget", NAME).out
    assert techflow("starts", "list", "-o", "json").json == []
    task.execute(context(task, 2))
    task.hook.get_conn().close()
    assert served.count(**START) == 2


def test_a_start_that_is_not_listed_is_refused_by_its_name(served, techflow):
    for command in ("show", "forget"):
        result = techflow("starts", command, "nothing")
        assert result.code == 2
        assert "a name that `starts list` shows" in result.err


def test_a_start_by_hand_is_claimed_and_listed_only_while_it_is_unknown(served, techflow):
    techflow("trigger", "wf_1")
    assert techflow("starts", "list", "-o", "json").json == []
    served.faults.add(Fault("lost_response", times=1, **START))
    assert techflow("trigger", "wf_1").code == 1
    (listed,) = techflow("starts", "list", "-o", "json").json
    assert listed["name"].startswith("direct/")
