"""Search what a deployment left behind for secrets: its files, its database, its Redis, and the command lines."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
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


@dataclass
class Search:
    """What a search came to.

    :param found: a secret's name and the place where it stands, each once
    :param looked_at: how many there were of each kind of place
    """

    found: list[str] = field(default_factory=list)
    looked_at: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in self.looked_at.items())


def search(secrets: Mapping[str, str], airflow: Deployment) -> Search:
    """Look for secrets, which are given by their names, everywhere; each place is read once."""
    done, found = Search(), set()
    for kind, place, content in _contents(airflow):
        done.looked_at[kind] += 1
        found |= {f"{name} in {place}" for name, secret in secrets.items() if secret.encode() in content}
    # A dump is read as a whole.
    done.looked_at["rows of the database"] = int(airflow.query("SELECT sum(n_live_tup) FROM pg_stat_user_tables")[0][0])
    done.found = sorted(found)
    return done


def _contents(airflow: Deployment) -> Iterator[tuple[str, str, bytes]]:
    """Give the kind, the name and the content of every place."""
    yield from _files(airflow.home)
    yield from _command_lines()
    # Empty unless the state is in a Redis.
    port = airflow.environment.get("AIRFLOW__TECHFLOW__STATE_URL", "").rpartition(":")[2].partition("/")[0]
    if port:
        yield from _redis_keys(port)
    url = f"postgresql://airflow@127.0.0.1:{airflow.postgres.port}/airflow"
    yield "rows of the database", "the database", _output(["pg_dump", url])


def _files(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    for path in folder.rglob("*"):
        # The files of the database are dumped in its own words instead.
        if path.is_file() and "postgres" not in path.parts:
            shown = path.parent == folder and path.name.startswith(("page-", "command-"))
            kind = "pages and commands' output" if shown else "logs" if "log" in path.suffix else "other files"
            yield kind, str(path.relative_to(folder)), path.read_bytes()


def _command_lines() -> Iterator[tuple[str, str, bytes]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        # The process may have ended meanwhile.
        with suppress(OSError):
            yield "command lines", "a command line", path.read_bytes()


def _redis_keys(port: str) -> Iterator[tuple[str, str, bytes]]:
    for number in range(REDIS_DATABASES):
        client = ["redis-cli", "-p", port, "-n", str(number)]
        for key in _output([*client, "--scan"]).splitlines():
            yield "keys of Redis", f"database {number} of Redis", key + b"\n" + _output([*client, "DUMP", key.decode()])


def _output(command: list[str]) -> bytes:
    return subprocess.run(command, capture_output=True, check=True).stdout
