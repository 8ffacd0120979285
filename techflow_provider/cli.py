"""The command line, described once: `python -m techflow_provider …` everywhere, `airflow techflow …` on Airflow 3.2+.

Every run of Airflow's own command line imports this module, so it imports what a command needs when it is run.

Exit codes: 0 done; 1 TechFlow refused, the execution failed or `doctor` found a problem; 2 the command or the
connection can't be used; 3 the execution was still running when the time to wait for it was over; 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from techflow_provider.commands.report import Report

FAILED, UNUSABLE, STILL_RUNNING, INTERRUPTED = 1, 2, 3, 130
DESCRIPTION = "TechFlow from the command line, with the key and the rate budget of an Airflow connection."


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument, as argparse and Airflow take it."""

    flags: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Command:
    """A command.

    :param name: how it is called
    :param help: a line about it
    :param run: `module:function` below `commands`
    :param arguments: beside those that all commands have
    """

    name: str
    help: str
    run: str
    arguments: tuple[Argument, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Commands about one thing."""

    name: str
    help: str
    commands: tuple[Command, ...]


def _argument(*flags: str, **options: Any) -> Argument:
    return Argument(flags, options)


def positive(text: str) -> float:
    """Return a number above 0 that was typed."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def count(text: str) -> int:
    """Return a whole number above 0 that was typed."""
    return int(positive(str(int(text))))


CONN_ID = _argument("--conn-id", default="techflow_default", help="the Airflow connection (techflow_default)")
OUTPUT = _argument(
    "--output", "-o", choices=("table", "json"), default="table", help="table for people, json for programs"
)
WORKFLOW_ID = _argument("workflow_id", help="such as wf_123")
NAME = _argument("--name", dest="workflow_name", help="the workflow's name")
DESCRIPTION_TEXT = _argument("--description", help="the workflow's description")
TRIGGER = _argument("--trigger", action="append", help="a trigger, such as manual; may be given several times")
STATUS = _argument("--status", help="only those with this status")

COMMANDS: tuple[Command | Group, ...] = (
    Group(
        "workflows",
        "List, get, create, update and delete workflows",
        (
            Command("list", "List workflows", "workflows:list_workflows", (STATUS, NAME)),
            Command("get", "Show a workflow", "workflows:get_workflow", (WORKFLOW_ID,)),
            Command(
                "create",
                "Create a workflow",
                "workflows:create_workflow",
                (_argument("name", help="the workflow's name"), DESCRIPTION_TEXT, TRIGGER),
            ),
            Command(
                "update",
                "Change the fields of a workflow that are given",
                "workflows:update_workflow",
                (WORKFLOW_ID, NAME, DESCRIPTION_TEXT, TRIGGER),
            ),
            Command("delete", "Delete a workflow for good", "workflows:delete_workflow", (WORKFLOW_ID,)),
        ),
    ),
    Command(
        "trigger",
        "Start an execution of a workflow",
        "executions:trigger",
        (
            WORKFLOW_ID,
            _argument("--payload", help="a JSON object to send along"),
            _argument("--wait", action="store_true", help="wait for the execution's end"),
            _argument("--timeout", type=positive, help="seconds to wait at most; the execution goes on after them"),
            _argument("--poll-interval", type=positive, default=5.0, help="seconds between two looks (5)"),
        ),
    ),
    Command(
        "executions",
        "List the execution history, newest first",
        "executions:list_executions",
        (
            _argument("--workflow-id", help="only those of this workflow"),
            STATUS,
            _argument("--limit", type=count, default=50, help="how many at most (50)"),
        ),
    ),
    Command("budget", "Show how the rate budget of the API key stands; sends nothing", "budget:show_budget"),
    Command(
        "doctor",
        "Look at everything that must be right, and say what to do",
        "doctor:examine",
        (_argument("--learn", action="store_true", help="say what a page of the history is taken for"),),
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m techflow_provider` and return the exit code."""
    args = build_parser().parse_args(arguments)
    code: int = args.act(args)
    return code


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m techflow_provider`."""
    parser = argparse.ArgumentParser("python -m techflow_provider", description=DESCRIPTION)
    _add(parser, COMMANDS)
    return parser


def _add(parser: argparse.ArgumentParser, commands: Sequence[Command | Group]) -> None:
    below = parser.add_subparsers(required=True, metavar="COMMAND")
    for each in commands:
        child = below.add_parser(each.name, help=each.help, description=each.help)
        if isinstance(each, Group):
            _add(child, each.commands)
            continue
        for argument in (*each.arguments, CONN_ID, OUTPUT):
            child.add_argument(*argument.flags, **argument.options)
        child.set_defaults(act=partial(run, each))


def get_airflow_commands() -> list[Any]:
    """Return `airflow techflow …` as Airflow 3.2 and later take it."""
    from airflow.cli.cli_config import GroupCommand

    return [GroupCommand(name="techflow", help="Use TechFlow", description=DESCRIPTION, subcommands=_airflow(COMMANDS))]


def _airflow(commands: Sequence[Command | Group]) -> list[Any]:
    from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand

    def one(each: Command | Group) -> Any:
        if isinstance(each, Group):
            return GroupCommand(name=each.name, help=each.help, subcommands=_airflow(each.commands))
        arguments = [
            Arg(flags=it.flags, **it.options)  # type: ignore[no-untyped-call]  # Airflow leaves it unannotated
            for it in (*each.arguments, CONN_ID, OUTPUT)
        ]
        return ActionCommand(name=each.name, help=each.help, func=partial(_run_and_exit, each), args=arguments)

    return [one(each) for each in commands]


def _run_and_exit(command: Command, args: argparse.Namespace) -> None:
    code = run(command, args)
    if code:
        raise SystemExit(code)


def run(command: Command, args: argparse.Namespace) -> int:
    """Carry out a command, print what it has to say, and return the exit code."""
    from techflow_provider.client.errors import ExecutionTimeoutError, InvalidParameterError, TechFlowError

    act = _find(command)
    with _logs_on_stderr():
        try:
            report = act(args)
        except TechFlowError as error:
            codes = ((InvalidParameterError, UNUSABLE), (ExecutionTimeoutError, STILL_RUNNING))
            return _complain(str(error), next((code for kind, code in codes if isinstance(error, kind)), FAILED))
        except KeyboardInterrupt:
            return _complain("interrupted; what was started goes on in TechFlow", INTERRUPTED)
    sys.stdout.write(f"{report.shown(args.output)}\n")
    return report.code


def _find(command: Command) -> Callable[[argparse.Namespace], Report]:
    # Before the logs are led elsewhere, since it imports Airflow, which sets up its own.
    module, _, name = command.run.partition(":")
    act: Callable[[argparse.Namespace], Report] = getattr(import_module(f"techflow_provider.commands.{module}"), name)
    return act


def _complain(words: str, code: int) -> int:
    sys.stderr.write(f"techflow: {words}\n")
    return code


@contextmanager
def _logs_on_stderr() -> Iterator[None]:
    """Keep standard output for what was asked for: Airflow 2 logs there, and httpx logs each request."""
    root, own = logging.getLogger(), logging.getLogger("techflow_provider")
    before = root.handlers, root.level, own.level
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("techflow: %(message)s"))
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    own.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers = before[0]
        root.setLevel(before[1])
        own.setLevel(before[2])
