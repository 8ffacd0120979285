"""The client on its own: what importing it loads, and the reference's example verbatim."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import techflow_provider
import techflow_provider.client as techflow
from techflow_provider.sandbox import Sandbox

ROOT = Path(techflow_provider.__file__).parents[1]
# "Python Example" of the reference, with its first line as the README has it.
EXAMPLE = """
import techflow_provider.client as techflow

client = techflow.Client(api_key="your_key")

# List workflows
workflows = client.workflows.list()

# Create a workflow
workflow = client.workflows.create(
    name="My Workflow",
    triggers=["manual"]
)
"""
FOREIGN = ("airflow", "redis", "requests", "aiohttp", "sqlalchemy", "flask", "fastapi", "pendulum")


def test_importing_the_client_loads_neither_airflow_nor_anything_heavy():
    load = "from techflow_provider.client import AsyncClient, Client"
    code = f"import sys; before = set(sys.modules); {load}; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert {"techflow_provider", "httpx"} <= loaded
    assert loaded.isdisjoint(FOREIGN)


def test_the_references_example_runs_verbatim(monkeypatch):
    sandbox = Sandbox(api_keys=("your_key",), workflows_at_start={"wf_123": "Old Workflow"})
    served = sandbox.transport()
    # The example names no server, so the network below httpx is the sandbox.
    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", lambda _, request: served.handle_request(request))
    names: dict[str, object] = {}
    exec(EXAMPLE, names)

    client, workflow = names["client"], names["workflow"]
    assert isinstance(client, techflow.Client)
    client.close()
    assert client.settings.base_url == "https://api.techflow.com/v2"
    assert [each.id for each in names["workflows"]] == ["wf_123"]  # type: ignore[attr-defined]
    assert isinstance(workflow, techflow.Workflow)
    assert (workflow.name, workflow.raw["triggers"]) == ("My Workflow", ["manual"])
    assert [record.path for record in sandbox.requests] == ["/workflows", "/workflows"]


def test_every_public_name_exists_and_is_documented():
    undocumented = [name for name in techflow.__all__ if not getattr(techflow, name).__doc__]
    assert undocumented == []


def test_a_client_closes_its_connections(sandbox, api_key):
    with techflow.Client(api_key, transport=sandbox.transport()) as client:
        assert client.workflows.list() == []
    with pytest.raises(RuntimeError, match="closed"):
        client.workflows.list()
