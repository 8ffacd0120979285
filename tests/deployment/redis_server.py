"""A private Redis."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.deployment.airflow_deployment import READY_SECONDS, Program, free_port, until


@dataclass(frozen=True)
class Redis:
    """A Redis on a free port of the loopback, which keeps all that it has acknowledged when it is killed.

    :param program: its process
    :param port: its port
    """

    program: Program
    port: int

    @classmethod
    def at(cls, folder: Path) -> Redis:
        """Return one that is not running yet."""
        port = free_port()
        kept = ["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--dir", str(folder)]
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", *kept]
        return cls(Program("redis", command, {"PATH": os.environ["PATH"]}, folder / "redis.log"), port)

    def url(self, number: int) -> str:
        """Return the URL of one of its databases."""
        return f"redis://127.0.0.1:{self.port}/{number}"

    @classmethod
    @contextmanager
    def running(cls, folder: Path) -> Iterator[Redis]:
        """Run one while the context lasts, once it responds."""
        redis = cls.at(folder)
        redis.program.start()
        try:
            until(redis._responds, READY_SECONDS, "Redis")
            yield redis
        finally:
            redis.program.stop()

    def _responds(self) -> bool:
        ping = ["redis-cli", "-p", str(self.port), "ping"]
        return b"PONG" in subprocess.run(ping, capture_output=True, check=False).stdout
