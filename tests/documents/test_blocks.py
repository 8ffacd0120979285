"""Every code block of the documents works: DAGs run in a real Airflow against a sandbox, commands exit with 0."""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from techflow_provider.sandbox import Record, Sandbox
from tests.documents.blocks import ROOT, Block, all_blocks, blocks
from tests.documents.commands import commands, run_line

BLOCKS = all_blocks()
RUN_BY_PYTEST = re.compile(r"^def test_", re.MULTILINE)
EXAMPLES = ROOT / "dags_examples"

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("default")]


def of(*languages: str) -> list[object]:
    """Return the blocks in some languages as parameters."""
    return [
        pytest.param(each, id=each.name, marks=[pytest.mark.skip(reason=each.skip)] if each.skip else [])
        for each in BLOCKS
        if each.language in languages
    ]


def test_every_block_is_run_read_or_has_a_reason_for_being_skipped():
    read = {"python", "sh", "json", "ini", "yaml"}
    assert not [each.name for each in BLOCKS if each.language not in read and not each.skip]


@pytest.mark.parametrize("block", of("python"))
def test_a_python_block_runs(block: Block, sandbox: Sandbox, airflow_home: Path, count: Counter[str], monkeypatch):
    monkeypatch.chdir(airflow_home)
    monkeypatch.syspath_prepend(EXAMPLES)
    path = airflow_home / "dags" / (re.sub(r"\W+", "_", block.name) + ".py")
    path.write_text(block.code)
    if RUN_BY_PYTEST.search(block.code):
        run_pytest(path)
        count["run by pytest"] += 1
        return
    module = load(path)
    dag = getattr(module, "dag", None)
    assert dag is not None or "DAG(" not in block.code, "a DAG block calls its DAG `dag`"
    if dag is None:
        count["of Python run"] += 1
        return
    for task in dag.tasks:
        # `dag.test()` sleeps until the time of a retry.
        vars(task).get("partial_kwargs", vars(task))["retries"] = 0
    if block.elsewhere:
        sandbox.on_request = partial(start_elsewhere, sandbox, block.elsewhere)
    run = dag.test()
    assert str(getattr(run.state, "value", run.state)) == block.state
    count["DAGs run with dag.test()"] += 1


def start_elsewhere(sandbox: Sandbox, workflow_id: str, request: Record) -> None:
    """Start a workflow once its history is polled."""
    if request.path == "/executions" and not sandbox.executions:
        sandbox.start(workflow_id)


def load(path: Path) -> ModuleType:
    """Import a block as Airflow imports a DAG file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_pytest(path: Path) -> None:
    """Run a block that consists of tests, with the fixtures of the package."""
    test = path.with_name(f"test_{path.name}")
    shutil.move(path, test)
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-o", f"pythonpath={EXAMPLES}", str(test)]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False)
    test.unlink()
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("block", of("sh"))
def test_a_shell_block_runs(block: Block, sandbox: Sandbox, airflow_home: Path, count: Counter[str], monkeypatch):
    monkeypatch.chdir(airflow_home)
    for path in EXAMPLES.glob("*.py"):
        shutil.copy(path, airflow_home / "dags")
    ran = [run_line(line) for line in commands(block.code)]
    count["of commands run" if any(ran) else "of commands checked"] += 1


@pytest.mark.parametrize("block", of("json", "ini", "yaml", "dockerfile"))
def test_a_block_of_data_can_be_read(block: Block, count: Counter[str]):
    if block.language == "json":
        json.loads(block.code)
    elif block.language == "ini":
        configparser.ConfigParser(interpolation=None).read_string(block.code)
    else:
        yaml = pytest.importorskip("yaml")
        yaml.safe_load(block.code)
    count["of data read"] += 1


def test_a_comment_above_a_block_says_how_to_run_it(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tests.documents.blocks.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- block: skip=needs Docker -->\n```sh\ndocker ps\n```\n\n  ```python\n  x = 1\n  ```\n```text\nn\n```\n"
    )
    first, second = blocks(page)
    assert (first.language, first.skip, first.name) == ("sh", "needs Docker", "page.md:2")
    assert (second.code, second.state) == ("x = 1\n", "success")
