"""The command line: `techflow …` everywhere, `airflow techflow …` on Airflow 3.2 and later.

Every run of Airflow's own command line loads the definitions of the commands, so the module of a command is imported
only when the command runs.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from techflow_provider import __version__

if TYPE_CHECKING:
    from airflow.cli.cli_config import CLICommand

DESCRIPTION = "TechFlow from the command line, with the key and the rate budget of an Airflow connection."


def main(arguments: Sequence[str] | None = None, program: str = "techflow") -> int:
    """Run `techflow` and return 0.

    :param program: what the user has called
    :raises SystemExit: with the exit code of a command that did not succeed
    """
    from argcomplete import autocomplete

    from techflow_provider.compat import import_airflow

    import_airflow()
    parser = build_parser(program)
    autocomplete(parser)
    args = parser.parse_args(arguments)
    args.func(args)
    return 0


def build_parser(program: str = "techflow") -> ArgumentParser:
    """Return the parser of the command line."""
    from techflow_provider.commands.definitions import COMMANDS, EXIT_CODES

    parser = ArgumentParser(program, description=DESCRIPTION, epilog=EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"airflow-provider-techflow {__version__}")
    _add_commands(parser, COMMANDS)
    return parser


def get_airflow_commands() -> list[CLICommand]:
    """Return `airflow techflow …` for Airflow 3.2 and later."""
    from airflow.cli.cli_config import GroupCommand

    from techflow_provider.commands.definitions import COMMANDS, EXIT_CODES

    return [
        GroupCommand(
            name="techflow", help="Use TechFlow", subcommands=COMMANDS, description=DESCRIPTION, epilog=EXIT_CODES
        )
    ]


def _add_commands(parser: ArgumentParser, commands: Iterable[CLICommand]) -> None:
    from airflow.cli.cli_config import GroupCommand

    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in commands:
        child = subparsers.add_parser(command.name, help=command.help, description=command.help, epilog=command.epilog)
        if isinstance(command, GroupCommand):
            _add_commands(child, command.subcommands)
            continue
        child.set_defaults(func=command.func)
        for arg in command.args:
            arg.add_to_parser(child)
