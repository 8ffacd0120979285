"""Webhooks that the sandbox sends. The names of the six events are documented; everything else is assumed.

What goes wrong with them is data, like the faults.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import heapq
import hmac
import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Literal, get_args
from urllib.parse import quote, urlsplit

import httpx

from techflow_provider.sandbox.messages import Json, Object
from techflow_provider.sandbox.settings import (
    SettingError,
    check_choice,
    check_probability,
    check_seconds,
    from_json,
)
from techflow_provider.sandbox.state import Event

EventName = Literal[
    "workflow.created",
    "workflow.updated",
    "workflow.deleted",
    "execution.started",
    "execution.completed",
    "execution.failed",
]
Proof = Literal["signature", "token"]
DeliveryKind = Literal["genuine", "duplicate", "forged", "lost"]

KEY_PREFIX = "whsec_"
MAX_DELIVERIES = 100_000
SEND_TIMEOUT_SECONDS = 10.0
SENDER_THREADS = 8
POLL_SECONDS = 0.02
STOP_TIMEOUT_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Webhooks:
    """Where webhooks are sent, as configured in the vendor's dashboard, and what goes wrong with them.

    :param url: the URL to POST to
    :param secret: the secret of the proof; None sends them without proof
    :param proof: `signature` is a Standard Webhooks signature, `token` adds the secret to the URL as parameter `token`
    :param events: the events that are sent
    :param delay_seconds: how long after the event each is sent
    :param jitter_seconds: maximum random extra delay, so that the order changes
    :param loss: the probability that one is not sent
    :param duplicates: the probability that one is sent twice
    :param forged: the probability that one with a wrong proof is sent as well
    :raises SettingError: a value is invalid
    """

    url: str = field(repr=False)
    _: KW_ONLY
    secret: str | None = field(default=None, repr=False)
    proof: Proof = "signature"
    events: Sequence[str] = get_args(EventName)
    delay_seconds: float = 0.0
    jitter_seconds: float = 0.0
    loss: float = 0.0
    duplicates: float = 0.0
    forged: float = 0.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url) if isinstance(self.url, str) else None
        if parts is None or parts.scheme not in ("http", "https") or not parts.netloc:
            raise SettingError("url", self.url, "an http or https URL")
        if self.secret is not None and (not isinstance(self.secret, str) or not self.secret):
            raise SettingError("secret", type(self.secret).__name__, "a non-empty string")
        self._check_key()
        check_choice("proof", self.proof, get_args(Proof))
        for event in self.events:
            check_choice("events", event, get_args(EventName))
        for name in ("delay_seconds", "jitter_seconds"):
            check_seconds(name, getattr(self, name))
        for name in ("loss", "duplicates", "forged"):
            check_probability(name, getattr(self, name))

    def _check_key(self) -> None:
        try:
            _key(self.secret or "")
        except binascii.Error as error:
            raise SettingError("secret", f"{KEY_PREFIX}…", f"base64 after {KEY_PREFIX}") from error

    @classmethod
    def read(cls, value: Mapping[str, Json]) -> Webhooks:
        """Read webhooks from JSON.

        :raises SettingError: it has an unknown field, or a value is invalid
        """
        return from_json(cls, "webhooks", {"url": None, **value})

    def request(self, delivery_id: str, at: float, body: bytes, *, forged: bool = False) -> httpx.Request:
        """Return the request for a body.

        :param at: seconds since 1970
        :param forged: whether its proof should be wrong
        """
        headers = {"content-type": "application/json", "webhook-id": delivery_id}
        secret = f"not-{self.secret}"[::-1] if forged else self.secret
        if secret is None:
            return httpx.Request("POST", self.url, headers=headers, content=body)
        if self.proof == "token":
            separator = "&" if urlsplit(self.url).query else "?"
            url = f"{self.url}{separator}token={quote(secret, safe='')}"
            return httpx.Request("POST", url, headers=headers, content=body)
        headers["webhook-timestamp"] = str(int(at))
        headers["webhook-signature"] = _signature(secret, delivery_id, int(at), body)
        return httpx.Request("POST", self.url, headers=headers, content=body)


def _key(secret: str) -> bytes:
    if not secret.startswith(KEY_PREFIX):
        return secret.encode()
    return base64.b64decode(secret.removeprefix(KEY_PREFIX), validate=True)


def _signature(secret: str, delivery_id: str, at: int, body: bytes) -> str:
    digest = hmac.new(_key(secret), f"{delivery_id}.{at}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


@dataclass(frozen=True, slots=True)
class WebhookDelivery:
    """A webhook that was sent or lost.

    :param id: its id; a duplicate has the same
    :param event: the event's name
    :param workflow_id: the workflow's id
    :param execution_id: the execution's id, for an event of an execution
    :param kind: `genuine`, `duplicate`, `forged`, or `lost`, which is never sent
    :param happened_at: when the event happened
    :param sent_at: when it was sent
    :param status: the status code of the response; None while there is none, or if none was received
    :param error: why no response was received
    """

    id: str
    event: str
    workflow_id: str
    execution_id: str | None
    kind: DeliveryKind
    happened_at: datetime
    sent_at: datetime | None = None
    status: int | None = None
    error: str | None = None

    def body(self) -> bytes:
        """Return its JSON body; all of it is assumed except the event's name."""
        data: Object = {"workflow_id": self.workflow_id}
        if self.execution_id is not None:
            data["execution_id"] = self.execution_id
        happened_at = self.happened_at.isoformat()
        return json.dumps({"id": self.id, "event": self.event, "created_at": happened_at, "data": data}).encode()


