"""Is anything lost, or does anything happen twice, when the store of the shared state fails in the middle?

Tasks in processes of their own, many of them killed, start one execution each and wait for it, while TechFlow loses
responses; then the store breaks in one of many ways. Prints, for each way, requests and 429s, executions beyond one a
task, tasks without an execution of their own, and those that say that it can't be determined; ends with 1 when there is
one of the first three.

    python tests/benchmarks/state_faults.py [--only restart-redis flushall] [--tasks 60] [--away 60]
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from tests.benchmarks.kills import AMBIGUOUS, FAULTS, LOOK, SHARED_WORKFLOWS, Trial, World, report, run_all, sandbox
    from tests.benchmarks.places import ACCOUNT, open_place, place
    from tests.benchmarks.rows import Row, add_option, hand_over, line
else:
    from kills import AMBIGUOUS, FAULTS, LOOK, SHARED_WORKFLOWS, Trial, World, report, run_all, sandbox
    from places import ACCOUNT, open_place, place
    from rows import Row, add_option, hand_over, line
from techflow_provider.state.budget import SharedBudget
from techflow_provider.state.store import Write
from tests.servers import Program, Proxy, Redis, free_port, until

LIMIT = 300
# When the store breaks, after the first tasks have started.
BREAK_SECONDS = 6.0
LONGEST_SECONDS = 900.0
EXECUTION_SECONDS, WAIT_SECONDS = 3.0, 120.0
# No 429s but those of the limit, and fewer failing polls.
WORLD_FAULTS = [fault for fault in FAULTS if fault.get("status") != 429 and fault.get("path") != LOOK["path"]]
WIDTHS = (26, 12, 9, 7, 9, 12, 8, 10, 10, 8)
HEADS = ("fault", "store", "requests", "429s", "tasks", "executions", "twice", "lost", "ambiguous", "seconds")

Step = tuple[float, Callable[[], Any]]


@dataclass
class Broken:
    """A store that breaks.

    :param name: of the store, in `PLACES`
    :param url: by which tasks reach it
    :param steps: what is done to it, and when, in seconds
    """

    name: str
    url: str
    steps: list[Step] = field(default_factory=list)

    def during(self, seconds: float, begin: Callable[[], Any], end: Callable[[], Any]) -> Broken:
        """Add a fault that lasts."""
        self.steps += [(BREAK_SECONDS, begin), (BREAK_SECONDS + seconds, end)]
        return self

    def once(self, act: Callable[[], Any]) -> Broken:
        """Add a fault that happens once."""
        self.steps.append((BREAK_SECONDS, act))
        return self


@contextmanager
def restarted(name: str, folder: Path, seconds: float) -> Iterator[Broken]:
    """The store's server is killed, and is back after a while."""
    with place(name, folder) as store:
        yield Broken(name, store.url).during(seconds, store.stop, store.start)


@contextmanager
def partitioned(name: str, folder: Path, seconds: float) -> Iterator[Broken]:
    """The network drops all packets for a while."""
    with place(name, folder) as store, Proxy(*store.ports) as proxy:
        yield Broken(name, store.through(proxy)).during(seconds, proxy.partition, proxy.heal)


@contextmanager
def distant(name: str, folder: Path, seconds: float) -> Iterator[Broken]:  # lasts all the time
    """A round trip takes 1.2 s."""
    with place(name, folder) as store, Proxy(*store.ports) as proxy:
        proxy.delay_seconds = 0.6
        yield Broken(name, store.through(proxy))


@contextmanager
def two_servers(name: str, folder: Path, seconds: float) -> Iterator[Broken]:
    """Two API servers behind one address, of which one is killed."""
    with place(name, folder, servers=2) as store, Proxy(*store.ports) as proxy:
        yield Broken(name, store.through(proxy)).during(seconds, store.stop, store.start)


