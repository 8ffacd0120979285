"""Search what a deployment left behind for a secret: its files, its database, its Redis, and the command lines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.deployment.airflow_deployment import Deployment

REDIS_DATABASES = 3
PAGES = ("techflow-page/", "api/v2/connections", "api/v2/eventLogs", "api/v2/importErrors", "api/v2/plugins")
COMMANDS = (("doctor",), ("budget",), ("executions",), ("workflows", "list", "--output", "json"))


def show_everything(airflow: Deployment) -> None:
    """Write what people are shown, pages and the command line, to files of the deployment."""
    for words in COMMANDS:
        command = [sys.executable, "-m", "techflow_provider", *words]
        environment = {**airflow.environment, "COLUMNS": "200"}
        done = subprocess.run(command, env=environment, cwd=airflow.home, capture_output=True, check=False, timeout=120)
        (airflow.home / f"command-{words[0]}.txt").write_bytes(done.stdout + done.stderr)
    if airflow.version >= (3, 1):
        with airflow.api() as client:
            for page in PAGES:
                shown = client.get(page).raise_for_status()
                (airflow.home / f"page-{page.replace('/', '-')}.txt").write_bytes(shown.content)


def count_places(airflow: Deployment) -> str:
    """Return what `places_with` looks at, in words."""
    files = [path for path in airflow.home.rglob("*") if path.is_file() and "postgres" not in path.parts]
    logs = [path for path in files if "log" in path.suffix]
    redis = _redis_port(airflow)
    keys = sum(len(_keys(_client(redis, number))) for number in range(REDIS_DATABASES)) if redis else 0
    rows = airflow.query("SELECT sum(n_live_tup) FROM pg_stat_user_tables")[0][0]
    processes = len(list(Path("/proc").glob("[0-9]*/cmdline")))
    return (
        f"{len(files)} files ({len(logs)} logs, {len(PAGES) if airflow.version >= (3, 1) else 0} pages, "
        f"{len(COMMANDS)} commands' output), {rows} rows of the database, {keys} keys of Redis, {processes} processes"
    )


def places_with(secret: str, airflow: Deployment) -> list[str]:
    """Return the places where a secret stands, each once."""
    needle = secret.encode()
    found = [*_in_files(needle, airflow.home), *_in_command_lines(needle)]
    redis = _redis_port(airflow)
    if redis:
        found += _in_redis(needle, redis)
    url = f"postgresql://airflow@127.0.0.1:{airflow.postgres.port}/airflow"
    if needle in _output(["pg_dump", url]):
        found.append("the database")
    return sorted(set(found))


def _redis_port(airflow: Deployment) -> str | None:
    """Return the port of the Redis, where the state is in one."""
    return airflow.environment.get("AIRFLOW__TECHFLOW__STATE_URL", "").rpartition(":")[2].partition("/")[0] or None


def _in_files(needle: bytes, folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        # The files of the database are dumped in its own words instead.
        if path.is_file() and "postgres" not in path.parts and needle in path.read_bytes():
            yield str(path.relative_to(folder))


def _client(port: str, number: int) -> list[str]:
    return ["redis-cli", "-p", port, "-n", str(number)]


def _keys(client: Sequence[str]) -> list[bytes]:
    return _output([*client, "--scan"]).splitlines()


def _in_redis(needle: bytes, port: str) -> Iterator[str]:
    for number in range(REDIS_DATABASES):
        client = _client(port, number)
        for key in _keys(client):
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
