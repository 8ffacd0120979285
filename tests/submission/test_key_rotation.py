"""What a new API key in the connection changes for starts, as `docs/operate/key-rotation.md` describes it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from techflow_provider.sandbox import Sandbox

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore")]


def test_records_of_starts_outlive_the_api_key(tmp_path, monkeypatch):
    from techflow_provider.notifications.techflow import TechFlowNotifier

    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    task: Any = SimpleNamespace(dag_id="d", task_id="t", map_index=-1, try_number=1)
    context: Any = {"dag_run": SimpleNamespace(dag_id="d", run_id="r", start_date=None), "ti": task}
    sandbox = Sandbox(api_keys=("first-key", "second-key"), workflows_at_start={"wf_1": "one"})
    with sandbox.serve() as url:
        started = []
        for key in ("first-key", "first-key", "second-key", "second-key"):
            connection = {"conn_type": "techflow", "host": url, "password": key}
            monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps(connection))
            TechFlowNotifier(workflow_id="wf_1").notify(context)
            started.append(len(sandbox.executions))
    assert started == [1, 1, 1, 1]
