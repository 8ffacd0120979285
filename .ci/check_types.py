"""Check the types of the installed package as its users' type checkers see them.

The README's DAG and the example DAGs give no error with mypy's strict mode and with pyright, and of the package's
public symbols, nearly all have a known type.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COMPLETE = 0.99
# DAGs to read and to copy, which nobody imports; they are checked as the files that they are.
EXAMPLES = "techflow_provider.example_dags."
# Airflow's own: its `DAG` takes a dict, which pyright doesn't see.
AIRFLOWS_OWN = '"ParamsDict" in function "__init__"'


def main() -> int:
    """Run the checks, print what they found, and return the exit status."""
    scripts = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        readme = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
        (Path(folder) / "readme.py").write_text(readme[0])
        for path in (ROOT / "dags_examples").glob("*.py"):
            (Path(folder) / path.name).write_text(path.read_text())
        problems = [*_mypy(scripts, folder), *_pyright(scripts, folder)]
    share = _run(scripts / "pyright", "--verifytypes", "techflow_provider", "--ignoreexternal", "--outputjson")
    exported = [each for each in json.loads(share)["typeCompleteness"]["symbols"] if each["isExported"]]
    known = [each["isTypeKnown"] for each in exported if not each["name"].startswith(EXAMPLES)]
    completeness = sum(known) / len(known)
    print(*problems, f"Type completeness: {completeness:.1%} (at least {COMPLETE:.0%})", sep="\n")
    return 1 if problems or completeness < COMPLETE else 0


def _mypy(scripts: Path, folder: str) -> list[str]:
    lines = _run(scripts / "mypy", "--strict", "--no-error-summary", ".", folder=folder).splitlines()
    return [f"mypy: {line}" for line in lines]


def _pyright(scripts: Path, folder: str) -> list[str]:
    report: dict[str, Any] = json.loads(_run(scripts / "pyright", "--outputjson", ".", folder=folder))
    found = [each for each in report["generalDiagnostics"] if AIRFLOWS_OWN not in each["message"]]
    return [f"pyright: {Path(each['file']).name}: {each['message']}" for each in found]


def _run(*command: str | Path, folder: str | None = None) -> str:
    # Pyright sees the packages of the Python that is first in PATH.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False).stdout


if __name__ == "__main__":
    sys.exit(main())
