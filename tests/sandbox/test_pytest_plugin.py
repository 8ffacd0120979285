"""The pytest fixtures for users' tests of their DAGs."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]

PLUGIN = "techflow_provider.sandbox.pytest_plugin"
PYTHONPATH = os.pathsep.join(sys.path)
INSTALLED = any(entry_point.value == PLUGIN for entry_point in entry_points(group="pytest11"))


def test_the_fixtures_serve_a_sandbox_and_point_airflows_connection_to_it(pytester: pytest.Pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    pytester.makepyfile(
        """
        import json, os, httpx

        def test_sandbox(techflow_sandbox, techflow_connection):
            assert techflow_connection == "techflow_default"
            connection = json.loads(os.environ["AIRFLOW_CONN_TECHFLOW_DEFAULT"])
            assert connection["host"] == techflow_sandbox.base_url
            headers = {"authorization": f"Bearer {connection['password']}"}
            assert httpx.get(connection["host"] + "/workflows", headers=headers).status_code == 200
            assert techflow_sandbox.count("GET", "/workflows") == 1

        def test_without():
            assert "AIRFLOW_CONN_TECHFLOW_DEFAULT" not in os.environ
        """
    )
    arguments = () if INSTALLED else ("-p", PLUGIN)
    pytester.runpytest_subprocess("-W", "error::ResourceWarning", *arguments).assert_outcomes(passed=2)


def test_loading_the_plugin_loads_nothing_heavy():
    code = (
        f"import sys, pytest; before = set(sys.modules); import {PLUGIN}; "
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('_')))"
    )
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, env=environment, text=True, capture_output=True, check=True).stdout.split()
    assert {name for name in loaded if name.startswith("techflow_provider")} == {
        "techflow_provider",
        "techflow_provider.sandbox",
        PLUGIN,
    }
    assert not {"httpx", "airflow", "http.server"} & set(loaded)


def test_the_sandbox_imports_nothing_else_of_this_package():
    code = "import sys, techflow_provider.sandbox.server; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, env=environment, text=True, capture_output=True, check=True).stdout.split()
    ours = [name for name in loaded if name.startswith("techflow_provider.")]
    assert all(name.startswith("techflow_provider.sandbox") for name in ours)
    assert "airflow" not in loaded


def test_every_public_name_can_be_imported():
    import techflow_provider.sandbox as package

    assert {name: getattr(package, name).__name__ for name in package.__all__} == {n: n for n in package.__all__}
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = package.Nothing
