"""README, docs, CHANGELOG, Makefile and example DAGs agree with the code."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from techflow_provider import __version__
from techflow_provider.client import errors
from techflow_provider.sandbox import Sandbox
from techflow_provider.sandbox.faults import Kind
from techflow_provider.sandbox.server import DEFAULT_PORT, greeting

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
ERRORS = (ROOT / "docs" / "reference" / "errors.md").read_text()
COMPARISON = (ROOT / "docs" / "comparison.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = dict(re.findall(r"^([a-z0-9]+):(?: ## (.+))?$", MAKEFILE, re.MULTILINE))
EXAMPLES = sorted((ROOT / "dags_examples").glob("*.py"))
PAGES = sorted((ROOT / "docs").rglob("*.md"))
ROOT_PAGES = sorted(ROOT.glob("*.md"))
DOCUMENTS = [*ROOT_PAGES, *PAGES, *EXAMPLES]
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


def test_the_changelog_starts_with_unreleased_changes_or_with_the_packages_version():
    versions = re.findall(r"^## \[([^\]]+)\]", CHANGELOG, re.MULTILINE)
    assert versions[0] in ("Unreleased", __version__)
    assert __version__ in versions[:2]


def test_the_readme_has_at_most_200_lines():
    assert len(README.splitlines()) <= 200


def error_classes() -> list[type[Exception]]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, errors.TechFlowError)]


def test_the_documented_errors_are_those_of_the_client():
    (tree,) = re.findall(r"^(TechFlowError\n.*?)^```", ERRORS, re.MULTILINE | re.DOTALL)
    path: list[str] = []
    shown: dict[str, str] = {}
    for branch, name in re.findall(r"^([│├└─ ]*)(\w+)", tree, re.MULTILINE):
        path[len(branch) // 4 :] = [name]
        shown[name] = path[-2] if len(path) > 1 else "Exception"
    assert shown == {kind.__name__: kind.__mro__[1].__name__ for kind in error_classes()}
    assert set(re.findall(r"^\| `(\w+Error)` \|", ERRORS, re.MULTILINE)) == {*shown} - {"TechFlowError"}


def readme_commands() -> list[str]:
    """Return the lines of shell blocks, and the commands that list items consist of."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    items = re.findall(r"^- \*\*\w+\*\*: `(.+)`$", README, re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()] + items


def test_the_readme_has_the_connection_that_the_sandbox_prints():
    printed = greeting(Sandbox(), f"http://127.0.0.1:{DEFAULT_PORT}/v2").splitlines()[-1]
    assert printed in readme_commands()


@pytest.mark.airflow
@pytest.mark.filterwarnings("ignore")
def test_the_readmes_commands_exist():
    from airflow.cli.cli_parser import get_parser

    from techflow_provider.cli import build_parser

    for line in readme_commands():
        program, *arguments = shlex.split(line, comments=True)
        if program == "airflow":
            assert get_parser().parse_args(arguments)
        elif program == "techflow":
            assert build_parser().parse_args(arguments)
        elif program == "make":
            assert set(arguments) <= set(TARGETS)
        else:
            assert program in ("pip", "pytest", "export")
    assert len(readme_commands()) >= 10


def test_the_licence_is_the_complete_apache_2():
    licence = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


@pytest.mark.parametrize("path", DOCUMENTS, ids=example_name)
def test_a_document_contains_no_path_of_a_machine(path):
    assert MACHINE_PATHS.search(path.read_text()) is None


@pytest.mark.parametrize("path", EXAMPLES, ids=example_name)
def test_an_example_is_short_and_its_dag_has_the_name_of_the_file(path):
    assert len(path.read_text().splitlines()) <= 45
    assert dag_ids(path) == [path.stem]


@pytest.mark.parametrize("path", EXAMPLES, ids=example_name)
def test_an_example_imports_only_public_names(path):
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    ours = {(each.module, name.name) for each in imports for name in each.names if "techflow" in (each.module or "")}
    public = {*IMPORTS, ("techflow_provider.client", "Execution"), ("techflow_provider.client", "ExecutionState")}
    assert ours <= public


