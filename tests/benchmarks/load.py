"""Callers of a rate limiter in processes and coroutines, and a private Redis server, for the benchmarks.

A caller prepares, passes a gate that opens once all callers are ready and returns the moment when it did, and returns
its report.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from techflow_provider.state.budget import RequestClass, Reservation, SharedBudget
from techflow_provider.state.redis import RedisStore
from techflow_provider.state.sqlite import SqliteStore

LIMIT = 100
BURST = 6
# Time in transit to the server, in real minutes.
TRANSIT_SECONDS = 0.3
FOREVER = 1e9
# No machine is as slow to start the processes, or to end what they began.
READY_SECONDS = 300.0
ENDING_SECONDS = 120.0

Gate = Callable[[], float]


@dataclass(frozen=True)
class Run:
    """The parameters of the callers of one run.

    :param limiter: the name of what limits them, in `LIMITERS`
    :param place: a state_url, or a path or URL as the limiter wants it
    :param minute: seconds of a minute in this run
    :param seconds: length of the run
    """

    limiter: str
    place: str
    minute: float
    seconds: float


# Takes the seconds left of the run, and returns how many to wait before it is called again; 0: send now.
NextWait = Callable[[float], float]
Caller = Callable[[Run, Gate], list[float]]


def techflow(run: Run) -> SharedBudget:
    """Return this package's budget, on a clock by which a minute of the run lasts 60 s."""

    def clock() -> float:
        return time.monotonic() * 60.0 / run.minute

    scheme, _, path = run.place.partition(":///")
    is_file = scheme == "sqlite"
    store = SqliteStore(Path(path), clock=clock) if is_file else RedisStore(run.place, clock)
    return SharedBudget(store, "benchmark", LIMIT, BURST, clock=clock)


def techflow_limiter(run: Run, request_class: RequestClass = RequestClass.COMMAND) -> NextWait:
    """Limit by this package's budget."""
    budget = techflow(run)
    # Loads what the store needs.
    budget.snapshot()
    earlier: Reservation | None = None

    def next_wait(_: float) -> float:
        nonlocal earlier
        reservation = budget.reserve(request_class, FOREVER, earlier)
        earlier = None if reservation.may_send else reservation
        return reservation.wait_seconds * run.minute / 60.0

    return next_wait


def pyrate_limiter(bucket: Any) -> NextWait:
    """Limit by a pyrate-limiter, which waits by itself."""
    limiter = import_module("pyrate_limiter").Limiter(bucket)
    return lambda left: 0.0 if limiter.try_acquire("key", timeout=max(0.01, left)) else FOREVER


def pyrate_sqlite_limiter(run: Run) -> NextWait:
    """pyrate-limiter's SQLite bucket with its lock among processes: a sliding log."""
    rate = import_module("pyrate_limiter").Rate(LIMIT, round(run.minute * 1000))
    factory = import_module("pyrate_limiter.limiter_factory")
    return pyrate_limiter(factory.create_sqlite_bucket([rate], run.place, use_file_lock=True))


def pyrate_redis_limiter(run: Run) -> NextWait:
    """pyrate-limiter's GCRA on Redis, with the burst and rate that this package uses."""
    rate = import_module("pyrate_limiter").Rate(LIMIT - BURST, round(run.minute * 1025), burst=BURST)
    algorithm = import_module("pyrate_limiter.abstracts.algorithm").GCRA()
    client = import_module("redis").Redis.from_url(run.place)
    store = import_module("pyrate_limiter.buckets.redis_state").RedisStateStore(client, "pyrate")
    return pyrate_limiter(import_module("pyrate_limiter.buckets.state_bucket").StateBucket([rate], algorithm, store))


def limits_redis_limiter(run: Run) -> NextWait:
    """The moving window of limits on Redis; it can't wait, so its callers sleep until there is room."""
    storage = import_module("limits.storage").RedisStorage(run.place.replace("unix://", "redis+unix://"))
    limiter = import_module("limits.strategies").MovingWindowRateLimiter(storage)
    item = import_module("limits").RateLimitItemPerSecond(LIMIT, max(1, round(run.minute)))

    def next_wait(_: float) -> float:
        if limiter.hit(item, "key"):
            return 0.0
        return max(0.005, float(limiter.get_window_stats(item, "key").reset_time) - time.time())

    return next_wait


