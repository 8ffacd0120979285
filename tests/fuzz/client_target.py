"""The readers of responses: each operation of the client against a server that sends anything."""

from __future__ import annotations

from random import Random
from typing import Any

import httpx

from techflow_provider.client import Client, RetryPolicy, Settings, TechFlowError
from techflow_provider.client.calls import raw
from techflow_provider.client.history import ExecutionSelector, ExecutionTracker, HistoryFilter
from techflow_provider.client.reading import PollMemory, poll_history
from techflow_provider.sandbox import ManualClock
from techflow_provider.state.budget import LocalBudget
from tests.fuzz import values
from tests.fuzz.driver import ViolationError

KEY = "fuzz-key-0123456789"
ROW = {"id": "ex_1", "workflow_id": "wf_1", "status": "running", "started_at": "2026-01-01T00:00:00Z"}
FLOW = {"id": "wf_1", "name": "Nightly", "status": "active"}
STATUSES = (*(200,) * 14, *(201, 202, 204, 206, 301, 302, 304, 400, 401, 403, 404, 409, 418, 429, 500, 502, 503, 599))
HEADERS: dict[str, tuple[str, ...]] = {
    "content-type": ("application/json; charset=iso-8859-1", "text/html; charset=idna", "text/html; charset=utf-16"),
    "retry-after": ("5", "1e999", "Mon, 01 Jan 0001 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 -2359", "-1", "soon"),
    "date": ("Thu, 01 Jan 2026 00:00:00 GMT", "Mon, 01 Jan 0001 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 -2359"),
    "last-modified": ("Thu, 01 Jan 2020 00:00:00 GMT", "Mon, 01 Jan 1900 00:00:00 +2359"),
    "link": ('<?page=2>; rel="next"', '<https://xn--/>; rel="next"', '<http://[>; rel="next"', "<", ';;rel="next"'),
    "location": ("https://xn--/", "http://[", "/v3", "//x:y"),
    **dict.fromkeys(("etag", "set-cookie", "ratelimit", "ratelimit-policy", "x-ratelimit-limit"), ("1", '"1"', "a=b")),
    **dict.fromkeys(("x-ratelimit-remaining", "x-ratelimit-reset", "content-length"), ("1", "-1", "1e9", "nan")),
}


def body(random: Random) -> bytes:
    """Return the body of a response."""
    rows: list[Any] = [values.changed(random, random.choice((ROW, FLOW))) for _ in range(random.randrange(5))]
    rows.extend(values.value(random) for _ in range(random.randrange(2)))
    random.shuffle(rows)
    name = random.choice(("executions", "workflows", "data", "items", "results", "execution", "workflow", "error"))
    content = random.choice(
        (
            rows,
            {name: rows},
            {name: rows, "next": values.text(random)},
            {name: rows[0] if rows else None},
            *rows[:1],
            {name: {"message": values.value(random)}},
            values.value(random),
        )
    )
    encoded = values.encoded(random, content)
    return encoded if random.random() < 0.8 else values.damaged(random, encoded)


def respond(random: Random) -> httpx.Response:
    """Return a response."""
    headers: list[tuple[bytes, bytes]] = []
    for name in random.sample(sorted(HEADERS), random.randrange(5)):
        text = random.choice((*HEADERS[name], values.text(random)))
        headers.append((name.encode(), text.encode("utf-8", "replace")))
    content = body(random)
    if random.random() < 0.2:
        coding, content = values.compressed(random, content)
        headers.append((b"content-encoding", coding.encode("latin-1")))
    return httpx.Response(random.choice(STATUSES), headers=headers, stream=httpx.ByteStream(content))


def case(random: Random) -> str:
    """Run one operation, and return the kind of its result."""
    clock = ManualClock()
    settings = Settings(KEY, verify=False, deadline_seconds=100)
    with Client(
        settings=settings,
        transport=httpx.MockTransport(lambda _: respond(random)),
        budget=LocalBudget(100_000, 50_000, clock.monotonic),
        retry=RetryPolicy(max_attempts=2),
        clock=clock.monotonic,
        sleep=clock.advance,
    ) as client:
        try:
            result = _operate(random, client)
        except TechFlowError as error:
            return kind_of(error)
    return type(result).__name__


def kind_of(error: TechFlowError) -> str:
    """Return the kind of an error, which doesn't show the key."""
    if KEY in f"{error!s}{error!r}{error.args}":
        raise ViolationError("the key is in the error")
    return type(error).__name__


def _operate(random: Random, client: Client) -> Any:
    operations: tuple[Any, ...] = (
        client.workflows.list,
        lambda: client.workflows.get("wf_1").to_dict(),
        lambda: client.workflows.create("n", known=()),
        lambda: client.workflows.update("wf_1", "n"),
        lambda: client.workflows.delete("wf_1"),
        lambda: client.workflows.execute("wf_1", {"a": 1}),
        lambda: [each.to_dict() for each in client.executions.list("wf_1", "completed")],
        lambda: client.executions.get("ex_1").to_dict(),
        lambda: client.executions.wait(ExecutionSelector("ex_1"), 5.0, 60.0),
        lambda: client.send(raw("GET", "/x", any_status=True)),
        lambda: _poll(random, client),
    )
    return random.choice(operations)()


def _poll(random: Random, client: Client) -> Any:
    """Poll as a poller does, with what it remembers."""
    memory = PollMemory()
    selector = ExecutionSelector(random.choice(("ex_1", "", "wf_1")) or "ex_2")
    tracker = ExecutionTracker(selector)
    for _ in range(3):
        history_filter = HistoryFilter(everything=random.random() < 0.3)
        history_filter.add(selector, tracker.status)
        history = client.run(poll_history(client.context, history_filter, 60.0, memory))
        tracker.update(history, client.context.clock())
    return tracker.last_seen