def deliveries_of(webhooks: Webhooks, source: random.Random) -> list[tuple[DeliveryKind, float]]:
    """Choose the deliveries of one event, and how many seconds after the event each is sent."""

    def delay() -> float:
        return webhooks.delay_seconds + source.random() * webhooks.jitter_seconds

    if source.random() < webhooks.loss:
        return [("lost", 0.0)]
    sent: list[tuple[DeliveryKind, float]] = [("genuine", delay())]
    if source.random() < webhooks.duplicates:
        sent.append(("duplicate", delay()))
    if source.random() < webhooks.forged:
        sent.append(("forged", delay()))
    return sent


class WebhookQueue:
    """The webhooks that wait to be sent, and the results of those that were. Not thread-safe by itself.

    :param seed: makes ids and probabilities reproducible
    """

    def __init__(self, seed: int | None) -> None:
        self._random = random.Random(seed)  # noqa: S311  # not for secrets
        self._waiting: list[tuple[float, int, Webhooks, WebhookDelivery]] = []
        self._completed: deque[WebhookDelivery] = deque(maxlen=MAX_DELIVERIES)
        self._count = 0

    def add(self, webhooks: Webhooks, event: Event, now: float) -> None:
        """Queue the webhooks of an event.

        :param now: seconds on the sandbox's clock
        """
        if event.name not in webhooks.events:
            return
        delivery_id = f"msg_{self._random.getrandbits(64):016x}"
        for kind, delay in deliveries_of(webhooks, self._random):
            id_ = f"{delivery_id}_forged" if kind == "forged" else delivery_id
            delivery = WebhookDelivery(id_, event.name, event.workflow_id, event.execution_id, kind, event.at)
            if kind == "lost":
                self.complete(delivery)
                continue
            self._count += 1
            heapq.heappush(self._waiting, (now + delay, self._count, webhooks, delivery))

    def due(self, now: float) -> list[tuple[Webhooks, WebhookDelivery]]:
        """Remove and return what has to be sent now."""
        due = []
        while self._waiting and self._waiting[0][0] <= now:
            due.append(heapq.heappop(self._waiting)[2:])
        return due

    def complete(self, delivery: WebhookDelivery) -> None:
        """Keep the result of a delivery."""
        self._completed.append(delivery)

    def completed(self) -> tuple[WebhookDelivery, ...]:
        """Return the latest results, oldest first."""
        return tuple(self._completed)


class WebhookSender:
    """Sends webhooks from its own threads.

    :param due: removes and returns the deliveries that are due
    :param complete: keeps the result of one
    :param now: the sandbox's time
    """

    def __init__(
        self,
        due: Callable[[], Sequence[tuple[Webhooks, WebhookDelivery]]],
        complete: Callable[[WebhookDelivery], None],
        now: Callable[[], datetime],
    ) -> None:
        self._due = due
        self._complete = complete
        self._now = now
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sandbox-webhooks", daemon=True)

    def start(self) -> None:
        """Start sending."""
        self._thread.start()

    def stop(self) -> None:
        """Stop sending, within a bounded time."""
        self._stopping.set()
        self._thread.join(STOP_TIMEOUT_SECONDS)

    @cached_property
    def _client(self) -> httpx.Client:
        # No proxy: webhooks of a local TechFlow are sent to this machine or its network.
        return httpx.Client(timeout=SEND_TIMEOUT_SECONDS, trust_env=False)

    def _run(self) -> None:
        threads = ThreadPoolExecutor(SENDER_THREADS, "sandbox-webhook")
        while not self._stopping.wait(POLL_SECONDS):
            for webhooks, delivery in self._due():
                threads.submit(self._send, self._client, webhooks, delivery)
        threads.shutdown(wait=False, cancel_futures=True)
        if "_client" in vars(self):
            self._client.close()

    def _send(self, client: httpx.Client, webhooks: Webhooks, delivery: WebhookDelivery) -> None:
        sent = replace(delivery, sent_at=self._now())
        # The receiver compares the timestamp with the real time, whatever the sandbox's clock shows.
        request = webhooks.request(delivery.id, time.time(), delivery.body(), forged=delivery.kind == "forged")
        try:
            status = client.send(request).status_code
        except (httpx.HTTPError, RuntimeError) as error:
            self._complete(replace(sent, error=type(error).__name__))
        else:
            self._complete(replace(sent, status=status))
