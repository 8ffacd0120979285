"""How much real rate limiters let pass of what callers of one key send, and how many 429s they respond with.

Starts each limiter in front of a server, and lets 8 processes and one event loop with 100 coroutines list workflows as
often as they may for a minute and three more. Then the loop sends 20 requests at once after 12 idle seconds, twice.
Prints for each limiter: accepted requests and 429s in each minute and in the bursts, and the fewest and most accepted
requests of a process. `--client retry` sends without a budget and heeds Retry-After; `--client pyrate` waits for
pyrate-limiter's SQLite bucket. For another version of the package, set PYTHONPATH to it. All limiters run at once.
`--limits 60@3 100@8` changes the limit of nginx and Flask-Limiter in those minutes. With `--apart`, each process keeps
a state of its own, as on hosts that share nothing, and there is no loop.

    apt-get install nginx haproxy; npm install express express-rate-limit rate-limiter-flexible
    pip install flask-limiter slowapi uvicorn waitress pyrate-limiter filelock
    python tests/benchmarks/limiters.py [--only NAME …] [--modules node_modules] [--server-python PYTHON]
        [--client techflow|retry|pyrate] [--minutes 4] [--others 50] [--limits 60@3 100@8] [--processes 300 --apart]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from tests.benchmarks.load import Gate, Run, in_processes
else:
    from load import Gate, Run, in_processes

HERE = Path(__file__).parent
COROUTINES, BURST, IDLE_SECONDS, BURSTS = 100, 20, 12.0, 2
LIMIT = 100
# Until the bursts are over; before them, the slots that somebody held may have to pass.
TAIL_SECONDS = 150.0
KEY = "some-key"
HEADERS = {"authorization": f"Bearer {KEY}"}

# A response: when it came, since the beginning, and its status code.
Sample = tuple[float, int]

NGINX = """daemon off; worker_processes 1; pid nginx.pid; error_log stderr crit; events {{ }}
http {{ access_log off; limit_req_status 429; client_body_temp_path body; proxy_temp_path proxy;
  fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  limit_req_zone $http_authorization zone=key:1m rate={limit}r/m;
  server {{ listen 127.0.0.1:{port}; location / {{
    limit_req zone=key {options}; proxy_pass http://127.0.0.1:{backend}; }} }} }}
"""
HAPROXY = """global
  maxconn 1000
defaults
  mode http
  timeout connect 5s
  timeout client 120s
  timeout server 120s
frontend limited
  bind 127.0.0.1:{port}
  stick-table type string len 64 size 10k expire 5m store http_req_rate(60s)
  http-request track-sc0 hdr(authorization)
  http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt 100 }}
  default_backend server
backend server
  server one 127.0.0.1:{backend}
"""
LIMITERS = {
    "nginx": "",
    "nginx burst=3 nodelay": "burst=3 nodelay",
    "nginx burst=5 nodelay": "burst=5 nodelay",
    "nginx burst=20": "burst=20",
    "haproxy": "haproxy",
    "bucket of 2 per 1.2 s": "bucket-2-1.2",
    "bucket of 5 per 3 s": "bucket-5-3",
    "flask-limiter fixed": "flask-fixed-window",
    "flask-limiter moving": "flask-moving-window",
    "flask-limiter sliding": "flask-sliding-window-counter",
    "slowapi": "slowapi",
    "express-rate-limit": "express",
    "rate-limiter-flexible": "flexible-100-60",
    "rate-limiter-flexible 5/3": "flexible-5-3",
}


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: list[str], folder: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the context ends."""
    process = subprocess.Popen(command, cwd=folder)
    try:
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended with {process.returncode}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                break
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def limiter(name: str, options: argparse.Namespace) -> Iterator[tuple[str, Callable[[int], None]]]:
    """Run a limiter in front of a server, and yield its URL and what changes its limit."""
    kind, port, backend = LIMITERS[name], free_port(), free_port()
    script = str(HERE / "limiter_server.py")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        conf = Path(folder, "conf")

        def configure(limit: int) -> None:
            text = HAPROXY if kind == "haproxy" else NGINX if name.startswith("nginx") else "{limit}"
            conf.write_text(text.format(port=port, backend=backend, options=kind, limit=limit), encoding="utf-8")

        def change(limit: int) -> None:
            if not name.startswith(("nginx", "flask")):
                raise ValueError(f"the limit of {name} can't be changed while it runs")
            configure(limit)
            if name.startswith("nginx"):
                server.send_signal(signal.SIGHUP)

        configure(LIMIT)
        if name.startswith("nginx") or kind == "haproxy":
            stack.enter_context(running([sys.executable, script, "backend", str(backend)], folder, backend))
            command = (
                ["haproxy", "-f", "conf"] if kind == "haproxy" else ["nginx", "-p", folder, "-c", f"{folder}/conf"]
            )
        elif kind.startswith(("express", "flexible")):
            command = ["node", str(HERE / "limiter_server.mjs"), options.modules, kind, str(port)]
        else:
            command = [options.server_python, script, kind, str(port)]
        server = stack.enter_context(running(command, folder, port))
        yield f"http://127.0.0.1:{port}", change


class Recording(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Records every response."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples, self.began = samples, time.monotonic()
        self.plain, self.asynchronous = httpx.HTTPTransport(), httpx.AsyncHTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        response = self.plain.handle_request(request)
        self.samples.append((time.monotonic() - self.began, response.status_code))
        return response

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        response = await self.asynchronous.handle_async_request(request)
        self.samples.append((time.monotonic() - self.began, response.status_code))
        return response


class Stop(BaseException):
    """The time to send is over."""


def techflow_budget(run: Run) -> Any:
    """Return the package's budget for the key; version 0.1.0 has the store's function in another module."""
    from techflow_provider.state.budget import SharedBudget

    name = "open" if find_spec("techflow_provider.state.open") else "store"
    store = import_module(f"techflow_provider.state.{name}").open_store(run.place)
    return SharedBudget(store, "benchmark", fallback=None)


def one_process(run: Run, gate: Gate, url: str, saturated: float) -> Any:
    """List workflows again and again in one thread."""
    samples: list[Sample] = []
    transport = Recording(samples)
    send = SENDERS[run.limiter](run, url, transport)
    transport.began = gate()
    until = transport.began + saturated

    def sleep(seconds: float) -> None:
        if (left := until - time.monotonic()) < seconds:
            time.sleep(max(0.0, left))
            raise Stop
        time.sleep(seconds)

    with contextlib.suppress(Stop):
        while time.monotonic() < until:
            send(sleep)
    return samples


def techflow_sender(run: Run, url: str, transport: Recording) -> Callable[[Callable[[float], None]], None]:
    """Send with the package's client."""
    from techflow_provider.client import Client

    budget = techflow_budget(run)
    budget.snapshot()
    clients: list[Client] = []

    def send(sleep: Callable[[float], None]) -> None:
        if not clients:
            clients.append(Client(KEY, base_url=url, budget=budget, transport=transport, sleep=sleep))
        clients[0].workflows.list()

    return send


def retry_sender(_: Run, url: str, transport: Recording) -> Callable[[Callable[[float], None]], None]:
    """Send at once, and after a 429 again when Retry-After says, or after a second."""
    client = httpx.Client(transport=transport, headers=HEADERS)

    def send(sleep: Callable[[float], None]) -> None:
        while (response := client.get(f"{url}/workflows")).status_code == httpx.codes.TOO_MANY_REQUESTS:
            sleep(float(response.headers.get("retry-after", 1)))

    return send


def pyrate_sender(run: Run, url: str, transport: Recording) -> Callable[[Callable[[float], None]], None]:
    """Wait for pyrate-limiter's bucket, which processes share through SQLite, and then send as `retry_sender` does."""
    pyrate, factory = import_module("pyrate_limiter"), import_module("pyrate_limiter.limiter_factory")
    bucket = factory.create_sqlite_bucket([pyrate.Rate(100, 60_000)], f"{run.place}.pyrate", use_file_lock=True)
    shared, retry = pyrate.Limiter(bucket), retry_sender(run, url, transport)

    def send(sleep: Callable[[float], None]) -> None:
        shared.try_acquire("key", timeout=60)
        retry(sleep)

    return send


SENDERS = {"techflow": techflow_sender, "retry": retry_sender, "pyrate": pyrate_sender}


def one_loop(run: Run, gate: Gate, url: str, saturated: float) -> Any:
    """List workflows in many coroutines, and then in two bursts."""
    samples: list[Sample] = []
    transport = Recording(samples)
    if run.limiter != "techflow":
        return one_loop_of_threads(run, gate, url, saturated)
    from techflow_provider.client import AsyncClient

    budget = techflow_budget(run)
    budget.snapshot()
    transport.began = gate()

    async def caller(client: AsyncClient) -> None:
        while True:
            await client.workflows.list()

    async def all_of_them() -> None:
        async with AsyncClient(KEY, base_url=url, budget=budget, transport=transport) as client:
            calls = [asyncio.ensure_future(caller(client)) for _ in range(COROUTINES)]
            await asyncio.sleep(saturated)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            await asyncio.sleep(2.0)
            # Versions that don't give slots back have to let them pass.
            while (await asyncio.to_thread(budget.snapshot)).waiting:  # noqa: ASYNC110 - another process's slots
                await asyncio.sleep(1.0)
            for _ in range(BURSTS):
                await asyncio.sleep(IDLE_SECONDS)
                await asyncio.gather(*(client.workflows.list() for _ in range(BURST)))

    asyncio.run(all_of_them())
    return samples


def one_loop_of_threads(run: Run, gate: Gate, url: str, saturated: float) -> list[Sample]:
    """Do what `one_loop` does with a client that isn't asynchronous, in as many threads."""
    began = gate()
    with ThreadPoolExecutor(COROUTINES) as threads:
        parts = list(threads.map(lambda _: one_process(run, lambda: began, url, saturated), range(COROUTINES)))
        for _ in range(BURSTS):
            time.sleep(IDLE_SECONDS)

            def one(_: int) -> list[Sample]:
                samples: list[Sample] = []
                transport = Recording(samples)
                transport.began = began
                SENDERS[run.limiter](run, url, transport)(time.sleep)
                return samples

            parts += threads.map(one, range(BURST))
    return [sample for part in parts for sample in part]


def somebody_else(run: Run, gate: Gate, url: str, saturated: float) -> Any:
    """Send a request at equal intervals, whatever the response."""
    samples: list[Sample] = []
    transport = Recording(samples)
    interval = 60 / float(run.limiter)
    with httpx.Client(transport=transport, headers=HEADERS) as client:
        transport.began = gate()
        for number in range(int(saturated / interval)):
            time.sleep(max(0.0, transport.began + number * interval - time.monotonic()))
            client.get(f"{url}/workflows")
    return samples


def measure(name: str, options: argparse.Namespace) -> str:
    """Run the callers of one limiter and return a line of the table."""
    saturated = options.minutes * 60.0
    with tempfile.TemporaryDirectory() as folder, limiter(name, options) as (url, change):
        places = [f"{folder}/{number if options.apart else 'state'}.db" for number in range(options.processes)]
        bound = {"url": url, "saturated": saturated}
        process, loop = functools.partial(one_process, **bound), functools.partial(one_loop, **bound)
        callers: list[Any] = [(process, Run(options.client, each, 60.0, saturated + TAIL_SECONDS)) for each in places]
        if not options.apart:
            callers.append((loop, Run(options.client, places[0], 60.0, saturated + TAIL_SECONDS)))
        if options.others:
            others = Run(str(options.others), "", 60.0, saturated)
            callers.append((functools.partial(somebody_else, **bound), others))
        timers = [threading.Timer(minute * 60.0, change, [limit]) for limit, minute in options.limits]

        def begin(_: float) -> None:
            for timer in timers:
                timer.start()

        results: list[Any] = in_processes(callers, begin)
    theirs = results.pop() if options.others else []
    ours = [sample for samples in results for sample in samples]
    each = [sum(status < 400 for _, status in samples) for samples in results[: options.processes]]
    parts = [name.ljust(27), *minutes(ours, options.minutes), f"processes {min(each)}-{max(each)}"]
    if options.others:
        parts += ["others", *minutes(theirs, options.minutes)]
    line = "  ".join(parts)
    print(line, flush=True)
    return line


def limit_at(text: str) -> tuple[int, float]:
    """Return a limit and the minute from which on it holds, from `60@3`."""
    limit, _, minute = text.partition("@")
    return int(limit), float(minute)


def minutes(samples: list[Sample], count: int) -> list[str]:
    """Return accepted requests and 429s in each minute, and in the bursts after them."""
    rows: list[list[int]] = [[0, 0] for _ in range(count + 1)]
    for at, status in samples:
        row = rows[min(count, int(at // 60))]
        row[0] += status < 400
        row[1] += status == httpx.codes.TOO_MANY_REQUESTS
    return [f"{accepted:3}/{rejected}" for accepted, rejected in rows]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(LIMITERS), help="the limiters to run")
    parser.add_argument("--client", choices=SENDERS, default="techflow")
    parser.add_argument("--minutes", type=int, default=4)
    parser.add_argument("--others", type=float, default=0.0, help="requests a minute of somebody else with the key")
    parser.add_argument("--limits", nargs="*", type=limit_at, default=[], help="other limits, each with its minute")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--apart", action="store_true", help="each process keeps a state of its own")
    parser.add_argument("--modules", default="node_modules", help="the folder of the npm packages")
    parser.add_argument("--server-python", default=sys.executable, help="a Python that has the limiters of PyPI")
    parser.add_argument("--at-once", type=int, default=len(LIMITERS), help="limiters that run at the same time")
    options = parser.parse_args()
    options.modules = str(Path(options.modules).absolute())
    print("accepted/429s in each minute, and in two bursts of 20 after 12 idle seconds", flush=True)
    with ThreadPoolExecutor(options.at_once) as threads:
        list(threads.map(lambda name: measure(name, options), options.only))


if __name__ == "__main__":
    main()
