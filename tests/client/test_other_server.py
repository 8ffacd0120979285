"""The clients against a server that differs from the sandbox wherever it may, over a real socket."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from techflow_provider.client import AsyncClient, Client, ExecutionState, NotFoundError, UnauthorizedError
from techflow_provider.client.history import ExecutionSelector

KEY = "other-key-0123456789"
FINISH_AFTER_POLLS = 3
AN_HOUR = 3600


class OtherServer(ThreadingHTTPServer):
    """Bare lists, integer ids, camel case, epoch times, upper-case words, empty bodies, pages by a `next` URL."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), OtherHandler)
        self.lock = threading.Lock()
        self.flows: dict[str, dict[str, Any]] = {}
        self.runs: list[dict[str, Any]] = []
        self.calls: list[str] = []

    def start(self, flow: str, begun: float, state: str, polls: int = 0) -> None:
        self.runs.append({"run": 900 + len(self.runs), "flow": flow, "begun": begun, "state": state, "polls": polls})

    def poll(self, number: int) -> list[dict[str, Any]]:
        """Show all runs, newest first; each ends after some polls of the first page."""
        shown = []
        for run in reversed(self.runs):
            run["polls"] += number == 1
            ended = run["polls"] > FINISH_AFTER_POLLS
            shown.append(
                {
                    "execution_id": run["run"],
                    "workflow": {"id": int(run["flow"]), "title": "nested"},
                    "state": run["state"] if ended else "IN PROGRESS",
                    "startTime": int(run["begun"]),
                    "endTime": int(run["begun"] * 1000) + 5000 if ended else None,
                    "failure_reason": {"message": "out of memory"} if ended and run["state"] == "ABORTED" else None,
                    "node": 7,
                }
            )
        return shown


class OtherHandler(BaseHTTPRequestHandler):
    """HTTP/1.1 with keep-alive."""

    protocol_version = "HTTP/1.1"
    # Head and body are sent together.
    wbufsize = -1
    server: OtherServer

    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def respond(self, status: int, value: Any = None) -> None:
        body = b"" if value is None else json.dumps(value, indent=1).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def dispatch(self) -> None:
        content = self.rfile.read(int(self.headers.get("content-length", 0)))
        url = urlsplit(self.path)
        parts = url.path.strip("/").split("/")[1:]
        if self.headers["authorization"] != f"Bearer {KEY}":
            return self.respond(401, "who are you?")
        with self.server.lock:
            self.server.calls.append(f"{self.command} {url.path}")
            if parts == ["executions"]:
                return self.page(int(parse_qs(url.query).get("page", ["1"])[0]))
            return self.workflow(parts[1:], json.loads(content or b"null"))

    do_GET = do_POST = do_PUT = do_DELETE = dispatch  # noqa: N815  # the names that http.server calls

    def page(self, number: int) -> None:
        runs = self.server.poll(number)
        last = number * 2 >= len(runs)
        value: dict[str, Any] = {"results": runs[number * 2 - 2 : number * 2]}
        self.respond(200, value if last else {**value, "next": f"/api/executions?page={number + 1}"})

    def workflow(self, parts: list[str], body: Any) -> None:
        flows = self.server.flows
        if not parts and self.command == "GET":
            return self.respond(200, list(flows.values()))
        if not parts:
            new = str(40 + len(flows))
            flows[new] = {"workflowId": int(new), **body, "state": "ENABLED", "secretly": {"kept": True}}
            return self.respond(201, {"data": flows[new]})
        if parts[0] not in flows:
            return self.respond(404, {"errors": [], "detail": "there is nothing here"})
        if self.command == "GET":
            return self.respond(200, {"workflow": flows[parts[0]]})
        if self.command == "POST":
            self.server.start(parts[0], time.time(), (body or {}).get("end", "SUCCEEDED"))
        elif self.command == "DELETE":
            del flows[parts[0]]
        else:
            flows[parts[0]] = body
        return self.respond(202 if self.command == "POST" else 204)


@contextmanager
def serving() -> Iterator[tuple[OtherServer, str]]:
    with OtherServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server, f"http://127.0.0.1:{server.server_address[1]}/api/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[OtherServer]:
    """The server; its base URL is `server.url`."""
    with serving() as (running, url):
        running.url = url  # type: ignore[attr-defined]
        yield running


@pytest.fixture
def other(connect_each, server):
    """Run an operation with a client of the server."""
    return connect_each(base_url=server.url, api_key=KEY)


def test_a_workflow_is_created_changed_read_and_deleted(other, server):
    created = other(lambda client: client.workflows.create("First", triggers=["manual", {"cron": "@daily"}]))
    assert (created.id, created.name, created.status) == ("40", "First", "ENABLED")
    assert [each.id for each in other(lambda client: client.workflows.list())] == ["40"]

    changed = other(lambda client: client.workflows.update("40", description="changed"))
    assert (changed.name, changed.description) == ("First", "changed")
    assert server.flows["40"]["triggers"] == ["manual", {"cron": "@daily"}]
    assert server.flows["40"]["secretly"] == {"kept": True}
    assert other(lambda client: client.workflows.get("40")).description == "changed"

    assert other(lambda client: client.workflows.delete("40")) is None
    with pytest.raises(NotFoundError, match="there is nothing here"):
        other(lambda client: client.workflows.get("40"))


@pytest.mark.parametrize(
    ("end", "state", "error"),
    [("SUCCEEDED", ExecutionState.COMPLETED, None), ("ABORTED", ExecutionState.FAILED, "out of memory")],
)
def test_an_execution_is_started_found_and_awaited(other, server, end, state, error):
    other(lambda client: client.workflows.create("First"))
    for age in range(1, 6):
        server.start("40", time.time() - age * AN_HOUR, "SUCCEEDED", polls=99)

    started = other(lambda client: client.workflows.execute("40", {"end": end}))
    assert (started.id, started.workflow_id, started.state) == ("905", "40", ExecutionState.RUNNING)
    assert server.calls.count("POST /api/workflows/40/execute") == 1

    ended = other(lambda client: client.executions.wait(ExecutionSelector(started.id), 5.0, 600.0))
    assert (ended.id, ended.state, ended.error) == ("905", state, error)
    assert (ended.finished_at - ended.started_at).total_seconds() == pytest.approx(5, abs=1)
    assert len(other(lambda client: client.executions.list("40"))) == 6
    assert [each.id for each in other(lambda client: client.executions.list(status="succeeded"))][-1] == "900"


def test_another_key_is_rejected(connect_each, server):
    with pytest.raises(UnauthorizedError, match=r"who are you\?"):
        connect_each(base_url=server.url, api_key="wrong")(lambda client: client.workflows.list())
    assert server.calls == []


def test_the_public_clients_reach_it_with_nothing_but_a_key_and_a_url(server):
    with Client(KEY, base_url=server.url) as client:
        assert client.workflows.create("First").id == "40"

    async def list_names() -> list[str | None]:
        async with AsyncClient(KEY, base_url=server.url) as asynchronous:
            return [each.name for each in await asynchronous.workflows.list()]

    assert asyncio.run(list_names()) == ["First"]
