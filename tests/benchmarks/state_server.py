"""What the shared state costs behind a real API server on PostgreSQL: operations a second, and how long one takes.

One caller is one thread with a store of its own. `reserve` takes a slot of one budget for all callers; `claim` writes
an entry of its own each time, durably; `read` reads an entry.

    python tests/benchmarks/state_server.py [--seconds 5] [--callers 1 16 100]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx

from techflow_provider.state.budget import RequestClass, SharedBudget
from techflow_provider.state.http import HttpStore
from techflow_provider.state.signing import Signer, derive_key
from techflow_provider.state.store import Entry, Store, Write, budget_key, read_only
from tests.servers import Postgres, Program, free_port, until

if TYPE_CHECKING:
    from tests.benchmarks.rows import line, percentile
else:
    from rows import line, percentile

WIDTHS = (12, 10, 8, 9, 11, 10, 10)
BASE_URL, KEY = "http://techflow.example/v2", "key-of-the-benchmark"
ACCOUNT = budget_key(BASE_URL, KEY)
READY_SECONDS = 120.0


@contextmanager
def api_server(folder: Path, *, servers: int = 1) -> Iterator[tuple[str, list[str]]]:
    """Run API servers over one database while the context lasts; return the database's URL and theirs."""
    folder.chmod(0o755)
    with Postgres(folder / "postgres") as postgres:
        database = f"postgresql+psycopg2://airflow@127.0.0.1:{postgres.port}/airflow"
        connection = {"conn_type": "techflow", "host": BASE_URL, "password": KEY}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        environment = {
            **kept,
            "AIRFLOW_HOME": str(folder),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": database.replace("psycopg2", "asyncpg"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__TECHFLOW__STATE_URL": database.replace("+psycopg2", ""),
            "AIRFLOW_CONN_TECHFLOW_DEFAULT": json.dumps(connection),
        }
        subprocess.run(
            [sys.executable, "-m", "airflow", "db", "migrate"], env=environment, check=True, capture_output=True
        )
        programs = []
        try:
            for _ in range(servers):
                port = str(free_port())
                command = [sys.executable, "-m", "airflow", "api-server", "--host", "127.0.0.1", "-p", port, "-w", "1"]
                programs.append(Program(f"api-server-{port}", command, environment, folder / f"api-server-{port}.log"))
                programs[-1].start()
                until(partial(_is_ready, port), READY_SECONDS, "the API server")
            urls = [f"http://127.0.0.1:{each.name.removeprefix('api-server-')}/techflow/state" for each in programs]
            yield environment["AIRFLOW__TECHFLOW__STATE_URL"], urls
        finally:
            for program in programs:
                program.stop()


def _is_ready(port: str) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/api/v2/version", timeout=5).is_success
    except httpx.TransportError:
        return False


def http_store(url: str) -> HttpStore:
    """Return a store of its own for a caller."""
    signer = Signer("techflow_default", derive_key(KEY, ACCOUNT))
    return HttpStore(url, signer, lambda: signer)


def reserve(store: Store) -> Callable[[], object]:
    """Take a slot of a budget that never makes anybody wait."""
    budget = SharedBudget(store, ACCOUNT, 10_000_000)
    return lambda: budget.reserve(RequestClass.COMMAND, 1.0)


def claim(store: Store) -> Callable[[], object]:
    """Claim an execution that nobody has claimed."""
    prefix, numbers = uuid4().hex, count()

    def change(entry: Entry | None, _: float) -> tuple[Write | None, str]:
        return (Write("submission", 3600.0), "submission") if entry is None else (None, entry.value)

    return lambda: store.update(f"{ACCOUNT}/claims", f"{prefix}{next(numbers)}", change)


def read(store: Store) -> Callable[[], object]:
    """Read an entry."""
    return lambda: store.update(f"{ACCOUNT}/attempts", "a", read_only)


OPERATIONS = {"reserve": reserve, "claim": claim, "read": read}


def measure(
    open_store: Callable[[], Store], operation: str, callers: int, seconds: float
) -> tuple[list[float], list[int], float]:
    """Return the milliseconds that each operation took, how many each caller had, and how long all took."""
    times: list[list[float]] = [[] for _ in range(callers)]
    acts = [OPERATIONS[operation](open_store()) for _ in range(callers)]
    for act in acts:
        act()
    end = time.monotonic() + seconds

    def run(act: Callable[[], object], spent: list[float]) -> None:
        while time.monotonic() < end:
            began = time.perf_counter()
            act()
            spent.append((time.perf_counter() - began) * 1000)

    began = time.monotonic()
    threads = [threading.Thread(target=run, args=pair) for pair in zip(acts, times, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [each for spent in times for each in spent], [len(spent) for spent in times], time.monotonic() - began


def main() -> None:
    """Print the figures of each store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 16, 100])
    parser.add_argument("--servers", type=int, default=1)
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="state-server-") as folder,
        api_server(Path(folder), servers=asked.servers) as (_, urls),
    ):
        turns = count()
        line(WIDTHS, "store", "operation", "callers", "a second", "median ms", "p99 ms", "min/max")
        for operation in OPERATIONS:
            for callers in asked.callers:
                spent, each, seconds = measure(
                    lambda: http_store(urls[next(turns) % len(urls)]), operation, callers, asked.seconds
                )
                figures = (
                    f"{len(spent) / seconds:.0f}",
                    f"{statistics.median(spent):.2f}",
                    f"{percentile(spent, 99):.1f}",
                )
                line(WIDTHS, "API server", operation, callers, *figures, f"{min(each)}/{max(each)}")


if __name__ == "__main__":
    main()
