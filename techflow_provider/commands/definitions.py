"""The commands in Airflow's own classes, and how one is run: its module is imported only then."""

from __future__ import annotations

import io
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
from techflow_provider.state.store import StoreError

FAILED, UNUSABLE, STILL_RUNNING, INTERRUPTED = 1, 2, 3, 130
EXIT_CODES = (
    "Exit codes: 0 success; 1 TechFlow rejected the request, the execution failed, doctor found a problem, or nothing "
    "was deleted; 2 the command or the connection can't be used; 3 the execution was still running at the timeout; "
    "130 interrupted."
)


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
        except (TechFlowError, StoreError) as error:
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
    # A task of Airflow 2 logs in turn what is written to its standard error.
    handler = logging.StreamHandler(sys.stderr if isinstance(sys.stderr, io.TextIOBase) else sys.__stderr__)
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
NEW_NAME = _arg("name", help="the workflow's name")
NAME = _arg("--name", dest="workflow_name", help="the workflow's name")
DESCRIPTION = _arg("--description", help="the workflow's description")
IF_EXISTS_HELP = "what to do about a workflow of that name (default: create another one)"
IF_EXISTS = _arg("--if-exists", choices=("create", "return", "update", "fail"), default="create", help=IF_EXISTS_HELP)
YES = _arg("--yes", "-y", action="store_true", help="don't ask")
TRIGGER = _arg("--trigger", action="append", help="a trigger, such as manual; may be given several times")
STATUS = _arg("--status", help="only those with this status")
OF_WORKFLOW = _arg("--workflow-id", help="only those of this workflow")
LIMIT = _arg("--limit", type=count, default=50, help="maximum number of executions (default: 50)")
PAYLOAD = _arg("--payload", help="a JSON object to send")
WAIT = _arg("--wait", action="store_true", help="wait for the execution's completion")
TIMEOUT = _arg("--timeout", type=positive, help="maximum seconds to wait; the execution keeps running afterwards")
POLL_INTERVAL = _arg("--poll-interval", type=positive, default=5.0, help="seconds between two polls (default: 5)")
START_NAME = _arg("name", help="as `starts list` shows it")
FOLDER = _arg("folder", help="such as dags/techflow; it is created, and no file in it is replaced")
LEARN = _arg("--learn", action="store_true", help="show how a page of the history is interpreted")


def _command(name: str, action: str, help_text: str, *args: Arg) -> ActionCommand:
    return ActionCommand(
        name=name, help=help_text, func=partial(run, action), args=(*args, CONN_ID, OUTPUT), epilog=EXIT_CODES
    )


CREATE_ARGS = (NEW_NAME, DESCRIPTION, TRIGGER, IF_EXISTS)
UPDATE_ARGS = (WORKFLOW_ID, NAME, DESCRIPTION, TRIGGER)
TRIGGER_ARGS = (WORKFLOW_ID, PAYLOAD, WAIT, TIMEOUT, POLL_INTERVAL)
LIST_ARGS = (OF_WORKFLOW, STATUS, LIMIT)
WORKFLOW_COMMANDS = (
    _command("list", "resources:list_workflows", "List workflows", STATUS, NAME),
    _command("get", "resources:get_workflow", "Show a workflow", WORKFLOW_ID),
    _command("create", "resources:create_workflow", "Create a workflow", *CREATE_ARGS),
    _command("update", "resources:update_workflow", "Change the given fields of a workflow", *UPDATE_ARGS),
    _command("delete", "resources:delete_workflow", "Delete a workflow permanently", WORKFLOW_ID, YES),
)
STATE_COMMANDS = (
    _command("show", "state:show", "Show where the state is kept, why, and what endangers it"),
    _command("init", "state:init", "Print the statements that create its table in a database"),
)
START_COMMANDS = (
    _command("list", "state:list_starts", "List starts whose execution isn't known yet, or cannot be determined"),
    _command("show", "state:show_start", "Show what is recorded about a start", START_NAME),
    _command("forget", "state:forget_start", "Let the task's next attempt start an execution", START_NAME),
)
WEBHOOK_COMMANDS = (
    _command("secret", "resources:secret", "Print a new secret, which every Standard Webhooks library can use"),
)
COMMANDS: tuple[CLICommand, ...] = (
    GroupCommand("workflows", "List, get, create, update and delete workflows", WORKFLOW_COMMANDS),
    _command("trigger", "resources:trigger", "Start an execution of a workflow", *TRIGGER_ARGS),
    _command("executions", "resources:list_executions", "List the execution history, newest first", *LIST_ARGS),
    GroupCommand("webhooks", "Set up webhooks", WEBHOOK_COMMANDS),
    GroupCommand("state", "Show where the shared state is kept", STATE_COMMANDS),
    GroupCommand("starts", "List, show and forget starts whose execution is unknown", START_COMMANDS),
    _command("budget", "resources:show_budget", "Show the state of the API key's rate budget; sends nothing"),
    _command("examples", "resources:write_examples", "Write an example DAG for each common task", FOLDER),
    _command("doctor", "doctor:examine", "Check the whole setup, and suggest a remedy for each problem", LEARN),
)
