"""What do attacks on the state's API of real API servers get, and how do the servers respond to others meanwhile?

Starts two API servers over one PostgreSQL. Each attack is tried once; then forged requests arrive as fast as the
servers respond, while one caller uses the state and another asks for Airflow's version.

    python tests/benchmarks/state_attacks.py [--requests 10000]
"""

from __future__ import annotations

import argparse
import json
import secrets
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx

from techflow_provider.client import Settings
from techflow_provider.state.http import HttpStore
from techflow_provider.state.signing import Signer, derive_key
from techflow_provider.state.store import Write

if TYPE_CHECKING:
    from tests.benchmarks.places import BASE_URL, CONN_ID, KEY, place
    from tests.benchmarks.rows import line, percentile
else:
    from places import BASE_URL, CONN_ID, KEY, place
    from rows import line, percentile

WIDTHS = (44, 60)
ACCOUNT = Settings(KEY, BASE_URL).account
SIGNER = Signer(CONN_ID, derive_key(KEY, ACCOUNT))
OTHER = Signer(CONN_ID, derive_key("another-key-of-somebody", ACCOUNT))
CALLERS = 8
TIMEOUT_SECONDS = 300.0
MEGABYTE = b"x" * 2**20
OK = 200


def body_of(namespace: str) -> bytes:
    """Return a request for an entry."""
    return json.dumps({"operations": [{"namespace": namespace, "name": "a"}]}).encode()


def post(port: int, body: bytes, headers: dict[str, str]) -> int:
    url = f"http://127.0.0.1:{port}/techflow/state/"
    return httpx.post(url, content=body, headers=headers, timeout=TIMEOUT_SECONDS).status_code


def raw(port: int, head: str, pieces: Iterator[bytes], signer: Signer | None = None) -> int | None:
    """Send a body by hand as long as the server listens, and return the status if one came."""
    headers = {} if signer is None else signer.headers(b"", time.time(), secrets.token_hex(16))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as connection:
        connection.sendall(f"POST /techflow/state/ HTTP/1.1\r\nhost: x\r\n{lines}{head}\r\n\r\n".encode())
        with suppress(OSError):
            for piece in pieces:
                connection.sendall(piece)
        with suppress(OSError):
            response = connection.recv(4096)
            return int(response.split()[1]) if response else None
    return None


def attacks(ports: list[int]) -> dict[str, int | None]:
    """Try everything once, and return the statuses."""
    port, own, foreign = ports[0], body_of(f"{ACCOUNT}/claims"), body_of("0" * 32)
    now, headers = time.time(), SIGNER.headers(own, time.time(), secrets.token_hex(16))
    large = f"content-length: {100 * 2**20}"
    return {
        "no signature": post(port, own, {}),
        "another key": post(port, own, OTHER.headers(own, now, secrets.token_hex(16))),
        "too old": post(port, own, SIGNER.headers(own, now - 120, secrets.token_hex(16))),
        "another body": post(port, foreign, headers),
        "genuine": post(port, own, headers := SIGNER.headers(own, time.time(), secrets.token_hex(16))),
        "its replay": post(port, own, headers),
        "its replay at another server (reads only)": post(ports[1], own, headers),
        "another account's names": post(port, foreign, SIGNER.headers(foreign, time.time(), secrets.token_hex(16))),
        "100 MB without a signature": raw(port, large, iter([MEGABYTE] * 100)),
        "100 MB, signed": raw(port, large, iter([MEGABYTE] * 100), SIGNER),
        "a body that never ends, signed": raw(port, "content-length: 1000", iter([b"x"]), SIGNER),
    }


def flood(port: int, requests: int) -> Counter[int]:
    """Send forged requests as fast as responses come, and return the statuses."""
    statuses: Counter[int] = Counter()
    body = body_of(f"{ACCOUNT}/claims")

    def call() -> None:
        with httpx.Client(timeout=TIMEOUT_SECONDS) as client:
            for _ in range(requests // CALLERS):
                headers = OTHER.headers(body, time.time(), secrets.token_hex(16))
                url = f"http://127.0.0.1:{port}/techflow/state/"
                statuses[client.post(url, content=body, headers=headers).status_code] += 1

    threads = [threading.Thread(target=call) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def beside(port: int, requests: int) -> tuple[Counter[int], list[float], list[float]]:
    """Flood a server, and return the statuses and how many milliseconds others waited for it meanwhile."""
    store = HttpStore(f"http://127.0.0.1:{port}/techflow/state", SIGNER, lambda: SIGNER)
    over, waits, others = threading.Event(), list[float](), list[float]()

    def use() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_SECONDS) as client:
            while not over.wait(0.1):
                began = time.monotonic()
                store.update(f"{ACCOUNT}/claims", secrets.token_hex(8), lambda *_: (Write("1", 60.0), None))
                waits.append((time.monotonic() - began) * 1000)
                began = time.monotonic()
                client.get("/api/v2/version").raise_for_status()
                others.append((time.monotonic() - began) * 1000)

    caller = threading.Thread(target=use)
    caller.start()
    statuses = flood(port, requests)
    over.set()
    caller.join()
    return statuses, waits, others


def main() -> int:
    """Print what each attack got, and fail where one got in or a secret shows in a log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="state-attacks-") as folder,
        place("api-server", Path(folder), servers=2) as at,
    ):
        results = attacks(at.ports)
        for name, status in results.items():
            line(WIDTHS, name, status)
        began = time.monotonic()
        statuses, waits, others = beside(at.ports[0], asked.requests)
        line(WIDTHS, f"{asked.requests} forged requests", f"{dict(statuses)} in {time.monotonic() - began:.0f} s")
        for name, times in (("a claim", waits), ("Airflow's version", others)):
            figures = f"median {statistics.median(times):.0f} ms, p99 {percentile(times, 99):.0f} ms, n={len(times)}"
            line(WIDTHS, f"meanwhile, {name}", figures)
        logs = "".join(path.read_text(errors="replace") for path in Path(folder).glob("*.log"))
        shown = [secret for secret in (KEY, SIGNER.key.hex(), OTHER.key.hex()) if secret in logs]
        line(WIDTHS, "secrets in the servers' logs", len(shown))
    allowed = {name for name, status in results.items() if status == OK}
    is_safe = (
        allowed == {"genuine", "its replay at another server (reads only)"} and set(statuses) == {401} and not shown
    )
    return 0 if is_safe else 1


if __name__ == "__main__":
    sys.exit(main())
