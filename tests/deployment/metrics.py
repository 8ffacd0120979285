"""A StatsD server that keeps how long workers waited for the rate budget."""

from __future__ import annotations

import re
import socket
import threading

TIMING = re.compile(rb"techflow\.budget\.wait:([0-9.]+)\|ms")


class Metrics:
    """Listens on a free port of the loopback; `waits` are seconds, one for each wait for a slot."""

    def __init__(self) -> None:
        self.waits: list[float] = []
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
            self.waits += [float(found) / 1000 for found in TIMING.findall(self._socket.recv(65536))]
