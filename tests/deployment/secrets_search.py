"""Search what a deployment left behind for a secret: its files, its database, its Redis, and the command lines."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.deployment.airflow_deployment import Deployment

REDIS_DATABASES = 3


def places_with(secret: str, airflow: Deployment, redis_port: int) -> list[str]:
    """Return the places where a secret stands, each once."""
    needle = secret.encode()
    found = [*_in_files(needle, airflow.home), *_in_redis(needle, redis_port), *_in_command_lines(needle)]
    url = f"postgresql://airflow@127.0.0.1:{airflow.postgres.port}/airflow"
    if needle in subprocess.run(["pg_dump", url], capture_output=True, check=True).stdout:
        found.append("the database")
    return sorted(set(found))


def _in_files(needle: bytes, folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        # The files of the database are dumped in its own words instead.
        if path.is_file() and "postgres" not in path.parts and needle in path.read_bytes():
            yield str(path.relative_to(folder))


def _in_redis(needle: bytes, port: int) -> Iterator[str]:
    for number in range(REDIS_DATABASES):
        client = ["redis-cli", "-p", str(port), "-n", str(number)]
        for key in _output([*client, "--scan"]).splitlines():
            if needle in key or needle in _output([*client, "DUMP", key.decode()]):
                yield f"database {number} of Redis"


def _output(command: list[str]) -> bytes:
    return subprocess.run(command, capture_output=True, check=True).stdout


def _in_command_lines(needle: bytes) -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if needle in path.read_bytes():
                yield "a command line"
        except OSError:
            # The process has ended meanwhile.
            continue