@contextmanager
def flushed(name: str, folder: Path, seconds: float) -> Iterator[Broken]:  # happens once
    """Somebody empties Redis."""
    with Redis.running(folder) as redis:
        yield Broken(name, redis.url()).once(lambda: redis.command("FLUSHALL"))


@contextmanager
def evicting(name: str, folder: Path, seconds: float) -> Iterator[Broken]:  # happens once
    """Redis runs out of memory and drops keys that have a time to live."""
    options = ("--maxmemory", "3mb", "--maxmemory-policy", "volatile-lru", "--maxmemory-samples", "64")
    with Redis.running(folder, *options) as redis:

        def fill() -> None:
            script = "for i = 1, 3000 do redis.call('set', 'other' .. i, string.rep('x', 1000), 'ex', 600) end"
            redis.command("eval", script, "0")

        yield Broken(name, redis.url()).once(fill)


@contextmanager
def exhausted(name: str, folder: Path, seconds: float) -> Iterator[Broken]:
    """Others use up all connections for a while."""
    settings = ("--maxclients", "12") if name == "redis" else ("max_connections=12",)
    with place(name, folder, settings=settings) as store:
        others: list[Any] = []

        def connect_others() -> None:
            others.extend(_connect(store.url) for _ in range(11))

        yield Broken(name, store.url).during(seconds, connect_others, lambda: [each.close() for each in others])


def _connect(url: str) -> Any:
    # No connection is left for the last ones.
    with suppress(Exception):
        if url.startswith("postgresql"):
            return import_module("psycopg2").connect(url.replace("+psycopg2", ""))
        client = import_module("redis").Redis.from_url(url)
        client.ping()
        return client
    return _Nothing()


class _Nothing:
    def close(self) -> None:
        """Hold nothing."""


@contextmanager
def full(name: str, folder: Path, seconds: float) -> Iterator[Broken]:
    """The disk with the store is full for a while."""
    disk = folder / "disk"
    disk.mkdir()
    # PostgreSQL runs as another user and must get through.
    folder.chmod(0o755)
    size = "120m" if name == "postgresql" else "8m"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)], check=False).returncode:
        raise RuntimeError("a disk that can be filled needs root")
    filler = disk / "filler"
    try:
        with place(name, disk) as store:

            def mend() -> None:
                filler.unlink()
                if name == "redis":
                    # It ends itself when it can't append, and is restarted as by a supervisor.
                    store.stop()
                    store.start()

            yield Broken(name, store.url).during(seconds, lambda: _fill(filler), mend)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def _fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


@contextmanager
def jumping(name: str, folder: Path, seconds: float, by: str = "+1h") -> Iterator[Broken]:
    """The clock of the store's host jumps by an hour, and back after a while."""
    clock = folder / "clock"
    clock.write_text("+0")
    clock.chmod(0o644)
    library = next(Path("/usr/lib").rglob("libfaketime.so.1"), None)
    if library is None:
        raise RuntimeError("a clock that jumps needs libfaketime (apt-get install faketime)")
    fake = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    kept = dict(os.environ)
    try:
        os.environ.update(fake)
        with place(name, folder) as store:
            os.environ.clear()
            os.environ.update(kept)
            yield Broken(name, store.url).during(seconds, lambda: clock.write_text(by), lambda: clock.write_text("+0"))
    finally:
        os.environ.clear()
        os.environ.update(kept)


@contextmanager
def failing_over(name: str, folder: Path, seconds: float) -> Iterator[Broken]:  # lasts
    """A Sentinel promotes the replica of a Redis whose primary is killed."""
    with Redis.running(folder) as primary:
        second = folder / "replica"
        second.mkdir()
        with Redis.running(second, "--replicaof", "127.0.0.1", str(primary.port)) as replica:
            until(lambda: "master_link_status:up" in replica.command("info", "replication"), 60, "a replica")
            port, configuration = free_port(), folder / "sentinel.conf"
            configuration.write_text(
                f"port {port}\nbind 127.0.0.1\nsentinel monitor state 127.0.0.1 {primary.port} 1\n"
                "sentinel down-after-milliseconds state 2000\nsentinel failover-timeout state 10000\n"
            )
            words = ["redis-sentinel", str(configuration)]
            sentinel = Program("sentinel", words, {"PATH": os.environ["PATH"]}, folder / "sentinel.log")
            sentinel.start()
            try:
                time.sleep(3)
                yield Broken(name, f"redis+sentinel://127.0.0.1:{port}/state/0").once(primary.program.kill)
            finally:
                sentinel.stop()