LIMITERS: dict[str, Callable[[Run], NextWait]] = {
    "techflow": techflow_limiter,
    "techflow polls": lambda run: techflow_limiter(run, RequestClass.POLL),
    "pyrate-limiter sqlite": pyrate_sqlite_limiter,
    "pyrate-limiter redis": pyrate_redis_limiter,
    "limits redis": limits_redis_limiter,
}


def saturate(run: Run, gate: Gate) -> list[float]:
    """Send as often as the limiter lets, and report the arrivals in seconds since the beginning."""
    next_wait, arrivals = LIMITERS[run.limiter](run), []
    began = gate()
    while (left := began + run.seconds - time.monotonic()) > 0:
        wait = next_wait(left)
        if wait > 0:
            time.sleep(min(wait, max(0.0, began + run.seconds - time.monotonic()) + 0.01))
            continue
        transit = random.uniform(0, TRANSIT_SECONDS * run.minute / 60)
        arrivals.append(time.monotonic() - began + transit)
        time.sleep(transit)
    return arrivals


def now_and_then(run: Run, gate: Gate) -> list[float]:
    """Send a command now and then, and report how long each waited."""
    next_wait, waits = LIMITERS[run.limiter](run), []
    until = gate() + run.seconds
    while time.monotonic() < until:
        time.sleep(random.uniform(0.02, 0.06) * run.minute)
        asked = time.monotonic()
        while (wait := next_wait(FOREVER)) > 0:
            time.sleep(wait)
        waits.append(time.monotonic() - asked)
    return waits


def loop_of_coroutines(run: Run, gate: Gate, coroutines: int = 200) -> list[float]:
    """Let coroutines of one loop send as often as the budget lets; the store is asked in one thread."""
    budget, arrivals = techflow(run), []
    budget.snapshot()
    thread = ThreadPoolExecutor(1)
    began = gate()
    until = began + run.seconds

    async def caller() -> None:
        earlier = None
        while time.monotonic() < until:
            reservation = await asyncio.get_running_loop().run_in_executor(
                thread, budget.reserve, RequestClass.COMMAND, FOREVER, earlier
            )
            if not reservation.may_send:
                earlier = reservation
                wait = reservation.wait_seconds * run.minute / 60.0
                await asyncio.sleep(min(wait, max(0.0, until - time.monotonic()) + 0.01))
                continue
            earlier, transit = None, random.uniform(0, TRANSIT_SECONDS * run.minute / 60)
            arrivals.append(time.monotonic() - began + transit)
            await asyncio.sleep(transit)

    async def all_of_them() -> None:
        await asyncio.gather(*(caller() for _ in range(coroutines)))

    asyncio.run(all_of_them())
    return arrivals


def in_processes(
    callers: Sequence[tuple[Caller, Run]], begin: Callable[[float], object] | None = None
) -> list[list[float]]:
    """Run each caller in a process of its own and return what they report, in the order of the callers.

    :param begin: is called with the moment when all are ready and begin
    """
    context = multiprocessing.get_context("spawn")
    gate, queues = context.Barrier(len(callers) + 1), [context.Queue() for _ in callers]
    processes = [
        context.Process(target=_call, args=(caller, run, gate, queue))
        for (caller, run), queue in zip(callers, queues, strict=True)
    ]
    for process in processes:
        process.start()
    try:
        gate.wait(READY_SECONDS)
        if begin is not None:
            begin(time.monotonic())
        longest = max(run.seconds for _, run in callers) + ENDING_SECONDS
        return [queue.get(timeout=longest) for queue in queues]
    finally:
        for process in processes:
            process.join(5)
            process.kill()


def _call(caller: Caller, run: Run, gate: Any, results: Any) -> None:
    def through() -> float:
        gate.wait(READY_SECONDS)
        return time.monotonic()

    results.put(caller(run, through))


@contextlib.contextmanager
def redis_server() -> Iterator[str | None]:
    """Run a Redis server on a private socket and yield its URL, or None where there is no redis-server."""
    if shutil.which("redis-server") is None:
        sys.stdout.write("redis-server is missing (apt-get install redis-server): the lines for Redis are left out\n")
        yield None
        return
    folder = tempfile.mkdtemp()
    command = ["redis-server", "--port", "0", "--unixsocket", "redis.sock", "--save", ""]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    while not Path(folder, "redis.sock").exists():
        time.sleep(0.01)
    try:
        yield f"unix://{folder}/redis.sock"
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)
