"""Webhooks that the sandbox sends. The names of the six events are documented; everything else is assumed.

What goes wrong with them is data, like the faults.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import heapq
import hmac
import itertools
import json
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args
from urllib.parse import quote, urlsplit

import httpx

from techflow_provider.sandbox.messages import Object
from techflow_provider.sandbox.settings import Probability, Seconds, SettingError, Text, check, check_fields
from techflow_provider.sandbox.state import Event

if TYPE_CHECKING:
    from techflow_provider.sandbox.sandbox import Sandbox

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

    url: str = field(default="", repr=False)
    _: KW_ONLY
    secret: Text | None = field(default=None, repr=False)
    proof: Proof = "signature"
    events: Sequence[str] = get_args(EventName)
    delay_seconds: Seconds = 0.0
    jitter_seconds: Seconds = 0.0
    loss: Probability = 0.0
    duplicates: Probability = 0.0
    forged: Probability = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise SettingError("url", self.url, "an http or https URL")
        for event in self.events:
            check("events", event, EventName)
        try:
            _key(self.secret or "")
        except binascii.Error as error:
            raise SettingError("secret", f"{KEY_PREFIX}…", f"base64 after {KEY_PREFIX}") from error

    def request(self, delivery_id: str, at: float, body: bytes, *, forged: bool = False) -> httpx.Request:
        """Return the request for a body.

        :param at: seconds since 1970
        :param forged: whether its proof should be wrong
        """
        url, headers = self.url, {"content-type": "application/json", "webhook-id": delivery_id}
        secret = f"not-{self.secret}"[::-1] if forged else self.secret
        if secret is not None and self.proof == "token":
            url = f"{url}{'&' if urlsplit(url).query else '?'}token={quote(secret, safe='')}"
        elif secret is not None:
            headers["webhook-timestamp"] = str(int(at))
            headers["webhook-signature"] = _signature(secret, delivery_id, int(at), body)
        return httpx.Request("POST", url, headers=headers, content=body)


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


class WebhookQueue:
    """The webhooks that wait to be sent, and the results of those that were. Not thread-safe by itself.

    :param seed: makes ids and probabilities reproducible
    """

    def __init__(self, seed: int | None) -> None:
        self._random = random.Random(seed)  # noqa: S311  # not for secrets
        self._waiting: list[tuple[float, int, Webhooks, WebhookDelivery]] = []
        self._count = itertools.count()
        self.seen: int = 0
        self.completed: deque[WebhookDelivery] = deque(maxlen=MAX_DELIVERIES)

    def due(
        self, webhooks: Webhooks | None, events: Sequence[Event], now: float
    ) -> list[tuple[Webhooks, WebhookDelivery]]:
        """Queue the webhooks of further events, and remove and return what has to be sent now.

        :param webhooks: None sends nothing
        :param now: seconds on the sandbox's clock
        """
        self.seen += len(events)
        for event in events:
            if webhooks is not None and event.name in webhooks.events:
                self._add(webhooks, event, now)
        due = []
        while self._waiting and self._waiting[0][0] <= now:
            due.append(heapq.heappop(self._waiting)[2:])
        return due

    def _add(self, webhooks: Webhooks, event: Event, now: float) -> None:
        id_ = f"msg_{self._random.getrandbits(64):016x}"
        genuine = WebhookDelivery(id_, event.name, event.workflow_id, event.execution_id, "genuine", event.at)
        if self._random.random() < webhooks.loss:
            self.completed.append(replace(genuine, kind="lost"))
            return
        deliveries = [genuine]
        if self._random.random() < webhooks.duplicates:
            deliveries.append(replace(genuine, kind="duplicate"))
        if self._random.random() < webhooks.forged:
            deliveries.append(replace(genuine, kind="forged", id=f"{id_}_forged"))
        for delivery in deliveries:
            due_at = now + webhooks.delay_seconds + self._random.random() * webhooks.jitter_seconds
            heapq.heappush(self._waiting, (due_at, next(self._count), webhooks, delivery))


class WebhookSender(threading.Thread):
    """Sends the webhooks of a sandbox from its own threads."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(name="sandbox-webhooks", daemon=True)
        self._sandbox = sandbox
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Stop sending, within a bounded time."""
        self._stopping.set()
        self.join(STOP_TIMEOUT_SECONDS)

    @cached_property
    def _client(self) -> httpx.Client:
        # No proxy: webhooks of a local TechFlow are sent to this machine or its network.
        return httpx.Client(timeout=SEND_TIMEOUT_SECONDS, trust_env=False)

    def run(self) -> None:
        """Send what is due until it is stopped."""
        threads = ThreadPoolExecutor(SENDER_THREADS, "sandbox-webhook")
        while not self._stopping.wait(POLL_SECONDS):
            for webhooks, delivery in self._sandbox.due_webhooks():
                threads.submit(self._send, self._client, webhooks, delivery)
        threads.shutdown(wait=False, cancel_futures=True)
        if "_client" in vars(self):
            self._client.close()

    def _send(self, client: httpx.Client, webhooks: Webhooks, delivery: WebhookDelivery) -> None:
        sent = replace(delivery, sent_at=self._sandbox.clock.now())
        # The receiver compares the timestamp with the real time, whatever the sandbox's clock shows.
        request = webhooks.request(delivery.id, time.time(), delivery.body(), forged=delivery.kind == "forged")
        try:
            status = client.send(request).status_code
        except (httpx.HTTPError, RuntimeError) as error:
            self._sandbox.complete_webhook(replace(sent, error=type(error).__name__))
        else:
            self._sandbox.complete_webhook(replace(sent, status=status))
