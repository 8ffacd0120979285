"""The command line: `python -m techflow_provider …` everywhere, `airflow techflow …` on Airflow 3.2 and later.

Every run of Airflow's own command line loads the definitions of the commands, so the module of a command is imported
only when the command runs.

Exit codes: 0 success; 1 TechFlow rejected the request, the execution failed or `doctor` found a problem; 2 the command
or the connection can't be used; 3 the execution was still running at the timeout; 130 interrupted.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow.cli.cli_config import CLICommand

DESCRIPTION = "TechFlow from the command line, with the key and the rate budget of an Airflow connection."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m techflow_provider` and return 0.

    :raises SystemExit: with the exit code of a command that did not succeed
    """
    args = build_parser().parse_args(arguments)
    args.func(args)
    return 0


def build_parser() -> ArgumentParser:
    """Return the parser of `python -m techflow_provider`."""
    from techflow_provider.commands.definitions import COMMANDS

    parser = ArgumentParser("python -m techflow_provider", description=DESCRIPTION)
    _add_commands(parser, COMMANDS)
    return parser


def get_airflow_commands() -> list[CLICommand]:
    """Return `airflow techflow …` for Airflow 3.2 and later."""
    from airflow.cli.cli_config import GroupCommand

    from techflow_provider.commands.definitions import COMMANDS

    return [GroupCommand(name="techflow", help="Use TechFlow", description=DESCRIPTION, subcommands=COMMANDS)]


def _add_commands(parser: ArgumentParser, commands: Iterable[CLICommand]) -> None:
    from airflow.cli.cli_config import GroupCommand

    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in commands:
        child = subparsers.add_parser(command.name, help=command.help, description=command.help)
        if isinstance(command, GroupCommand):
            _add_commands(child, command.subcommands)
            continue
        child.set_defaults(func=command.func)
        for arg in command.args:
            arg.add_to_parser(child)
