"""The receiver of webhooks in a process of its own, for the benchmarks."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

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