def anchors(path: Path) -> set[str]:
    """Return the fragments that link to the headings of a page, as forges derive them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [*ROOT_PAGES, *PAGES], ids=example_name)
def test_a_link_leads_to_an_existing_file_and_heading(path):
    links = re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", path.read_text())
    for name, fragment in links:
        target = path.parent / name if name else path
        assert target.exists(), name
        assert not fragment or fragment in anchors(target), (name, fragment)


def test_every_screenshot_is_linked():
    linked = set()
    for path in (*ROOT_PAGES, *PAGES):
        names = re.findall(r"\]\(([^)#:]+)", path.read_text())
        linked |= {(path.parent / name).resolve() for name in names if (path.parent / name).resolve() != path}
    assert set((ROOT / "docs" / "images").iterdir()) <= linked


@pytest.mark.parametrize("path", [*ROOT_PAGES, *PAGES], ids=example_name)
def test_a_test_that_is_named_exists(path):
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", path.read_text()):
        wanted = rf"^ *(async )?def {name}\(" if name else r"^ *(async )?def test_"
        assert re.search(wanted, (ROOT / file).read_text(), re.MULTILINE), (file, name)


def compared(text: str) -> list[list[str]]:
    """Return the rows of the comparison: the feature, this package, the other providers."""
    cells = (line.strip("| ").split(" | ") for line in re.findall(r"^\| [A-Z`].*", text, re.MULTILINE))
    return [row for row in cells if len(row) == 7]


def test_the_comparison_names_a_test_of_this_package_and_a_file_of_each_other_provider():
    text, rows = COMPARISON, compared(COMPARISON)
    assert len(rows) > 4
    assert len(rows) == len(re.findall(r"^\| [A-Z`]", text, re.MULTILINE))
    ours = {number for row in rows for number in re.findall(r"\[(\d+)\]", row[1])}
    assert all(re.search(r"\[\d+\]", row[1]) for row in rows)
    assert ours == set(re.findall(r"^(\d+)\. `tests/", text, re.MULTILINE))
    assert all(cell == "—" or re.search(r"`[\w/]+\.py`$", cell) for row in rows for cell in row[2:])


@pytest.mark.airflow
@pytest.mark.filterwarnings("ignore")
def test_the_documented_connections_can_be_read(monkeypatch):
    from airflow.models.connection import Connection

    from techflow_provider.hooks.connection import TechFlowConnection

    text = (ROOT / "docs" / "reference" / "connection.md").read_text()
    found = [
        shlex.split(block)[1].partition("=")[2]
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]
    for value in found:
        monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", value)
        connection = Connection.get_connection_from_secrets("techflow_default")
        content = TechFlowConnection.read(connection, connection.extra_dejson)
        assert content.settings.base_url == "https://api.techflow.com/v2"
        assert (content.settings.api_key, content.requests_per_minute) == ("YOUR_API_KEY", 80)
    assert len(found) == 2


def test_generated_parts_repeat_what_the_package_says():
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert not done.stderr


def test_every_page_is_in_the_navigation_and_every_public_name_in_the_reference():
    navigation = set(re.findall(r"(?:root|file): (\S+)", (ROOT / "docs" / "_toc.yml").read_text()))
    pages = [
        path.relative_to(ROOT / "docs").with_suffix("")
        for path in (ROOT / "docs").rglob("*")
        if path.suffix in (".md", ".rst")
    ]
    assert {str(page) for page in pages} == navigation
    reference = "".join(path.read_text() for path in (ROOT / "docs" / "reference" / "api").glob("*.rst"))
    described = set(re.findall(r"auto(?:class|function|exception):: (?:[\w.]+\.)?(\w+)", reference))
    assert {name for _, name in IMPORTS} | {kind.__name__ for kind in error_classes()} <= described


@pytest.mark.airflow
@pytest.mark.filterwarnings("ignore")
def test_the_documented_causes_are_those_of_the_connections_test():
    from techflow_provider.hooks.diagnosis import Cause

    table = (ROOT / "docs" / "reference" / "connection.md").read_text().partition("| cause |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| (?!-)(.+?) \|", table.partition("\n")[2], re.MULTILINE) == [each.value for each in Cause]


def test_the_documented_sandbox_has_its_names_and_faults():
    text = (ROOT / "docs" / "howto" / "testing.md").read_text()
    names = [name for row in re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)", row)]
    assert len(names) > 6
    assert all(hasattr(Sandbox(), name) for name in names)
    kinds = text.partition("The kinds of `Fault` are ")[2].partition(". ")[0]
    assert re.findall(r"`(\w+)`", kinds) == list(get_args(Kind))


def test_every_operator_of_the_package_is_in_the_readme():
    pytest.importorskip("airflow")
    names = set(importlib.import_module("techflow_provider.operators.techflow").__all__)
    assert names == {name for module, name in IMPORTS if module == "techflow_provider.operators.techflow"}


@pytest.mark.parametrize(("module", "name"), IMPORTS, ids=lambda value: value)
def test_each_name_in_the_readmes_table_can_be_imported(module, name):
    if module not in ("techflow_provider.client", "techflow_provider.sandbox"):
        pytest.importorskip("airflow")
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize(("module", "name"), IMPORTS, ids=lambda value: value)
def test_the_docstring_of_each_name_has_an_example_with_parameters_that_exist(module, name):
    if module not in ("techflow_provider.client", "techflow_provider.sandbox"):
        pytest.importorskip("airflow")
    documented = getattr(importlib.import_module(module), name)
    example = "\n".join(re.findall(r"^ *(?:>>>|\.\.\.) (.*)$", documented.__doc__, re.MULTILINE))
    nodes = [node for node in ast.walk(ast.parse(example)) if isinstance(node, ast.Call)]
    calls = [node for node in nodes if isinstance(node.func, ast.Name) and node.func.id == name]
    assert calls
    bases = documented.__mro__ if isinstance(documented, type) else (documented,)
    known = {parameter for base in bases for parameter in inspect.signature(base).parameters}
    assert all(keyword.arg in known for call in calls for keyword in call.keywords)


def test_every_make_target_has_a_description_and_is_in_the_help():
    phony = MAKEFILE.partition(".PHONY:")[2].partition("\n")[0].split()
    assert set(phony) == set(TARGETS)
    assert all(TARGETS.values())
    shown = subprocess.run(["make", "--silent"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in shown.splitlines()] == phony


def test_make_clean_removes_everything_that_git_ignores(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "tests" / "__pycache__").mkdir(parents=True)
    for name in (ROOT / ".gitignore").read_text().split():
        if ".venv" not in name:
            (tmp_path / name.strip("/").replace("*", "package")).mkdir()
    subprocess.run(["make", "--silent", "clean"], cwd=tmp_path, check=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["Makefile", "tests"]


def test_ci_runs_make_targets_on_every_airflow_of_the_matrix():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    (targets,) = re.findall(r"target: \[(.+)\]", workflow)
    assert {each.strip().strip("'").split()[0] for each in targets.split(",")} <= set(TARGETS)
    (airflows,) = re.findall(r"airflow: \[(.+)\]", workflow)
    matrix = (ROOT / ".ci" / "matrix.txt").read_text().splitlines()
    assert sorted(json.loads(f"[{airflows}]")) == sorted({line.split()[0] for line in matrix})


def test_only_the_readme_repeats_the_repositorys_address():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert all(url.startswith(urls["Repository"]) for url in urls.values())
    host = urls["Repository"].removeprefix("https://")
    files = [*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"))]
    files += [*(ROOT / ".github").rglob("*.yml"), *(ROOT / "techflow_provider").rglob("*.py")]
    assert [path for path in files if host in path.read_text()] == []
