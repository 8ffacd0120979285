"""The link of a task to its execution in TechFlow's dashboard."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from techflow_provider.links.techflow import TechFlowLink

pytestmark = [
    pytest.mark.airflow,
    # Airflow 2.11 and its Flask warn about themselves when they are imported; ours would still fail the test.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:::techflow_provider"),
]


def test_each_task_links_to_its_own_execution_by_the_connections_template(served, run_dag, monkeypatch):
    for number in (1, 2):
        served.add_workflow(f"Workflow {number}", id=f"wf_{number}")
    connection = json.loads(os.environ["AIRFLOW_CONN_TECHFLOW_DEFAULT"])
    connection["extra"]["dashboard_url"] = "https://dash.test/{workflow_id}/{execution_id}"
    monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps(connection))
    run = run_dag("links")
    assert run.state == "success"
    ids = {name: run.returned[name] for name in ("start[0]", "start[1]", "both")}
    assert run.links == {
        "start[0]": f"https://dash.test/wf_1/{ids['start[0]']}",
        "start[1]": f"https://dash.test/wf_2/{ids['start[1]']}",
        "both": f"https://dash.test/wf_1/{ids['both']}",
        "wait[0]": f"https://dash.test/wf_1/{ids['start[0]']}",
        "wait[1]": f"https://dash.test/wf_2/{ids['start[1]']}",
    }


def test_a_link_is_a_name_and_the_key_of_an_xcom():
    link: Any = TechFlowLink()
    assert (link.name, link.xcom_key) == ("Open in TechFlow", "techflow_link")
