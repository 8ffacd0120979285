"""Every module of the package, imported with what Airflow and others warn of as an error."""

from __future__ import annotations

import subprocess
import sys

import pytest

from techflow_provider.compat import has_api_server

pytestmark = pytest.mark.airflow

# Each web server has modules of its own.
ELSEWHERE = (
    ("webhooks.flask",)
    if has_api_server()
    else ("webhooks.fastapi", "page.fastapi", "page.database", "state_server.app")
)
PROGRAM = """
import importlib, pkgutil, sys, warnings
import airflow
# Airflow has loaded some of them, and set filters of its own.
for name in [each for each in sys.modules if each.partition(".")[0] == "techflow_provider"]:
    del sys.modules[name]
warnings.simplefilter("ignore")
warnings.filterwarnings("error", module="techflow_provider")
import techflow_provider
for module in pkgutil.walk_packages(techflow_provider.__path__, "techflow_provider."):
    if not module.name.endswith((".__main__", *sys.argv[1:])):
        importlib.import_module(module.name)
        print(module.name)
"""


def test_no_module_uses_what_is_deprecated():
    done = subprocess.run([sys.executable, "-c", PROGRAM, *ELSEWHERE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 90


def test_parsing_a_dag_loads_nothing_that_only_its_tasks_need():
    code = "import sys, techflow_provider.operators.techflow, techflow_provider.sensors.techflow; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    later = tuple(f"techflow_provider.{part}" for part in ("client.flow", "hooks", "polling", "state", "submission"))
    assert [name for name in loaded if name.startswith(later)] == []
