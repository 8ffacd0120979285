"""The output of the command line: whatever TechFlow sends, a terminal receives printable text, and a program JSON."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from unicodedata import category

from techflow_provider.cli import main
from tests.client.raw_server import response, serving
from tests.fuzz import client_target
from tests.fuzz.driver import ViolationError

KEY = client_target.KEY
# Not those after which a command waits and sends the request again.
STATUSES = (*("200 OK",) * 8, "201 Created", "400 Bad Request", "401 No", "404 Not Found", "409 Conflict", "302 Found")
COMMANDS = (
    *(("workflows", "list"), ("workflows", "get", "wf_1"), ("executions",), ("doctor", "--learn"), ("budget",)),
    *(("workflows", "update", "wf_1", "--name", "n"), ("workflows", "delete", "wf_1"), ("executions", "--limit", "2")),
)
CODES = (0, 1, 2, 3)


@contextmanager
def open_case() -> Iterator[Callable[[Random], str]]:
    """Serve responses, and return what runs one command against them."""
    current: list[Random] = []

    def serve(connection: socket.socket, _: bytes) -> None:
        content = client_target.body(current[0])
        head = response("connection: close", f"content-length: {len(content)}", status=current[0].choice(STATUSES))
        connection.sendall(head + content)

    def case(random: Random) -> str:
        current[:] = [random]
        return _run(random)

    with serving(serve) as port, tempfile.TemporaryDirectory(prefix="fuzz-") as home, _environment(port, home):
        yield case


@contextmanager
def _environment(port: int, home: str) -> Iterator[None]:
    extra = {"requests_per_minute": 100_000, "burst": 10_000, "verify": False}
    connection = {"conn_type": "techflow", "host": f"http://127.0.0.1:{port}", "password": KEY, "extra": extra}
    wanted = {"AIRFLOW_CONN_TECHFLOW_DEFAULT": json.dumps(connection), "AIRFLOW_HOME": home}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run(random: Random) -> str:
    command = [*random.choice(COMMANDS)]
    output = random.choice(("table", "json"))
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([*command, "--output", output])
        except SystemExit as stopped:
            code = stopped.code
    _check(code, out.getvalue(), err.getvalue(), output)
    return f"exit code {code}"


def _check(code: object, out: str, err: str, output: str) -> None:
    if code not in CODES:
        raise ViolationError(f"exit code {code!r}")
    for text in (out, err):
        unprintable = {c for c in text if category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != "\n"}
        if unprintable:
            raise ViolationError(f"unprintable: {sorted(map(ascii, unprintable))[:5]}")
        if KEY in text:
            raise ViolationError("the key")
    if output == "json" and out:
        json.loads(out)
