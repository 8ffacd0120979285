"""README, CHANGELOG and the example DAGs say what the code does."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from techflow_provider import __version__
from techflow_provider.sandbox import Sandbox
from techflow_provider.sandbox.server import DEFAULT_PORT, _greeting, _parser

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
COMPARISON = (ROOT / "docs" / "comparison.md").read_text()
EXAMPLES = sorted((ROOT / "dags_examples").glob("*.py"))
GUIDES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *EXAMPLES, *GUIDES]
PYTHON_BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
IMPORT_ROWS = re.findall(r"^\| `(techflow_provider[\w.]*)` \| ([^|]*) \|", README, re.MULTILINE)
IMPORTS = [(module, name) for module, names in IMPORT_ROWS for name in re.findall(r"`(\w+)`", names)]
MACHINE_PATHS = re.compile(r"/(?:work|tmp|home|root|usr|opt|Users)/")


def example_name(path: Path) -> str:
    return path.stem


def dag_ids(path: Path) -> list[object]:
    """Return the first argument of each `DAG(...)`, read without Airflow."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "DAG"]
    return [ast.literal_eval(call.args[0]) for call in named]


def test_the_newest_version_in_the_changelog_is_the_packages():
    versions = re.findall(r"^## \[([^\]]+)\]", CHANGELOG, re.MULTILINE)
    assert versions[0] == __version__


def test_the_readme_has_at_most_200_lines():
    assert len(README.splitlines()) <= 200


def test_the_readmes_python_compiles():
    assert len(PYTHON_BLOCKS) >= 2
    for block in PYTHON_BLOCKS:
        compile(block, "README.md", "exec")


def test_the_readmes_dag_is_the_example():
    assert PYTHON_BLOCKS[0] in (ROOT / "dags_examples" / "techflow_create_trigger_wait.py").read_text()


def readme_commands() -> list[str]:
    found = re.findall(r"^( *)```sh\n(.*?)^\1```", README, re.MULTILINE | re.DOTALL)
    return [line.strip() for _, block in found for line in block.replace("\\\n", " ").splitlines()]


def test_the_readmes_connection_is_the_one_that_the_sandbox_prints():
    printed = _greeting(Sandbox(), f"http://127.0.0.1:{DEFAULT_PORT}/v2").splitlines()[-1]
    assert printed in readme_commands()


@pytest.mark.airflow
@pytest.mark.filterwarnings("ignore")
def test_the_readmes_commands_are_ones():
    from airflow.cli.cli_parser import get_parser

    from techflow_provider.cli import build_parser

    for line in readme_commands():
        program, *arguments = shlex.split(line, comments=True)
        if program == "airflow":
            assert get_parser().parse_args(arguments)
        elif program == "python":
            assert build_parser().parse_args(arguments[2:])
        else:
            assert program in ("pip", "export")
    assert len(readme_commands()) >= 6


def test_the_licence_is_the_whole_apache_2():
    licence = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


@pytest.mark.parametrize("path", GUIDES, ids=example_name)
def test_a_how_tos_python_compiles_and_imports_what_there_is(path):
    for block in re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
        compile(block, path.name, "exec")
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("techflow_provider"):
                pytest.importorskip("airflow")
                assert all(hasattr(importlib.import_module(node.module or ""), name.name) for name in node.names)


