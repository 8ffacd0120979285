"""Do forged webhooks and slow bodies keep genuine webhooks waiting, from the first one of a fresh process on?

Run it with `python tests/benchmarks/forged.py`. The receiver runs in a process of its own, where looking a connection
up takes 0.3 seconds. 50 forged deliveries a second try other names with a token; with slow bodies, 70 connections also
hold well-formed signatures and an unfinished body.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from techflow_provider.client.webhooks import WebhookSecret

SECRET = WebhookSecret("secret-of-the-forged-benchmark")
LOOKUP_SECONDS = 0.3
FORGED_PER_SECOND = 50
GENUINE = 100
SLOW_BODIES = 70
SERVER = f"""
import socket, sys, time
import uvicorn
from fastapi import FastAPI
from techflow_provider.client.webhooks import WebhookSecret
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.records import Records
from techflow_provider.webhooks.fastapi import create_app
from techflow_provider.webhooks.receiver import Receiver, Subscriber
known = Subscriber(WebhookSecret({SECRET.text!r}), Records(MemoryStore(), "one"))
def find(name):
    time.sleep({LOOKUP_SECONDS})
    return known if name == "one" else None
outer = FastAPI()
outer.mount("/techflow", create_app(Receiver(find)))
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=2048)
uvicorn.Server(uvicorn.Config(outer, log_level="error")).run(sockets=[listener])
"""


@contextmanager
def fresh_receiver(home: str) -> Iterator[str]:
    """Serve a receiver that has looked no connection up yet, and give its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {**os.environ, "AIRFLOW_HOME": home}
    command = [sys.executable, "-c", SERVER, str(port)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}/techflow/webhooks"
        try:
            while True:
                try:
                    httpx.get(url)
                    break
                except httpx.ConnectError:
                    time.sleep(0.1)
            yield url
        finally:
            process.terminate()


async def _forge(client: httpx.AsyncClient, url: str, statuses: Counter[int]) -> None:
    number = 0
    async with asyncio.TaskGroup() as group:
        while True:
            number += 1
            group.create_task(_post(client, f"{url}/guess-{number}?token=forged-forged-forged", statuses))
            await asyncio.sleep(1 / FORGED_PER_SECOND)


async def _post(client: httpx.AsyncClient, url: str, statuses: Counter[int]) -> float:
    began = time.perf_counter()
    statuses[(await client.post(url, content=b"{}")).status_code] += 1
    return time.perf_counter() - began


async def _hold(url: str) -> None:
    host = urlsplit(url)
    _, writer = await asyncio.open_connection(host.hostname, host.port)
    at = int(time.time())
    signature = SECRET.sign("m", at, b"another body")
    proof = f"webhook-id: m\r\nwebhook-timestamp: {at}\r\nwebhook-signature: {signature}\r\n"
    writer.write(f"POST {host.path}/one HTTP/1.1\r\nhost: x\r\n{proof}content-length: 1000\r\n\r\nx".encode())
    await writer.drain()
    await asyncio.sleep(3600)


async def measure(url: str, slow_bodies: int) -> tuple[Counter[int], Counter[int], list[float]]:
    """Return the statuses of forged and of genuine deliveries, and how long each genuine one took."""
    forged: Counter[int] = Counter()
    genuine: Counter[int] = Counter()
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        attacks = [asyncio.create_task(_forge(client, url, forged))]
        attacks += [asyncio.create_task(_hold(url)) for _ in range(slow_bodies)]
        await asyncio.sleep(1.0)
        seconds = []
        for _ in range(GENUINE):
            seconds.append(await _post(client, f"{url}/one?token={SECRET.text}", genuine))
            await asyncio.sleep(0.1)
        for each in attacks:
            each.cancel()
        await asyncio.gather(*attacks, return_exceptions=True)
    return forged, genuine, seconds


def main() -> None:
    """Print one line for each attack."""
    for slow_bodies in (0, SLOW_BODIES):
        with tempfile.TemporaryDirectory() as home, fresh_receiver(str(Path(home))) as url:
            forged, genuine, seconds = asyncio.run(measure(url, slow_bodies))
        print(
            f"{slow_bodies} slow bodies, {sum(forged.values())} forged {dict(forged)}: genuine {dict(genuine)}, "
            f"first {seconds[0]:.3f} s, longest {max(seconds):.3f} s"
        )


if __name__ == "__main__":
    main()