@contextmanager
def moving(name: str, folder: Path, seconds: float) -> Iterator[Broken]:  # happens once
    """A cluster of three moves all slots of a node to another one."""
    with ExitStack() as stack:
        nodes = []
        for number in range(3):
            home = folder / str(number)
            home.mkdir()
            options = ("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf")
            nodes.append(stack.enter_context(Redis.running(home, *options)))
        addresses = [f"127.0.0.1:{node.port}" for node in nodes]
        create = ["redis-cli", "--cluster", "create", *addresses, "--cluster-yes"]
        subprocess.run(create, check=True, capture_output=True, timeout=60)
        until(lambda: "cluster_state:ok" in nodes[2].command("cluster", "info"), 60, "the cluster")

        def move() -> None:
            ids = [node.command("cluster", "myid").strip() for node in nodes]
            for source, target in ((0, 1), (2, 1)):
                words = ["--cluster-from", ids[source], "--cluster-to", ids[target], "--cluster-slots", "5461"]
                command = ["redis-cli", "--cluster", "reshard", addresses[0], *words, "--cluster-yes"]
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                time.sleep(2)

        yield Broken(name, f"redis+cluster://{addresses[0]}/0").once(move)


@contextmanager
def opened(name: str, folder: Path, seconds: float) -> Iterator[Broken]:  # lasts
    """A store that is new and works."""
    with place(name, folder) as store:
        yield Broken(name, store.url)


