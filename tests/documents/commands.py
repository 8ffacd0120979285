"""Run the commands of the documents' shell blocks, or check them where running would install, build or never end."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

from tests.documents.blocks import ROOT
from tests.integration.dag_runner import run_command

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"^([a-z0-9]+):(?: ##|$)", (ROOT / "Makefile").read_text(), re.MULTILINE))
# They run until they are interrupted.
ENDLESS = {"triggerer", "standalone", "scheduler", "api-server"}


def run_line(line: str) -> bool:
    """Run a command, and return whether it was run and not only checked.

    :raises AssertionError: it fails, or nothing here can run it
    """
    program, *arguments = shlex.split(line, comments=True) or ["export"]
    assert program in RUNNERS, f"nothing here can run {line!r}"
    return RUNNERS[program](arguments)


def define(arguments: list[str]) -> bool:
    """Check the form of a variable; the tests set their own."""
    return all("=" in each for each in arguments)


def check_target(arguments: list[str]) -> bool:
    """Check that targets of the Makefile exist."""
    assert {each for each in arguments if "=" not in each} <= TARGETS, arguments
    return False


def check_install(arguments: list[str]) -> bool:
    """Check that a command installs this package, with extras that exist, Airflow or pytest."""
    for requirement in (each for each in arguments[1:] if not each.startswith(("-", "https:", "."))):
        name, extras = re.fullmatch(r"([\w-]+)(?:\[([\w,]+)\])?(?:[=<>].*)?", requirement).groups()  # type: ignore[union-attr]
        assert name in (PROJECT["name"], "apache-airflow", "pytest"), requirement
        assert set((extras or "").split(",")) <= {"", *PROJECT["optional-dependencies"]}, requirement
    return False


def check_pytest(arguments: list[str]) -> bool:
    """Check that a command runs the tests of a project with its DAGs folder on the path."""
    assert arguments == ["-o", "pythonpath=dags"], arguments
    return False


def check_sandbox(arguments: list[str]) -> bool:
    """Check the options of a command that runs until it is interrupted."""
    from techflow_provider.sandbox.server import build_parser

    build_parser().parse_args(arguments)
    return False


def run_airflow(arguments: list[str]) -> bool:
    """Run Airflow's command line; what never ends is only parsed."""
    if arguments[0] in ENDLESS:
        from airflow.cli.cli_parser import get_parser

        get_parser().parse_args(arguments)
        return False
    assert run_command(*arguments) == {"returncode": 0}, arguments
    return True


def run_python(arguments: list[str]) -> bool:
    """Run a line of Python in a process of its own."""
    assert arguments[0] == "-c", arguments
    subprocess.run([sys.executable, *arguments], check=True)
    return True


def run_techflow(arguments: list[str]) -> bool:
    """Run the package's command line."""
    from techflow_provider.cli import main

    quick = ["--poll-interval", "0.05"] if arguments[0] == "trigger" else []
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            code = main([*arguments, *quick])
        except SystemExit as ended:
            code = int(ended.code or 0)
    assert code == 0, f"{arguments}: {code}\n{printed.getvalue()}"
    return True


RUNNERS: dict[str, Callable[[list[str]], bool]] = {
    "export": define,
    "make": check_target,
    "pip": check_install,
    "pytest": check_pytest,
    "techflow-sandbox": check_sandbox,
    "airflow": run_airflow,
    "python": run_python,
    "techflow": run_techflow,
}


def commands(code: str) -> list[str]:
    """Return the commands of a block, each on one line."""
    return [line for line in code.replace("\\\n", " ").splitlines() if line.strip()]