@pytest.mark.parametrize("path", GUIDES, ids=example_name)
def test_a_how_to_calls_the_sandboxs_command_as_it_is(path):
    blocks = re.findall(r"^```sh\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    for line in filter(None, lines):
        command, *arguments = shlex.split(line)
        if command == "techflow-sandbox":
            assert _parser().parse_args(arguments)


@pytest.mark.parametrize("path", DOCUMENTS, ids=example_name)
def test_a_document_names_no_path_of_a_machine(path):
    assert MACHINE_PATHS.search(path.read_text()) is None


@pytest.mark.parametrize("path", EXAMPLES, ids=example_name)
def test_an_example_is_short_and_its_dag_is_called_as_the_file(path):
    assert len(path.read_text().splitlines()) <= 40
    assert dag_ids(path) == [path.stem]


@pytest.mark.parametrize("path", EXAMPLES, ids=example_name)
def test_an_example_imports_public_names_alone(path):
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    ours = {(each.module, name.name) for each in imports for name in each.names if "techflow" in (each.module or "")}
    public = {*IMPORTS, ("techflow_provider.client", "Execution"), ("techflow_provider.client", "ExecutionState")}
    assert ours <= public


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", [ROOT / "README.md", *GUIDES], ids=example_name)
def test_a_link_to_a_file_leads_to_one(path):
    targets = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", [ROOT / "README.md", *GUIDES], ids=example_name)
def test_a_test_that_is_named_exists(path):
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", path.read_text()):
        wanted = rf"^ *(async )?def {name}\(" if name else r"^def test_"
        assert re.search(wanted, (ROOT / file).read_text(), re.MULTILINE), (file, name)


def compared(text: str) -> list[list[str]]:
    """Return the rows of a table beside other providers: what is compared, ours, theirs."""
    cells = (line.strip("| ").split(" | ") for line in re.findall(r"^\| [A-Z`].*", text, re.MULTILINE))
    return [row for row in cells if len(row) == 7]


def test_the_readme_says_of_other_providers_what_their_page_says():
    page = {row[0]: row[1:] for row in compared(COMPARISON)}
    rows = compared(README)
    assert len(rows) > 4
    for what, ours, *theirs in rows:
        assert page[what][0].startswith(ours)
        assert theirs == [cell.partition(":")[0] for cell in page[what][1:]]


def test_what_is_said_beside_other_providers_has_a_test_for_us_and_a_file_for_them():
    text, rows = COMPARISON, compared(COMPARISON)
    assert len(rows) == len(re.findall(r"^\| [A-Z`]", text, re.MULTILINE))
    ours = {number for row in rows for number in re.findall(r"\[(\d+)\]", row[1])}
    assert all(re.search(r"\[\d+\]", row[1]) for row in rows)
    assert ours == set(re.findall(r"^(\d+)\. `tests/", text, re.MULTILINE))
    assert all(cell == "—" or re.search(r"`[\w/]+\.py`$", cell) for row in rows for cell in row[2:])


@pytest.mark.airflow
@pytest.mark.filterwarnings("ignore")
def test_a_guides_dag_is_one():
    pytest.importorskip("airflow.providers.http")
    for path in GUIDES:
        for block in blocks(path, "python"):
            names: dict[str, object] = {}
            exec(compile(block, path.name, "exec"), names)
            assert names.get("dag") or "DAG(" not in block


@pytest.mark.airflow
@pytest.mark.filterwarnings("default")
def test_the_guides_commands_run(tmp_path, monkeypatch, capsys):
    from techflow_provider.cli import main

    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    sandbox = Sandbox(workflows_at_start={"wf_123": "Nightly"}, execution_seconds=0.01, limit=10_000)
    lines = [line for block in blocks(ROOT / "docs" / "command-line.md", "sh") for line in block.splitlines()]
    with sandbox.serve() as url:
        extra = {"requests_per_minute": 10_000, "burst": 1000}
        connection = {"conn_type": "techflow", "host": url, "password": sandbox.api_keys[0], "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps(connection))
        for line in lines:
            program, *arguments = shlex.split(line.removeprefix("python -m "))
            quick = ["--poll-interval", "0.05"] if arguments[0] == "trigger" else []
            assert (program, main([*arguments, *quick])) == ("techflow_provider", 0), capsys.readouterr()
    assert len(lines) >= 8


@pytest.mark.airflow
@pytest.mark.filterwarnings("ignore")
def test_the_guides_connections_are_read(monkeypatch):
    from airflow.models.connection import Connection

    from techflow_provider.hooks.connection import TechFlowConnection

    found = [shlex.split(block)[1].partition("=")[2] for block in blocks(ROOT / "docs" / "connection.md", "sh")]
    for value in found:
        monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", value)
        connection = Connection.get_connection_from_secrets("techflow_default")
        content = TechFlowConnection.read(connection, connection.extra_dejson)
        assert content.settings.base_url == "https://api.techflow.com/v2"
        assert (content.settings.api_key, content.requests_per_minute) == ("YOUR_API_KEY", 80)
    assert len(found) == 2


def test_every_operator_of_the_package_is_in_the_readme():
    source = ast.parse((ROOT / "techflow_provider" / "operators" / "techflow.py").read_text())
    names = {node.name for node in source.body if isinstance(node, ast.ClassDef)} - {"TechFlowOperator"}
    assert names == {name for module, name in IMPORTS if module == "techflow_provider.operators.techflow"}


@pytest.mark.parametrize(("module", "name"), IMPORTS, ids=lambda value: value)
def test_what_the_readme_imports_can_be_imported(module, name):
    if module not in ("techflow_provider.client", "techflow_provider.sandbox"):
        pytest.importorskip("airflow")
    assert hasattr(importlib.import_module(module), name)
