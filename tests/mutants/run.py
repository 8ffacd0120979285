"""List the deliberate defects in the heart of the package that its tests let pass.

Each mutant of a module is written into a copy of the package and only the tests of that module are run, in a process
that is forked from one which has loaded what they need. A mutant is killed when a test fails or hangs. Those that
change nothing anybody relies on stand in spared.toml with the reason; any other that survives is a hole.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from tests.mutants.mutations import Mutant, mutants_of
else:
    from mutations import Mutant, mutants_of

ROOT = Path(__file__).parents[2]
SPARED = Path(__file__).with_name("spared.toml")
# What takes long to load, and what no mutant is in.
LOADED = ("hypothesis", "httpx", "pendulum", "redis", "sqlalchemy", "fastapi", "uvicorn", "pytest_asyncio")
SPARE_SECONDS = 20.0
# What no test computes for; one that waits in virtual time for something that never happens computes for ever.
TEST_CPU_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Area:
    """A module and what tests it.

    :param tests: files, those that fail soonest first
    :param but: names of tests that say nothing about it, for pytest's -k
    :param left_out: functions that only write text for people
    """

    tests: tuple[str, ...]
    but: str = "redis or sqlite"
    left_out: frozenset[str] = field(default=frozenset())


MATCHING = ("submission/test_matching.py", "submission/test_start.py", "submission/test_machine.py")
STARTS = (
    *("submission/test_start.py", "submission/test_attempts.py", "submission/test_steps.py"),
    *("submission/test_machine.py", "submission/test_explorer.py"),
)
WEBHOOKS = ("webhooks/test_receiver.py", "integration/webhooks/test_attacks.py")
AREAS = {
    "state/gcra.py": Area(("state/test_gcra.py", "state/test_budget_state.py", "state/test_budget.py")),
    "state/budget_state.py": Area(("state/test_budget_state.py", "state/test_gcra.py", "state/test_budget.py")),
    "state/budget.py": Area(("state/test_budget.py", "state/test_budget_state.py", "hooks/test_budget.py")),
    "submission/airflow.py": Area(("submission/test_submission.py", "integration/test_notifier.py")),
    "submission/matching.py": Area(
        (*MATCHING, "submission/test_recovery.py", "submission/test_explorer.py"), left_out=frozenset({"_ids"})
    ),
    "submission/times.py": Area(("submission/test_times.py", *MATCHING, "submission/test_explorer.py")),
    "submission/recovery.py": Area(
        ("submission/test_recovery.py", *MATCHING, "submission/test_explorer.py", "triggers/test_search.py")
    ),
    "submission/start.py": Area(STARTS),
    "submission/attempts.py": Area(("submission/test_attempts.py", *STARTS, "commands/test_starts.py")),
    "submission/records.py": Area(("submission/test_attempts.py", *MATCHING, "commands/test_starts.py")),
    "submission/model.py": Area((*STARTS, "submission/test_submission.py"), left_out=frozenset({"Submission.__str__"})),
    "submission/legacy.py": Area(("submission/test_attempts.py",)),
    "submission/direct.py": Area(("submission/test_direct.py", "submission/test_submission.py")),
    "polling/poller.py": Area(("polling/test_polls.py", "polling/test_poller.py", "polling/test_registry.py")),
    "webhooks/receiver.py": Area(WEBHOOKS),
    "client/webhooks.py": Area(("client/test_webhooks.py", *WEBHOOKS)),
}


@dataclass(slots=True)
class Result:
    """What became of a module's mutants."""

    made: int = 0
    killed: int = 0
    spared: int = 0
    survivors: list[Mutant] = field(default_factory=list)


class Stopwatch:
    """A plugin of pytest that ends the process in which a test hangs."""

    def pytest_runtest_setup(self) -> None:
        """Begin anew with each test."""
        signal.setitimer(signal.ITIMER_PROF, TEST_CPU_SECONDS)


