"""The package's imports: downwards only, without cycles, and Airflow only in the layers that are about it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import techflow_provider

PACKAGE = Path(techflow_provider.__file__).parent
# From the bottom up; the parts of one layer may import each other.
LAYERS = (
    {"__init__", "compat", "distribution", "get_provider_info"},
    {"state"},
    {"client"},
    {"submission", "polling", "hooks"},
    {"deferral", "lineage", "parameters", "triggers"},
    {"operators", "sensors", "notifications", "assets", "links"},
    {"webhooks", "state_server", "page", "plugin", "cli", "commands", "__main__"},
)
# Stands beside the layers: nothing imports it, but those that start it, and it imports nothing of them.
SANDBOX = "sandbox"
WITHOUT_AIRFLOW = {"client", "state", "submission", "polling", SANDBOX}
ADAPTERS = {"submission.airflow", "polling.registry"}


def is_type_checking(node: ast.AST) -> bool:
    """Whether a node is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the import statements below a node, those in functions among them."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    skipped = node.body if isinstance(node, ast.If) and is_type_checking(node) else ()
    for child in ast.iter_child_nodes(node):
        if child not in skipped:
            yield from statements(child)


@cache
def modules() -> dict[str, ast.Module]:
    """Return the package's modules by their names below the package: `client.flow`, and `client` for its `__init__`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = ast.parse(path.read_text())
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """Return what a module imports, as absolute names; `from a import b` imports the module `a.b` if there is one."""
    names = set()
    for statement in statements(modules()[module]):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        else:
            source = statement.module or ""
            own = source.removeprefix("techflow_provider").removeprefix(".")
            for alias in statement.names:
                inside = f"{own}.{alias.name}".removeprefix(".")
                is_module = source.startswith("techflow_provider") and inside in modules()
                names.add(f"techflow_provider.{inside}" if is_module else source)
    return frozenset(names)


@cache
def own_imports(module: str) -> frozenset[str]:
    """Return the package's modules that a module imports, named as by `modules`."""
    own = {
        name.removeprefix("techflow_provider").removeprefix(".") or "__init__"
        for name in imports(module)
        if name.partition(".")[0] == "techflow_provider"
    }
    return frozenset(own)


def layer(module: str) -> int:
    """Return the number of a module's layer."""
    part = module.partition(".")[0]
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


def in_layers() -> list[str]:
    return [module for module in modules() if module.partition(".")[0] != SANDBOX]


def test_each_module_belongs_to_a_layer() -> None:
    known = set.union(*LAYERS)
    assert not {module for module in in_layers() if module.partition(".")[0] not in known}


@pytest.mark.parametrize("module", in_layers())
def test_a_module_imports_only_its_own_layer_and_those_below(module: str) -> None:
    own = {name for name in own_imports(module) if name.partition(".")[0] != SANDBOX}
    assert not {name for name in own if layer(name) > layer(module)}


def test_no_modules_import_each_other() -> None:
    graph = {module: own_imports(module) - {module} for module in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_the_sandbox_imports_nothing_of_the_package_but_itself() -> None:
    offenders = {
        module: own
        for module in modules()
        if module.partition(".")[0] == SANDBOX
        and (own := {name for name in own_imports(module) if name.partition(".")[0] != SANDBOX} - {"__init__"})
    }
    assert not offenders


def test_what_works_without_airflow_does_not_import_it() -> None:
    offenders = {
        module
        for module in modules()
        if module.partition(".")[0] in WITHOUT_AIRFLOW
        and module not in ADAPTERS
        and any(name.partition(".")[0] == "airflow" for name in imports(module))
    }
    assert not offenders


def test_importing_the_state_and_the_sandbox_does_not_load_airflow() -> None:
    # The client alone is imported by tests/client/test_import.py.
    names = [name for name in modules() if name.partition(".")[0] in {"client", "state", SANDBOX}]
    loads = "; ".join(f"import techflow_provider.{name}" for name in names if not name.endswith("__main__"))
    code = f"import sys; {loads}; print(*(name for name in sys.modules if name.partition('.')[0] == 'airflow'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