def open_by_many(url: str, processes: int) -> Outcome:
    """Let processes open a new store at once, take a slot and claim an entry each, and count those that could."""
    began = time.monotonic() + 2.0
    children = [_fork_opener(url, began) for _ in range(processes)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return Outcome(0, 0, codes.count(0), 0, processes - codes.count(0), 0, ())


def _fork_opener(url: str, began: float) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            time.sleep(max(0.0, began - time.monotonic()))
            store = open_place(url)
            claimed = store.update(f"{ACCOUNT}/claims", str(os.getpid()), lambda _, __: (Write("task", 60.0), True))
            code = 0 if claimed and SharedBudget(store, ACCOUNT, LIMIT).snapshot().shared else 1
        finally:
            os._exit(code)
    return child


FAULT_KINDS: dict[str, tuple[Any, Sequence[str]]] = {
    "restart": (restarted, ("redis", "postgresql", "api-server")),
    "two-servers": (two_servers, ("api-server",)),
    "partition": (partitioned, ("redis", "postgresql", "api-server")),
    "distance": (distant, ("redis", "postgresql", "api-server")),
    "sentinel": (failing_over, ("redis",)),
    "cluster": (moving, ("redis",)),
    "flushall": (flushed, ("redis",)),
    "eviction": (evicting, ("redis",)),
    "connections": (exhausted, ("redis", "postgresql")),
    "disk-full": (full, ("file", "redis", "postgresql")),
    "openers": (opened, ("file", "redis", "postgresql")),
    # Redis doesn't start with libfaketime, which clashes with its memory allocator.
    "clock": (jumping, ("postgresql",)),
    "clock-back": (partial(jumping, by="-1h"), ("postgresql",)),
}
CASES = {f"{kind}-{name}": (kind, name) for kind, (_, names) in FAULT_KINDS.items() for name in names}


class Plan:
    """Carries out steps when they are due; called again and again."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._began = time.monotonic()
        self._left = sorted(steps, key=lambda step: step[0])

    def __call__(self) -> None:
        """Carry out what is due."""
        while self._left and time.monotonic() - self._began >= self._left[0][0]:
            self._left.pop(0)[1]()

    def finish(self) -> None:
        """Carry out all the rest at once, so that what was broken is mended."""
        for _, act in self._left:
            act()


@dataclass(frozen=True)
class Outcome:
    """What became of tasks.

    :param requests: to TechFlow
    :param rejected: of them
    :param executions: that were started
    :param twice: executions beyond one a task
    :param lost: tasks without an execution of their own that don't say so
    :param ambiguous: tasks that say that it can't be determined
    """

    requests: int
    rejected: int
    executions: int
    twice: int
    lost: int
    ambiguous: int
    reasons: tuple[str, ...]


def run(broken: Broken, tasks: int, seed: int, folder: Path) -> Outcome:
    """Run tasks while the store breaks."""
    chance = random.Random(seed)
    trials = [Trial(f"task-{number}", f"shared-{number % SHARED_WORKFLOWS}", None) for number in range(tasks)]
    options = ("--execution-seconds", str(EXECUTION_SECONDS), "--limit", str(LIMIT), "--algorithm", "sliding_log")
    workflows = sorted({trial.workflow_id for trial in trials})
    with sandbox(workflows, seed, 0.5, *options) as base_url:
        control = base_url.removesuffix("/v2") + "/_sandbox"
        for fault in WORLD_FAULTS:
            httpx.post(f"{control}/faults", json=fault).raise_for_status()
        world = World(base_url, folder, broken.url, LIMIT, WAIT_SECONDS)
        plan = Plan(broken.steps)
        try:
            run_all(trials, world, chance, time.monotonic() + LONGEST_SECONDS, plan, final=(0, AMBIGUOUS))
        finally:
            plan.finish()
        state = httpx.get(f"{control}/state", timeout=60).json()
        requests = httpx.get(f"{control}/requests", timeout=60).json()["requests"]
    reasons = tuple(path.read_text() for path in folder.glob("*.ambiguous"))
    _, twice, lost = report(trials, state["executions"], folder)
    rejected = sum(request["status"] == 429 for request in requests)
    silent = max(0, lost - len(reasons))
    return Outcome(len(requests), rejected, len(state["executions"]), twice, silent, len(reasons), reasons)


def main() -> int:
    """Break the stores, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--tasks", type=int, default=60)
    parser.add_argument("--away", type=float, default=60.0, help="how long a fault lasts, in seconds")
    parser.add_argument("--openers", type=int, default=300, help="processes that open a store at once")
    parser.add_argument("--seed", type=int, default=1)
    add_option(parser)
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    # Everything that runs is ended then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    line(WIDTHS, *HEADS)
    met = True
    for case in asked.only:
        kind, name = CASES[case]
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder, FAULT_KINDS[kind][0](name, Path(folder), asked.away) as broken:
            results = Path(folder) / "results"
            results.mkdir()
            openers = asked.openers if kind == "openers" else 0
            done = open_by_many(broken.url, openers) if openers else run(broken, asked.tasks, asked.seed, results)
        figures = (
            done.requests,
            done.rejected,
            openers or asked.tasks,
            done.executions,
            done.twice,
            done.lost,
            done.ambiguous,
        )
        line(WIDTHS, kind, name, *figures, f"{time.monotonic() - began:.0f}")
        for reason in sorted(set(done.reasons))[:2]:
            sys.stdout.write(f"    {reason[:300]}\n")
        met = met and not (done.rejected or done.twice or done.lost)
        n, what = f"{asked.tasks} tasks", f"{kind} of {name}"
        hand_over(
            asked.rows,
            Row(f"executions beyond one a task, {what}", done.twice, "", n, limit=0, bound="="),
            Row(f"tasks without an execution, {what}", done.lost, "", n, limit=0, bound="="),
            Row(f"429s, {what}", done.rejected, "", n, limit=0, bound="="),
        )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
