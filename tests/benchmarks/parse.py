"""What importing a provider's operators and sensors adds to parsing a DAG: CPU time and loaded packages.

Each import runs in a process of its own, after `airflow.sdk`; the figure is the median of `--runs` of them. Run it in
an environment that has the other providers (`make bench`); one that is missing is named and ends the run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.benchmarks.rows import Row, add_option, hand_over
else:
    from rows import Row, add_option, hand_over

PROVIDERS = {
    "techflow": ("techflow_provider.operators.techflow", "techflow_provider.sensors.techflow"),
    "http": ("airflow.providers.http.operators.http", "airflow.providers.http.sensors.http"),
    "dbt-cloud": ("airflow.providers.dbt.cloud.operators.dbt", "airflow.providers.dbt.cloud.sensors.dbt"),
    "airbyte": ("airflow.providers.airbyte.operators.airbyte", "airflow.providers.airbyte.sensors.airbyte"),
    "databricks": (
        "airflow.providers.databricks.operators.databricks",
        "airflow.providers.databricks.sensors.databricks",
    ),
}
HEAVY = ("requests", "aiohttp", "redis", "sqlalchemy", "fastapi", "flask")
LIMIT_MS = 40.0
SCRIPT = """
import importlib, json, sys, time
from airflow.sdk import DAG, BaseOperator, BaseSensorOperator
before = {name.partition(".")[0] for name in sys.modules}
began = time.process_time()
for module in sys.argv[1:]:
    importlib.import_module(module)
spent = time.process_time() - began
print(json.dumps({"ms": spent * 1000, "loaded": sorted({n.partition(".")[0] for n in sys.modules} - before)}))
"""


def measure(modules: tuple[str, ...], runs: int) -> tuple[float, list[str]]:
    """Return the median CPU milliseconds of importing modules, and the heavy packages that they loaded."""
    results = []
    for _ in range(runs):
        command = [sys.executable, "-c", SCRIPT, *modules]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{', '.join(modules)} can't be imported here:\n{done.stderr[-800:]}")
        results.append(json.loads(done.stdout.splitlines()[-1]))
    loaded = [name for name in HEAVY if name in results[0]["loaded"]]
    return statistics.median(result["ms"] for result in results), loaded


def main() -> int:
    """Print the table; 1 when our figure is over the limit or loads what it should not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    add_option(parser)
    asked = parser.parse_args()
    runs = asked.runs
    table = {name: measure(modules, runs) for name, modules in PROVIDERS.items()}
    ours, _ = table["techflow"]
    print(f"{'provider':12} {'CPU ms':>8} {'ratio':>7}  loads of {', '.join(HEAVY)}  (n={runs})")
    for name, (ms, loaded) in table.items():
        print(f"{name:12} {ms:8.1f} {ms / ours:7.1f}  {', '.join(loaded) or '-'}")
    rows = rows_of(table, runs)
    hand_over(asked.rows, *rows)
    return 0 if all(row.met for row in rows) else 1


def rows_of(table: dict[str, tuple[float, list[str]]], runs: int) -> list[Row]:
    """Return our CPU time and loaded packages beside those of the others."""
    (ours, heavy), n = table["techflow"], f"median of {runs}"
    others = {name: figures for name, figures in table.items() if name != "techflow"}
    spent = {name: ms for name, (ms, _) in others.items()}
    loaded = {name: len(packages) for name, (_, packages) in others.items()}
    what = "CPU time of importing operators and sensors, beyond airflow.sdk"
    return [
        Row(what, ours, "ms", n, limit=LIMIT_MS, peers=spent),
        Row(f"packages that it loads, of {', '.join(HEAVY)}", len(heavy), "", n, limit=0, bound="=", peers=loaded),
    ]


if __name__ == "__main__":
    sys.exit(main())
