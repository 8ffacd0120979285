"""The commands in Airflow's own classes, and how one is run: its module is imported only then."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

from airflow.cli.cli_config import ActionCommand, Arg, CLICommand, GroupCommand

from techflow_provider.client.errors import ExecutionTimeoutError, InvalidParameterError, TechFlowError
from techflow_provider.client.text import printable

FAILED, UNUSABLE, STILL_RUNNING, INTERRUPTED = 1, 2, 3, 130


def run(action: str, args: Namespace) -> None:
    """Run a command and print its report.

    :param action: `module:function` in this package
    :raises SystemExit: with the exit code, unless the command succeeded
    """
    module, _, name = action.partition(":")
    # Imported before the logs are redirected, since Airflow configures its own logging when it is imported.
    execute = getattr(import_module(f"techflow_provider.commands.{module}"), name)
    with _logs_on_stderr():
        try:
            report = execute(args)
        except InvalidParameterError as error:
            _fail(str(error), UNUSABLE)
        except ExecutionTimeoutError as error:
            _fail(str(error), STILL_RUNNING)
        except TechFlowError as error:
            _fail(str(error), FAILED)
        except KeyboardInterrupt:
            _fail("interrupted; an execution that was started keeps running in TechFlow", INTERRUPTED)
    sys.stdout.write(printable(report.render(args.output) + "\n", keep="\n"))
    if report.code:
        raise SystemExit(report.code)


def _fail(message: str, code: int) -> NoReturn:
    sys.stderr.write(printable(f"techflow: {message}\n", keep="\n"))
    raise SystemExit(code)


@contextmanager
def _logs_on_stderr() -> Iterator[None]:
    """Reserve standard output for the report: Airflow 2 logs there, and httpx logs each request."""
    root, own = logging.getLogger(), logging.getLogger("techflow_provider")
    before = root.handlers, root.level, own.level
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("techflow: %(message)s"))
    # `state show` says where the state is.
    handler.addFilter(lambda record: record.levelno > logging.INFO or not record.name.endswith("hooks.state"))
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    own.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers = before[0]
        root.setLevel(before[1])
        own.setLevel(before[2])


def positive(text: str) -> float:
    """Parse a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def count(text: str) -> int:
    """Parse a whole number above 0."""
    return int(positive(str(int(text))))


def _arg(*flags: str, **options: Any) -> Arg:
    return Arg(flags=flags, **options)  # type: ignore[no-untyped-call]  # unannotated in Airflow


CONN_ID = _arg("--conn-id", default="techflow_default", help="the Airflow connection (default: techflow_default)")
OUTPUT = _arg("--output", "-o", choices=("table", "json"), default="table", help="table for people, json for programs")
WORKFLOW_ID = _arg("workflow_id", help="such as wf_123")
NAME = _arg("--name", dest="workflow_name", help="the workflow's name")
DESCRIPTION = _arg("--description", help="the workflow's description")
TRIGGER = _arg("--trigger", action="append", help="a trigger, such as manual; may be given several times")
STATUS = _arg("--status", help="only those with this status")


def _command(name: str, help_text: str, action: str, *args: Arg) -> ActionCommand:
    return ActionCommand(name=name, help=help_text, func=partial(run, action), args=(*args, CONN_ID, OUTPUT))


WORKFLOW_COMMANDS = (
    _command("list", "List workflows", "resources:list_workflows", STATUS, NAME),
    _command("get", "Show a workflow", "resources:get_workflow", WORKFLOW_ID),
    _command(
        "create",
        "Create a workflow",
        "resources:create_workflow",
        *(_arg("name", help="the workflow's name"), DESCRIPTION, TRIGGER),
    ),
    _command(
        "update",
        "Change the given fields of a workflow",
        "resources:update_workflow",
        *(WORKFLOW_ID, NAME, DESCRIPTION, TRIGGER),
    ),
    _command("delete", "Delete a workflow permanently", "resources:delete_workflow", WORKFLOW_ID),
)
START_NAME = _arg("name", help="as `starts list` shows it")
START_COMMANDS = (
    _command("list", "List starts whose execution isn't known yet, or cannot be determined", "starts:list_starts"),
    _command("show", "Show what is recorded about a start", "starts:show_start", START_NAME),
    _command("forget", "Let the task's next attempt start an execution", "starts:forget_start", START_NAME),
)
COMMANDS: tuple[CLICommand, ...] = (
    GroupCommand("workflows", "List, get, create, update and delete workflows", WORKFLOW_COMMANDS),
    _command(
        "trigger",
        "Start an execution of a workflow",
        "resources:trigger",
        WORKFLOW_ID,
        _arg("--payload", help="a JSON object to send"),
        _arg("--wait", action="store_true", help="wait for the execution's completion"),
        _arg("--timeout", type=positive, help="maximum seconds to wait; the execution keeps running afterwards"),
        _arg("--poll-interval", type=positive, default=5.0, help="seconds between two polls (default: 5)"),
    ),
    _command(
        "executions",
        "List the execution history, newest first",
        "resources:list_executions",
        _arg("--workflow-id", help="only those of this workflow"),
        STATUS,
        _arg("--limit", type=count, default=50, help="maximum number of executions (default: 50)"),
    ),
    GroupCommand(
        "webhooks",
        "Set up webhooks",
        (_command("secret", "Print a new secret, which every Standard Webhooks library can use", "resources:secret"),),
    ),
    GroupCommand(
        "state",
        "Show where the shared state is kept",
        (
            _command("show", "Show where the state is kept, why, and what endangers it", "state:show"),
            _command("init", "Print the statements that create its table in a database", "state:init"),
        ),
    ),
    GroupCommand("starts", "List, show and forget starts whose execution is unknown", START_COMMANDS),
    _command("budget", "Show the state of the API key's rate budget; sends nothing", "resources:show_budget"),
    _command(
        "doctor",
        "Check the whole setup, and suggest a remedy for each problem",
        "doctor:examine",
        _arg("--learn", action="store_true", help="show how a page of the history is interpreted"),
    ),
)
