"""The `techflow-sandbox` command: a sandbox over a socket, until it is interrupted."""

from __future__ import annotations

import argparse
import errno
import json
import math
import signal
import sys
import threading
from collections.abc import Sequence
from typing import get_args

from techflow_provider.sandbox.record import Record
from techflow_provider.sandbox.sandbox import Sandbox
from techflow_provider.sandbox.settings import Algorithm, ExecuteAnswer, Outcome, RetryAfter, SettingError
from techflow_provider.sandbox.webhooks import Proof, Webhooks

DEFAULT_PORT = 8765
LAST_PORT = 65535
# The workflow that the reference shows.
DEFAULT_WORKFLOW = "wf_123=My Workflow"
EPILOG = (
    'The body of a start says how its execution goes: {"sandbox": {"seconds": 2, "outcome": "failed"}}. '
    "Other processes of this machine reach the state, the requests and the faults under /_sandbox/; "
    "/openapi.json describes the API."
)
FLAGS = {
    "api_keys": "--key",
    "period_seconds": "--period",
    "history_lag_seconds": "--history-lag",
    "workflows_at_start": "--workflow",
    **{name: f"--webhook-{name.partition('_')[0]}" for name in ("url", "secret", "proof", "delay_seconds")},
    **{name: f"--webhook-{name.partition('_')[0]}" for name in ("jitter_seconds", "loss", "duplicates", "forged")},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    :param arguments: the command line's; None takes the process's
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        sandbox = _sandbox(options)
    except SettingError as error:
        flag = FLAGS.get(error.name, f"--{error.name.replace('_', '-')}")
        parser.error(f"argument {flag}: received {error.received!r}, expected {error.expected}")
    return _run(sandbox, options)


def _run(sandbox: Sandbox, options: argparse.Namespace) -> int:
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    try:
        with sandbox.serve(options.host, options.port) as url:
            _say(_greeting(sandbox, url))
            if not options.quiet:
                sandbox.on_request = _tell
            done.wait()
    except OSError as error:
        sys.stderr.write(f"techflow-sandbox: {_reason(error, options)}\n")
        return 1
    _say(f"Stopped after {sandbox.count()} requests.")
    return 0


def _reason(error: OSError, options: argparse.Namespace) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {options.port} on {options.host} is taken; choose another with --port, 0 for any that is free"
    return f"can't listen on port {options.port} of {options.host}: {error.strerror or error}"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _tell(record: Record) -> None:
    # A process that only reads the greeting may have closed the pipe.
    try:
        _say(f"{record.at:%H:%M:%S} {record.method} {record.path} {record.status or 'no answer'}")
    except BrokenPipeError:
        return


def _greeting(sandbox: Sandbox, url: str) -> str:
    host = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    secret = sandbox.webhooks.secret if sandbox.webhooks else None
    extra = {"extra": {"webhook_secret": secret}} if secret else {}
    connection = json.dumps({"conn_type": "techflow", "host": host, "password": sandbox.api_keys[0], **extra})
    rate = f"{sandbox.limit} requests in {sandbox.period_seconds:g} seconds ({sandbox.algorithm})"
    return "\n".join(
        [
            f"TechFlow sandbox at {url}, {rate}",
            f"Workflows: {', '.join(sandbox.workflows_at_start) or 'none'}",
            "Connect Airflow with:",
            f"export AIRFLOW_CONN_TECHFLOW_DEFAULT='{connection}'",
        ]
    )


def _sandbox(options: argparse.Namespace) -> Sandbox:
    workflows = [text.partition("=") for text in options.workflow or [DEFAULT_WORKFLOW]]
    return Sandbox(
        api_keys=options.key or ("sandbox-key",),
        limit=options.limit,
        period_seconds=options.period,
        algorithm=options.algorithm,
        burst=options.burst,
        retry_after=options.retry_after,
        execution_seconds=options.execution_seconds,
        outcome=options.outcome,
        history_lag_seconds=options.history_lag,
        page_size=options.page_size,
        etags=options.etags,
        execute_answer=options.execute_answer,
        workflows_at_start={id_: name or id_ for id_, _, name in workflows if id_},
        webhooks=_webhooks(options),
        seed=options.seed,
    )


def _webhooks(options: argparse.Namespace) -> Webhooks | None:
    if options.webhook_url is None:
        return None
    return Webhooks(
        options.webhook_url,
        secret=options.webhook_secret,
        proof=options.webhook_proof,
        delay_seconds=options.webhook_delay,
        jitter_seconds=options.webhook_jitter,
        loss=options.webhook_loss,
        duplicates=options.webhook_duplicates,
        forged=options.webhook_forged,
    )


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise argparse.ArgumentTypeError(f"received {text!r}, expected a number")
    return number


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"received {text!r}, expected a whole number") from error


