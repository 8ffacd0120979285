"""Fuzz each reader of input from outside for a while, and report what it did: `make fuzz SECONDS=600`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec

# Airflow makes its home when it is imported, which must not be the user's.
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-"))

from tests.fuzz import client_target, connection_target, console_target, webhook_target
from tests.fuzz.driver import Case, quiet, run

DEFAULT_SEED = 20261126


@contextmanager
def _plain(case: Case) -> Iterator[Case]:
    with quiet():
        yield case


TARGETS: Mapping[str, Callable[[], AbstractContextManager[Case]]] = {
    "client": lambda: _plain(client_target.case),
    "connection": lambda: _plain(connection_target.case),
    "console": console_target.open_case,
    "fastapi": webhook_target.open_fastapi_case,
    # Airflow 3 comes without Flask.
    **({"flask": webhook_target.open_flask_case} if find_spec("flask") else {}),
}


def main() -> int:
    """Run the targets one after the other, and return 1 when there is something to correct."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="for each target")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--only", choices=sorted(TARGETS), action="append")
    args = parser.parse_args()
    passed = True
    for name in args.only or TARGETS:
        with TARGETS[name]() as case:
            outcome = run(name, case, args.seed, seconds=args.seconds)
        sys.stdout.write(f"{outcome}\n")
        sys.stdout.flush()
        passed = passed and outcome.passed
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