class Laboratory:
    """A copy of the package that is broken on purpose, and forked processes that test it.

    :param folder: where the copy and all that the tests write is kept
    """

    def __init__(self, folder: Path) -> None:
        self._package = folder / "techflow_provider"
        self._folder = folder
        self._log = folder / "log"
        shutil.copytree(ROOT / "techflow_provider", self._package, ignore=shutil.ignore_patterns("__pycache__"))
        sys.path.insert(0, str(folder))
        os.environ.update(PYTHONPATH=str(folder), AIRFLOW_HOME=str(folder / "airflow"), TMPDIR=str(folder))
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "hypothesis")
        tempfile.tempdir = str(folder)
        for name in (*LOADED, "airflow", "airflow.providers.common.compat.sdk"):
            with suppress(ImportError):
                importlib.import_module(name)
        # Airflow has loaded the provider's modules, too; each process is to load them anew.
        for name in [each for each in sys.modules if each.partition(".")[0] == "techflow_provider"]:
            del sys.modules[name]

    @contextmanager
    def broken(self, module: str, mutant: Mutant) -> Iterator[None]:
        """Put a mutant into the copy while the context lasts."""
        path = self._package / module
        sound = path.read_bytes()
        path.write_bytes(mutant.source)
        # Compiled files are compared by time, in seconds: the second of two versions in one second would be missed.
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
        try:
            yield
        finally:
            path.write_bytes(sound)
            del os.environ["PYTHONDONTWRITEBYTECODE"]
            sys.dont_write_bytecode = False

    def is_green(self, area: Area, within_seconds: float) -> bool:
        """Whether all tests of an area pass in time."""
        process = os.fork()
        if process == 0:
            self._test(area)
        deadline = time.monotonic() + within_seconds
        ended, status = os.waitpid(process, os.WNOHANG)
        while not ended and time.monotonic() < deadline:
            time.sleep(0.02)
            ended, status = os.waitpid(process, os.WNOHANG)
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        if not ended:
            os.waitpid(process, 0)
        return bool(ended) and os.waitstatus_to_exitcode(status) == 0

    def _test(self, area: Area) -> NoReturn:
        code: int = pytest.ExitCode.INTERNAL_ERROR
        # Whatever happens, this process must not continue as its parent does.
        try:
            os.setsid()
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-c", str(ROOT / "pyproject.toml")]
            options += ["-W", "ignore::pytest.PytestAssertRewriteWarning", "--basetemp", str(self._folder / "tests")]
            options += [f"--rootdir={ROOT}", "-k", f"not ({area.but})"]
            # File by file: most mutants die in the first one.
            files = (str(ROOT / "tests" / each) for each in area.tests)
            code = next((failed for each in files if (failed := pytest.main([*options, each], [Stopwatch()]))), 0)
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def log(self) -> str:
        """Return what the last tests printed."""
        return self._log.read_text(errors="replace")


def spared() -> dict[tuple[str, str, str, str], str]:
    """Return why some mutants may survive, by module, function, before and after."""
    entries = tomllib.loads(SPARED.read_text())["mutant"]
    return {(each["module"], each["function"], each["before"], each["after"]): each["why"] for each in entries}


def examine(laboratory: Laboratory, module: str, area: Area, chosen: argparse.Namespace) -> Result:
    """Make a module's mutants and let its tests find them."""
    began = time.monotonic()
    if not laboratory.is_green(area, 600):
        raise SystemExit(f"the tests of {module} fail without any mutant\n{laboratory.log()}")
    within_seconds = 2 * (time.monotonic() - began) + SPARE_SECONDS
    mutants = mutants_of((ROOT / "techflow_provider" / module).read_bytes(), area.left_out)
    if chosen.lines:
        mutants = [each for each in mutants if each.line in chosen.lines]
    if chosen.sample is not None and chosen.sample < len(mutants):
        mutants = sorted(random.Random(chosen.seed).sample(mutants, chosen.sample), key=lambda each: each.line)
    excused, result = spared(), Result(len(mutants))
    for mutant in mutants:
        if (module, mutant.function, mutant.before, mutant.after) in excused:
            result.spared += 1
            continue
        with laboratory.broken(module, mutant):
            survived = laboratory.is_green(area, within_seconds)
        if survived:
            result.survivors.append(mutant)
            print(f"survived: {module} {mutant.function} {mutant}", flush=True)
        else:
            result.killed += 1
    print(f"· {module}: {result.killed} of {result.made} killed, {time.monotonic() - began:.0f} s", flush=True)
    return result


def report(results: dict[str, Result]) -> None:
    """Print the table, and each survivor as a change of one line."""
    print("\n| module | mutants | killed | spared | survived |\n|---|--:|--:|--:|--:|")
    for module, each in results.items():
        print(f"| {module} | {each.made} | {each.killed} | {each.spared} | {len(each.survivors)} |")
    for module, each in results.items():
        for mutant in each.survivors:
            print(f"\n{module}, in {mutant.function}\n{mutant.line} - {mutant.before}\n{mutant.line} + {mutant.after}")


def main() -> int:
    """Examine the modules that were asked for; 0 when no mutant survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="such as state/gcra.py; all without any")
    parser.add_argument("--sample", type=int, help="how many mutants of each module; all without it")
    parser.add_argument("--seed", type=int, default=1, help="what chooses the sample")
    parser.add_argument("--lines", type=int, nargs="*", help="only the mutants of these lines")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mutants-"))
    try:
        laboratory = Laboratory(folder)
        modules = chosen.modules or list(AREAS)
        results = {module: examine(laboratory, module, AREAS[module], chosen) for module in modules}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report(results)
    return 1 if any(each.survivors for each in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
