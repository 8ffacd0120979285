"""What attacks on the receiver of a whole Airflow cost, and that none of them changes what its tasks do."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from techflow_provider.client.webhooks import WebhookSecret
from tests.deployment.webhook_deployment import SECRET, Airflow, airflow, start_waits
from tests.servers import until

WAITS = 5
FLOOD = 10_000
FLOOD_SECONDS = 10.0
CALLERS = 40
IDLE_SECONDS = 60.0
BODY = json.dumps({"event": "execution.completed", "execution_id": "exec_1"}).encode()
MEGABYTE = b"x" * 2**20
OTHER_SECRET = "secret-of-another-connection"
OTHERS: dict[str, dict[str, Any]] = {
    "other": {"extra": {"webhook_secret": OTHER_SECRET}},
    "off": {"extra": {}},
    "of_another_type": {"conn_type": "http", "extra": {"webhook_secret": SECRET}},
}


def signed(age: float = 0.0, secret: str = SECRET, body: bytes = BODY) -> dict[str, str]:
    at = int(time.time() - age)
    names = {"webhook-id": "delivery-1", "webhook-timestamp": str(at)}
    return {**names, "webhook-signature": WebhookSecret(secret).sign("delivery-1", at, body)}


def post(url: str, body: bytes | str = BODY, **headers: str) -> int:
    return httpx.post(url, content=body, headers=headers, timeout=60).status_code


def raw(url: httpx.URL, head: str, pieces: Iterator[bytes]) -> int | None:
    """Send a genuine delivery by hand as long as the receiver listens, and return the status if one came."""
    with socket.create_connection((url.host, url.port or 80), timeout=300) as connection:
        connection.sendall(f"POST {url.path}?token={SECRET} HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n".encode())
        with suppress(OSError):
            for piece in pieces:
                connection.sendall(piece)
        with suppress(OSError):
            response = connection.recv(4096)
            return int(response.split()[1]) if response else None
    return None


def attack(run: Airflow) -> dict[str, int | None]:
    """Try everything once, and return the statuses."""
    to, at = run.webhook_url, httpx.URL(run.webhook_url)
    base, replayed = to.rpartition("/")[0], signed()
    return {
        "no secret": post(to),
        "wrong token": post(f"{to}?token=wrong-wrong-wrong-wrong"),
        "wrong signature": post(to, **signed(body=b"{}")),
        "old timestamp": post(to, **signed(age=360)),
        "first delivery": post(to, **replayed),
        "its replay": post(to, **replayed),
        "100 MB": raw(at, f"content-length: {100 * 2**20}", iter([MEGABYTE] * 100)),
        "slow body": raw(at, "content-length: 1000", _drip()),
        "chunks without end": raw(at, "transfer-encoding: chunked", iter([b"100000\r\n" + MEGABYTE + b"\r\n"] * 200)),
        "garbage": post(f"{to}?token={SECRET}", body=b"\xff{["),
        "wrong content type": post(f"{to}?token={SECRET}", **{"content-type": "text/plain"}),
        "unknown connection": post(f"{base}/nobody?token={SECRET}"),
        "another connection's secret": post(f"{to}?token={OTHER_SECRET}"),
        "signed with it": post(to, **signed(secret=OTHER_SECRET)),
        "connection of another type": post(f"{base}/of_another_type?token={SECRET}"),
        "connection without a secret": post(f"{base}/off?token={SECRET}"),
    }


def _drip() -> Iterator[bytes]:
    for _ in range(8):
        yield b"x"
        time.sleep(1)


async def flood(url: str) -> tuple[Counter[int], float]:
    """Send forged deliveries at 1,000 a second or as fast as responses come; return the statuses and the seconds."""
    statuses, began = Counter[int](), time.monotonic()

    async def call(client: httpx.AsyncClient, first: int) -> None:
        for number in range(first, FLOOD, CALLERS):
            await asyncio.sleep(began + number * FLOOD_SECONDS / FLOOD - time.monotonic())
            response = await client.post(f"{url}?token=forged-forged-forged-{number}", content=BODY)
            statuses[response.status_code] += 1

    async with httpx.AsyncClient(timeout=120) as client:
        await asyncio.gather(*(call(client, first) for first in range(CALLERS)))
    return statuses, time.monotonic() - began


def megabytes(run: Airflow) -> float:
    """Return the memory of the processes that receive webhooks."""
    program = run.running.programs.get("api-server") or run.running.programs["webserver"]
    assert program.process is not None
    group, kilobytes = str(program.process.pid), 0
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (path / "stat").read_text().rpartition(")")[2].split()[2] == group:
                lines = (path / "status").read_text().splitlines()
                kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return kilobytes / 1024


def states(run: Airflow) -> list[list[str]]:
    return run.running.query(
        "SELECT dag_id, run_id, task_id, map_index, state, try_number FROM task_instance ORDER BY 1,2,3,4"
    )


def requests_of_a_minute(run: Airflow) -> int:
    before = run.sandbox.count()
    time.sleep(IDLE_SECONDS)
    return run.sandbox.count() - before


@pytest.fixture(scope="module")
def waiting() -> Iterator[Airflow]:
    """An Airflow in which tasks wait for executions that keep running."""
    with airflow(["webhook_waits"], others=OTHERS) as run:
        start_waits(run, "run", WAITS)
        yield run


def test_attacks_are_refused_and_change_no_task(waiting: Airflow) -> None:
    before = states(waiting)
    usual = requests_of_a_minute(waiting)
    began, count, memory = time.monotonic(), waiting.sandbox.count(), megabytes(waiting)
    statuses = attack(waiting)
    seconds, spent = time.monotonic() - began, waiting.sandbox.count() - count
    print(f"\nattacks: {statuses}")  # noqa: T201
    print(f"requests {spent} in {seconds:.0f} s, {usual} in a usual minute; ")  # noqa: T201
    print(f"memory {memory:.0f} -> {megabytes(waiting):.0f} MiB")  # noqa: T201
    genuine = ("first delivery", "its replay", "garbage", "wrong content type")
    assert {statuses.pop(name) for name in genuine} == {200}
    assert statuses.pop("connection without a secret") == 404
    assert statuses.pop("100 MB") in (413, None)
    assert statuses.pop("chunks without end") in (413, None)
    assert statuses.pop("slow body") in (400, 408)
    assert set(statuses.values()) == {401}
    assert states(waiting) == before
    # Each genuine delivery may cost one poll, besides the usual ones.
    assert spent <= usual * seconds / IDLE_SECONDS + 5


def test_ten_thousand_forged_deliveries_cost_no_request_and_change_no_task(waiting: Airflow) -> None:
    before, usual = states(waiting), requests_of_a_minute(waiting)
    began, count, memory = time.monotonic(), waiting.sandbox.count(), megabytes(waiting)
    statuses, seconds = asyncio.run(flood(waiting.webhook_url))
    spent, after = waiting.sandbox.count() - count, megabytes(waiting)
    print(f"\n{FLOOD} forged deliveries: {dict(statuses)} in {seconds:.1f} s; ")  # noqa: T201
    print(f"requests {spent}, {usual} in a usual minute; memory {memory:.0f} -> {after:.0f} MiB")  # noqa: T201
    assert set(statuses) <= {401, 503}
    assert states(waiting) == before
    assert spent <= usual * (time.monotonic() - began) / IDLE_SECONDS + 2
    assert after - memory < 100


def test_the_waits_end_right_after_all_attacks(waiting: Airflow) -> None:
    for execution in waiting.sandbox.executions:
        waiting.sandbox.finish(execution.id, outcome="completed")
    until(lambda: waiting.running.query("SELECT state FROM dag_run")[0][0] == "success", 600, "the DAG run's success")
    assert {row[4] for row in states(waiting)} == {"success"}
    assert len(waiting.sandbox.executions) == WAITS
