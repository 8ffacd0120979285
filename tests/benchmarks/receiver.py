"""The receiver of webhooks in a process of its own, and what calls it, for the benchmarks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

SERVER = """
import socket, sys
import uvicorn
from fastapi import FastAPI
from techflow_provider.webhooks.fastapi import app
outer = FastAPI()
outer.mount("/techflow", app)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=2048)
uvicorn.Server(uvicorn.Config(outer, log_level="error")).run(sockets=[listener])
"""


@contextlib.contextmanager
def receiver(home: Path) -> Iterator[tuple[str, int]]:
    """Serve the receiver from another process, and give its URL and process id."""
    environment = {**os.environ, "AIRFLOW_HOME": str(home)}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-c", SERVER, str(port)]
    url = f"http://127.0.0.1:{port}/techflow/webhooks/bench"
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            # The first one loads what Airflow needs to look a connection up.
            while _status(url) != HTTPStatus.UNAUTHORIZED:
                time.sleep(0.1)
            yield url, process.pid
        finally:
            process.terminate()


def _status(url: str) -> int:
    try:
        return httpx.post(url, timeout=60).status_code
    except httpx.ConnectError:
        return 0


def megabytes(pid: int) -> float:
    """Return the memory that a process has."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


@contextlib.asynccontextmanager
async def calling(url: str) -> AsyncIterator[Callable[[Any], Awaitable[int]]]:
    """Give what posts JSON to a URL and returns the status, over one connection until the receiver closes that.

    An HTTP client would take more time for a call than the receiver does.
    """
    parts = urlsplit(url)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    head = f"POST {target} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\ncontent-length: "
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)

    async def post(body: Any) -> int:
        nonlocal reader, writer
        if writer.is_closing():
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        content = json.dumps(body)
        writer.write(f"{head}{len(content)}\r\n\r\n{content}".encode())
        response = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(response.partition(b"content-length:")[2].split(b"\r\n", 1)[0]))
        if b"\r\nconnection: close\r\n" in response:
            writer.close()
        return int(response.split(b" ", 2)[1])

    try:
        yield post
    finally:
        writer.close()
