"""The `techflow-sandbox` command: serves a sandbox over a socket until it is interrupted."""

from __future__ import annotations

import argparse
import errno
import json
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_args
from urllib.parse import urlsplit

from techflow_provider.sandbox.control import CONTROL_PREFIX
from techflow_provider.sandbox.messages import PREFIX
from techflow_provider.sandbox.sandbox import Record, Sandbox
from techflow_provider.sandbox.settings import Algorithm, ExecuteResponse, Outcome, SettingError, Settings
from techflow_provider.sandbox.sockets import names_this_machine
from techflow_provider.sandbox.webhooks import Proof, Webhooks

DEFAULT_PORT = 8765
DEFAULT_KEY = "sandbox-key"
EXPOSED = "Warning: anyone who can reach this address can use the default API key; choose another one with --key."
# The workflow in the reference's examples.
DEFAULT_WORKFLOW = "wf_123=My Workflow"
WORKFLOW_HELP = f"initial workflow, repeatable (default: {DEFAULT_WORKFLOW})"
EPILOG = (
    'The body of a start can configure its execution: {"sandbox": {"seconds": 2, "outcome": "failed"}}. '
    "Other processes on this machine can reach the state, the requests and the faults under /_sandbox/; "
    "/openapi.json describes the API."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    :param arguments: the command line's; None uses the process's
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        sandbox = build_sandbox(options)
    except SettingError as error:
        parser.error(f"argument {FLAGS[error.name]}: received {error.received!r}, expected {error.expected}")
    return _run(sandbox, options)


def build_sandbox(options: argparse.Namespace) -> Sandbox:
    """Return a sandbox with the options of the command line.

    :raises SettingError: an option has an invalid value
    """
    given = vars(options)
    workflows = [text.partition("=") for text in given.get("workflows_at_start", [DEFAULT_WORKFLOW])]
    settings = _select(Settings, given) | {
        "workflows_at_start": {id_: name or id_ for id_, _, name in workflows if id_}
    }
    if settings.get("retry_after") == "none":
        settings["retry_after"] = False
    return Sandbox(**settings, webhooks=Webhooks(**_select(Webhooks, given)) if "url" in given else None)


def _select(settings: type[Settings | Webhooks], given: dict[str, Any]) -> dict[str, Any]:
    return {each.name: given[each.name] for each in fields(settings) if each.name in given}


def _run(sandbox: Sandbox, options: argparse.Namespace) -> int:
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    try:
        with sandbox.serve(options.host, options.port) as url:
            # Set before the greeting is printed, since a client may send a request as soon as it has read it.
            if not options.quiet:
                sandbox.on_request = _print_request
            _print(greeting(sandbox, url))
            done.wait()
    except (OSError, OverflowError) as error:
        in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "it is in use; choose another with --port, or 0 for a free one" if in_use else error
        sys.stderr.write(f"techflow-sandbox: cannot listen on port {options.port} of {options.host}: {reason}\n")
        return 1
    _print(f"Stopped after {sandbox.count()} requests.")
    return 0


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _print_request(record: Record) -> None:
    # A process that reads only the greeting may have closed the pipe.
    try:
        # A terminal would obey control characters.
        path = repr(record.path)[1:-1]
        _print(f"{record.at:%H:%M:%S} {record.method} {path} {record.status or 'no response'}")
    except BrokenPipeError:
        return


def greeting(sandbox: Sandbox, url: str) -> str:
    """Return what the command prints at first: its URL, its workflows, and a connection for Airflow.

    :param url: the base URL that it serves
    """
    host = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    secret = sandbox.webhooks.secret if sandbox.webhooks else None
    dashboard = f"{host.removesuffix(PREFIX)}{CONTROL_PREFIX}executions/{{execution_id}}"
    extra = {"dashboard_url": dashboard, **({"webhook_secret": secret} if secret else {})}
    connection = {"conn_type": "techflow", "host": host, "password": sandbox.api_keys[0], "extra": extra}
    rate = f"{sandbox.limit} requests in {sandbox.period_seconds:g} seconds ({sandbox.algorithm})"
    return "\n".join(
        [
            f"TechFlow sandbox at {url}, {rate}",
            f"Workflows: {', '.join(sandbox.workflows_at_start) or 'none'}",
            *([EXPOSED] if DEFAULT_KEY in sandbox.api_keys and not names_this_machine(urlsplit(url).netloc) else []),
            "Connect Airflow with:",
            f"export AIRFLOW_CONN_TECHFLOW_DEFAULT='{json.dumps(connection)}'",
        ]
    )


def _one_of(choices: Any) -> dict[str, Any]:
    return {"metavar": "|".join(get_args(choices))}


REPEATABLE = {"action": "append"}
INTEGER = {"type": int}
SECONDS: dict[str, Any] = {"type": float, "metavar": "SECONDS"}
PROBABILITY: dict[str, Any] = {"type": float, "metavar": "P"}
RETRY_AFTER: dict[str, Any] = {"choices": ("seconds", "date", "none"), "metavar": "seconds|date|none"}

# By group: the flag, the field of Settings or Webhooks that it sets, the help, and further arguments.
OPTIONS: dict[str, tuple[tuple[str, str, str, dict[str, Any]], ...]] = {
    "server": (
        ("--host", "host", "address to listen on", {"default": "127.0.0.1"}),
        ("--port", "port", "port to listen on; 0 selects a free one", {**INTEGER, "default": DEFAULT_PORT}),
        ("--quiet", "quiet", "print no line per request", {"action": "store_true", "default": False}),
    ),
    "rate limit": (
        ("--key", "api_keys", "accepted API key, repeatable (default: sandbox-key)", {"metavar": "KEY", **REPEATABLE}),
        ("--limit", "limit", "requests per period and key", INTEGER),
        ("--period", "period_seconds", "the period", SECONDS),
        ("--algorithm", "algorithm", "the algorithm that enforces the limit", _one_of(Algorithm)),
        ("--burst", "burst", "requests that token_bucket and gcra admit at once (default: the limit)", INTEGER),
        ("--retry-after", "retry_after", "the Retry-After header of a 429 (default: seconds)", RETRY_AFTER),
    ),
    "workflows and executions": (
        ("--workflow", "workflows_at_start", WORKFLOW_HELP, {"metavar": "ID=NAME", **REPEATABLE}),
        ("--execution-seconds", "execution_seconds", "duration of an execution", SECONDS),
        ("--outcome", "outcome", "final status of an execution", _one_of(Outcome)),
        ("--history-lag", "history_lag_seconds", "time until a started execution is in the history", SECONDS),
        ("--page-size", "page_size", "executions per page of the history (default: no pages)", INTEGER),
        ("--execute-response", "execute_response", "body of the response to a start", _one_of(ExecuteResponse)),
        ("--seed", "seed", "makes ids and probabilities reproducible", INTEGER),
    ),
    "webhooks": (
        ("--webhook-url", "url", "URL for the six documented events (default: none)", {"metavar": "URL"}),
        ("--webhook-secret", "secret", "secret that authenticates webhooks (default: none)", {"metavar": "SECRET"}),
        ("--webhook-proof", "proof", "sign webhooks, or append the secret to the URL as a token", _one_of(Proof)),
        ("--webhook-delay", "delay_seconds", "delay between an event and its webhook", SECONDS),
        ("--webhook-jitter", "jitter_seconds", "maximum random extra delay", SECONDS),
        ("--webhook-loss", "loss", "probability that a webhook is not sent", PROBABILITY),
        ("--webhook-duplicates", "duplicates", "probability that a webhook is sent twice", PROBABILITY),
        ("--webhook-forged", "forged", "probability that a forged webhook is also sent", PROBABILITY),
    ),
}
FLAGS = {name: flag for options in OPTIONS.values() for flag, name, *_ in options}
DEFAULTS = {each.name: each.default for settings in (Settings, Webhooks) for each in fields(settings)}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, which leaves out the options that are not given."""
    parser = argparse.ArgumentParser(
        prog="techflow-sandbox",
        description="A local TechFlow: every call of the API reference, its errors and its rate limit.",
        epilog=EPILOG,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for flag, name, text, arguments in options:
            default = arguments.get("default", DEFAULTS.get(name))
            is_shown = isinstance(default, int | float | str) and default not in {"", True, False}
            group.add_argument(flag, dest=name, help=f"{text} (default: {default})" if is_shown else text, **arguments)
    # Its name in version 0.1.0.
    parser.add_argument("--execute-answer", dest="execute_response", help=argparse.SUPPRESS, **_one_of(ExecuteResponse))
    return parser


if __name__ == "__main__":
    sys.exit(main())
