"""An asset that TechFlow's events update, on Airflow 3, and a clear word on Airflow 2."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from techflow_provider.assets.techflow import techflow_asset
from techflow_provider.client import InvalidParameterError
from techflow_provider.compat import has_api_server

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:::techflow_provider"),
]


@pytest.mark.skipif(not has_api_server(), reason="Airflow 2 has no assets with watchers")
def test_an_asset_watches_its_events() -> None:
    asset = techflow_asset(["execution.failed", "execution.completed"], "wf_1", techflow_conn_id="c")
    (watcher,) = asset.watchers
    path, fields = watcher.trigger.serialize()
    assert path == "techflow_provider.triggers.techflow_events.TechFlowEventTrigger"
    assert fields["events"] == ["execution.completed", "execution.failed"]
    assert type(watcher.trigger)(**fields).serialize() == (path, fields)
    assert (asset.name, asset.uri) == (
        "techflow c execution.completed execution.failed wf_1",
        "techflow://c/execution.completed/execution.failed/wf_1",
    )


@pytest.mark.skipif(not has_api_server(), reason="as above")
def test_an_event_that_is_not_documented_is_named_when_the_dag_is_parsed() -> None:
    with pytest.raises(InvalidParameterError, match=r"execution\.ended"):
        techflow_asset("execution.ended")


@pytest.mark.skipif(has_api_server(), reason="about Airflow 2")
def test_airflow_2_says_that_it_needs_airflow_3() -> None:
    with pytest.raises(NotImplementedError, match="needs Airflow 3"):
        techflow_asset("execution.completed")


@pytest.mark.skipif(not has_api_server(), reason="Airflow 2 has no assets with watchers")
def test_the_how_tos_dag_is_scheduled_on_its_asset() -> None:
    text = (Path(__file__).parents[2] / "docs" / "tasks" / "events.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block, "events.md", "exec"), names)
    asset = names["dag"].timetable.asset_condition
    assert asset.name == "techflow techflow_default execution.completed wf_123"
