"""The threads that send a sandbox's webhooks while it is served."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from functools import cached_property

import httpx

from techflow_provider.sandbox.webhooks import WebhookDelivery, Webhooks

SEND_SECONDS = 10.0
SENDERS = 8
GLANCE_SECONDS = 0.02
LONGEST_STOP_SECONDS = 3.0


class Sender:
    """Sends webhooks from threads of its own.

    :param due: returns the deliveries whose time has come
    :param sent: keeps what became of one
    :param now: the sandbox's time
    """

    def __init__(
        self,
        due: Callable[[], Sequence[tuple[Webhooks, WebhookDelivery]]],
        sent: Callable[[WebhookDelivery], None],
        now: Callable[[], datetime],
    ) -> None:
        self._due = due
        self._sent = sent
        self._now = now
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sandbox-webhooks", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Send nothing any more, within a bounded time."""
        self._stopping.set()
        self._thread.join(LONGEST_STOP_SECONDS)

    @cached_property
    def _client(self) -> httpx.Client:
        # No proxy: webhooks of a local TechFlow go to this machine or its neighbours.
        return httpx.Client(timeout=SEND_SECONDS, trust_env=False)

    def _run(self) -> None:
        threads = ThreadPoolExecutor(SENDERS, "sandbox-webhook")
        while not self._stopping.wait(GLANCE_SECONDS):
            for webhooks, delivery in self._due():
                threads.submit(self._send, self._client, webhooks, delivery)
        threads.shutdown(wait=False, cancel_futures=True)
        if "_client" in vars(self):
            self._client.close()

    def _send(self, client: httpx.Client, webhooks: Webhooks, delivery: WebhookDelivery) -> None:
        sent = replace(delivery, sent_at=self._now())
        forged = delivery.fate == "forged"
        # The receiver compares it with the real time, whatever time the sandbox lives in.
        request = webhooks.request(delivery.id, time.time(), delivery.body(), forged=forged)
        try:
            status = client.send(request).status_code
        except (httpx.HTTPError, RuntimeError) as error:
            self._sent(replace(sent, error=type(error).__name__))
        else:
            self._sent(replace(sent, status=status))