def _port(text: str) -> int:
    port = _whole_number(text)
    if not 0 <= port <= LAST_PORT:
        raise argparse.ArgumentTypeError(f"received {text!r}, expected a port from 0 to {LAST_PORT}")
    return port


def _retry_after(text: str) -> RetryAfter:
    choices: dict[str, RetryAfter] = {"seconds": "seconds", "date": "date", "none": False}
    if text not in choices:
        raise argparse.ArgumentTypeError(f"received {text!r}, expected one of seconds, date, none")
    return choices[text]


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, where there are some."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="techflow-sandbox",
        description="A local TechFlow: every call of the API reference, its errors and its rate limit.",
        epilog=EPILOG,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=_port, default=DEFAULT_PORT, help="port to listen on; 0 takes a free one")
    add("--key", action="append", metavar="KEY", help="accepted API key, repeatable (default: sandbox-key)")
    add("--quiet", action="store_true", help="no line per request")
    _add_limit(parser)
    _add_executions(parser)
    _add_webhooks(parser)
    return parser


def _add_limit(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("rate limit").add_argument
    add("--limit", type=_whole_number, default=100, help="requests per period and key")
    add("--period", type=_number, default=60.0, metavar="SECONDS", help="the period")
    add("--algorithm", default="fixed_window", help="how requests are counted", metavar="|".join(get_args(Algorithm)))
    add("--burst", type=_whole_number, help="what token_bucket and gcra admit at once (default: the limit)")
    add("--retry-after", type=_retry_after, default="seconds", help="what a 429 tells", metavar="seconds|date|none")


def _add_executions(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("workflows and executions").add_argument
    add("--workflow", action="append", metavar="ID=NAME", help=f"is there, repeatable (default: {DEFAULT_WORKFLOW})")
    add("--execution-seconds", type=_number, default=5.0, metavar="SECONDS", help="how long an execution takes")
    add("--outcome", default="completed", help="how it ends", metavar="|".join(get_args(Outcome)))
    add("--history-lag", type=_number, default=0.0, metavar="SECONDS", help="how long the history lacks it")
    add("--page-size", type=_whole_number, help="executions on a page of the history")
    add("--etags", action="store_true", help="send ETag and respect If-None-Match")
    add("--execute-answer", default="execution", help="answer to a start", metavar="|".join(get_args(ExecuteAnswer)))
    add("--seed", type=_whole_number, help="makes ids and chance reproducible")


def _add_webhooks(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("webhooks").add_argument
    add("--webhook-url", metavar="URL", help="send the six documented events there (default: send none)")
    add("--webhook-secret", metavar="SECRET", help="what they prove themselves with")
    add("--webhook-proof", default="signature", help="sign, or put it into the URL", metavar="|".join(get_args(Proof)))
    add("--webhook-delay", type=_number, default=0.0, metavar="SECONDS", help="how late each is")
    add("--webhook-jitter", type=_number, default=0.0, metavar="SECONDS", help="how much later at random")
    add("--webhook-loss", type=_number, default=0.0, metavar="CHANCE", help="of one that is never sent")
    add("--webhook-duplicates", type=_number, default=0.0, metavar="CHANCE", help="of one that is sent twice")
    add("--webhook-forged", type=_number, default=0.0, metavar="CHANCE", help="of one that a forged one follows")


if __name__ == "__main__":
    sys.exit(main())
