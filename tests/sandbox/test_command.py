"""The `techflow-sandbox` command."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import httpx
import pytest

from techflow_provider.sandbox import Sandbox, Webhooks
from techflow_provider.sandbox.server import build_parser, build_sandbox, greeting, main
from tests.sandbox.conftest import TIMEOUT_SECONDS

COMMAND = [sys.executable, "-m", "techflow_provider.sandbox.server"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_the_help_shows_a_default_where_there_is_one(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "(default: 8765)" in shown
    assert "default: None" not in shown


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Run the command and yield its process and the Airflow connection that it prints."""
    command = [*COMMAND, "--port", "0", *arguments]
    with subprocess.Popen(command, env=ENVIRONMENT, text=True, stdout=-1, stderr=-1) as process:
        try:
            yield process, read_connection(process)
        finally:
            process.kill()


def read_connection(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("export AIRFLOW_CONN_TECHFLOW_DEFAULT="):
            connection: dict[str, Any] = json.loads(line.partition("=")[2].strip().strip("'"))
            return connection
    raise AssertionError("the command printed no connection")


def call(connection: dict[str, str], path: str, method: str = "GET") -> httpx.Response:
    headers = {"authorization": f"Bearer {connection['password']}"}
    return httpx.request(method, connection["host"] + path, headers=headers, timeout=TIMEOUT_SECONDS, verify=False)


def stop(process: subprocess.Popen[str], number: int) -> tuple[int, str, str]:
    process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    return process.returncode, out, err


def test_it_serves_with_the_connection_it_prints_and_prints_each_request():
    with running("--webhook-secret", "secret-of-the-command", "--webhook-url", "http://127.0.0.1:9/hook") as (
        process,
        connection,
    ):
        assert connection["conn_type"] == "techflow"
        assert connection["extra"]["webhook_secret"] == "secret-of-the-command"
        assert call(connection, "/workflows/wf_123/execute", "POST").status_code == 200
        assert call(connection, "/nothing").status_code == 404
        code, out, err = stop(process, signal.SIGTERM)

    lines = [line.split(" ", 1)[1] for line in out.splitlines()]
    assert lines == ["POST /workflows/wf_123/execute 200", "GET /nothing 404", "after 2 requests."]
    assert (code, err) == (0, "")


def test_it_can_be_quiet():
    with running("--quiet") as (process, connection):
        assert call(connection, "/workflows").status_code == 200
        assert stop(process, signal.SIGINT) == (0, "Stopped after 1 requests.\n", "")


def build(*arguments: str) -> Sandbox:
    return build_sandbox(build_parser().parse_args(arguments))


def test_without_options_the_sandbox_has_its_default_settings():
    assert settings(build()) == settings(Sandbox(workflows_at_start={"wf_123": "My Workflow"}))


def settings(sandbox: Sandbox) -> dict[str, Any]:
    return {each.name: getattr(sandbox, each.name) for each in fields(Sandbox) if each.name != "clock"}


def test_each_option_changes_its_setting():
    sandbox = build(
        *("--key", "k1", "--key", "k2", "--limit", "7", "--period", "2", "--algorithm", "gcra", "--burst", "3"),
        *("--retry-after", "none", "--workflow", "wf_a=A", "--workflow", "wf_b", "--execution-seconds", "inf"),
        *("--outcome", "failed", "--history-lag", "4", "--page-size", "5", "--execute-response", "id"),
        *("--seed", "6", "--webhook-url", "http://x", "--webhook-secret", "s", "--webhook-proof", "token"),
        *("--webhook-delay", "8", "--webhook-jitter", "9", "--webhook-loss", "0.1", "--webhook-duplicates", "0.2"),
        *("--webhook-forged", "0.3"),
    )
    expected = Sandbox(
        api_keys=["k1", "k2"],
        limit=7,
        period_seconds=2,
        algorithm="gcra",
        burst=3,
        retry_after=False,
        workflows_at_start={"wf_a": "A", "wf_b": "wf_b"},
        execution_seconds=math.inf,
        outcome="failed",
        history_lag_seconds=4,
        page_size=5,
        execute_response="id",
        seed=6,
        webhooks=Webhooks(
            "http://x",
            secret="s",
            proof="token",
            delay_seconds=8,
            jitter_seconds=9,
            loss=0.1,
            duplicates=0.2,
            forged=0.3,
        ),
    )
    assert settings(sandbox) == settings(expected)


def test_the_old_name_of_an_option_is_accepted():
    assert build("--execute-answer", "empty").execute_response == "empty"


def test_a_port_in_use_is_named(sandbox, capsys, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with sandbox.serve() as url:
        port = httpx.URL(url).port
        assert main(["--port", str(port)]) == 1
    assert capsys.readouterr().err == (
        f"techflow-sandbox: cannot listen on port {port} of 127.0.0.1: it is in use; choose another with --port, "
        "or 0 for a free one\n"
    )


def test_a_port_that_does_not_exist_is_named(capsys, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main(["--port", "70000"]) == 1
    assert "cannot listen on port 70000 of 127.0.0.1: bind(): port must be 0-65535" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "http"], "argument --port: invalid int value: 'http'"),
        (["--limit", "0"], "argument --limit: received 0, expected an integer above 0"),
        (["--period", "nan"], "argument --period: received nan, expected a number"),
        (["--period", "0"], "argument --period: received 0.0, expected a number of seconds above 0"),
        (["--algorithm", "fair"], "argument --algorithm: received 'fair', expected one of fixed_window"),
        (["--outcome", "won"], "argument --outcome: received 'won', expected one of completed, failed"),
        (["--history-lag", "-1"], "argument --history-lag: received -1.0"),
        (["--retry-after", "soon"], "argument --retry-after: invalid choice: 'soon'"),
        (["--page-size", "0"], "argument --page-size: received 0"),
        (["--execute-answer", "x"], "argument --execute-response: received 'x'"),
        (["--key", ""], "argument --key: received"),
        (["--webhook-url", "x"], "argument --webhook-url: received 'x'"),
        (["--webhook-url", "http://x", "--webhook-loss", "2"], "argument --webhook-loss: received 2.0"),
    ],
)
def test_an_invalid_argument_is_reported_with_what_was_received_and_what_was_expected(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "key", "warns"),
    [
        ("http://127.0.0.1:8765/v2", "sandbox-key", False),
        ("http://[::1]:8765/v2", "sandbox-key", False),
        ("http://localhost:8765/v2", "sandbox-key", False),
        ("http://0.0.0.0:8765/v2", "sandbox-key", True),
        ("http://[::]:8765/v2", "sandbox-key", True),
        ("http://192.168.1.5:8765/v2", "sandbox-key", True),
        ("http://0.0.0.0:8765/v2", "a-key-of-ones-own", False),
    ],
)
def test_the_greeting_warns_of_the_default_key_on_another_interface(url, key, warns):
    assert ("Warning: anyone" in greeting(Sandbox(api_keys=(key,)), url)) is warns
