"""The `techflow-sandbox` command, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from techflow_provider.sandbox.server import main

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
    """Run the command and give its process and the Airflow connection that it prints."""
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
    return httpx.request(method, connection["host"] + path, headers=headers)


def end(process: subprocess.Popen[str], number: int) -> tuple[int, str, str]:
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    return process.returncode, out, err


def test_it_serves_with_the_connection_it_prints_and_tells_of_each_request():
    with running() as (process, connection):
        assert connection["conn_type"] == "techflow"
        assert call(connection, "/workflows/wf_123/execute", "POST").status_code == 200
        assert call(connection, "/nothing").status_code == 404
        code, out, err = end(process, signal.SIGTERM)

    lines = [line.split(" ", 1)[1] for line in out.splitlines()]
    assert lines == ["POST /workflows/wf_123/execute 200", "GET /nothing 404", "after 2 requests."]
    assert (code, err) == (0, "")


def test_its_options_reach_the_sandbox_and_it_can_be_quiet():
    options = ["--key", "k1", "--key", "k2", "--limit", "1", "--algorithm", "gcra", "--retry-after", "none", "--quiet"]
    with running(*options, "--workflow", "wf_a=A", "--workflow", "wf_b") as (process, connection):
        listed = call(connection, "/workflows").json()["workflows"]
        refused = call(connection, "/workflows")
        other = call({**connection, "password": "k2"}, "/workflows")
        code, out, _ = end(process, signal.SIGINT)

    assert [(each["id"], each["name"]) for each in listed] == [("wf_a", "A"), ("wf_b", "wf_b")]
    assert (refused.status_code, "retry-after" in refused.headers, other.status_code) == (429, False, 200)
    assert (code, out) == (0, "Stopped after 3 requests.\n")


def test_it_sends_webhooks_and_prints_their_secret_with_the_connection():
    options = ["--webhook-url", "http://127.0.0.1:9/hook", "--webhook-secret", "secret-of-the-command"]
    with running(*options) as (_, connection), httpx.Client(base_url=connection["host"]) as client:
        deliveries: list[dict[str, Any]] = []
        while not deliveries:
            deliveries = client.get("/../_sandbox/deliveries").json()["deliveries"]
    assert connection["extra"] == {"webhook_secret": "secret-of-the-command"}
    assert [(each["event"], each["error"]) for each in deliveries] == [("workflow.created", "ConnectError")]


def test_a_taken_port_is_named():
    with running() as (_, connection):
        port = str(httpx.URL(connection["host"]).port)
        second = subprocess.run(
            [*COMMAND, "--port", port], env=ENVIRONMENT, text=True, capture_output=True, check=False, timeout=20
        )
    assert second.returncode == 1
    assert second.stderr == (
        f"techflow-sandbox: port {port} on 127.0.0.1 is in use; choose another with --port, or 0 for a free one\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "http"], "argument --port: received 'http', expected an integer"),
        (["--port", "70000"], "argument --port: received '70000', expected a port from 0 to 65535"),
        (["--limit", "0"], "argument --limit: received 0, expected an integer above 0"),
        (["--period", "nan"], "argument --period: received 'nan', expected a number"),
        (["--period", "0"], "argument --period: received 0.0, expected a number of seconds above 0"),
        (["--algorithm", "fair"], "argument --algorithm: received 'fair', expected one of fixed_window"),
        (["--outcome", "won"], "argument --outcome: received 'won', expected one of completed, failed"),
        (["--history-lag", "-1"], "argument --history-lag: received -1.0"),
        (["--retry-after", "soon"], "argument --retry-after: received 'soon', expected one of seconds, date, none"),
        (["--page-size", "0"], "argument --page-size: received 0"),
        (["--execute-answer", "x"], "argument --execute-response: received 'x'"),
        (["--key", ""], "argument --key: received"),
    ],
)
def test_a_bad_argument_is_named_with_what_came_and_what_was_expected(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
