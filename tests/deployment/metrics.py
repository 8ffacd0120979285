"""Servers that receive Airflow's metrics: by StatsD, with how long workers waited, and by OpenTelemetry."""

from __future__ import annotations

import gzip
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = re.compile(rb"techflow\.[a-z_.]+")
TIMING = re.compile(rb"techflow\.budget\.wait:([0-9.]+)\|ms")


class Metrics:
    """Listens on a free port of the loopback; `waits` are seconds, one for each wait for a slot; `names` are ours."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.names: set[str] = set()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What lets an Airflow with the package `statsd` send its metrics here."""
        port = str(self._socket.getsockname()[1])
        names = {"STATSD_ON": "True", "STATSD_HOST": "127.0.0.1", "STATSD_PORT": port}
        return {f"AIRFLOW__METRICS__{name}": value for name, value in names.items()}

    def _listen(self) -> None:
        while True:
            received = self._socket.recv(65536)
            self.waits += [float(found) / 1000 for found in TIMING.findall(received)]
            self.names |= {found.decode() for found in NAME.findall(received)}


class Collector:
    """Listens on a free port of the loopback for OpenTelemetry over HTTP; `names` are the metrics of this package."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        names = self.names

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the library's name
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                names.update(found.decode() for found in NAME.findall(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What lets an Airflow send its metrics here."""
        port = str(self._server.server_address[1])
        names = {"OTEL_ON": "True", "OTEL_HOST": "127.0.0.1", "OTEL_PORT": port, "OTEL_INTERVAL_MILLISECONDS": "1000"}
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
        return {**{f"AIRFLOW__METRICS__{name}": value for name, value in names.items()}, **endpoint}
