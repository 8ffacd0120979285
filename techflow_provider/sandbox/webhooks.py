"""Webhooks that the sandbox sends: what is documented of them, which is the names of six events, and what is assumed.

What goes wrong on the way is data, like the faults. Nothing is sent here.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import heapq
import hmac
import json
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime
from typing import Literal, get_args
from urllib.parse import quote, urlsplit

import httpx

from techflow_provider.sandbox.messages import Json, Object
from techflow_provider.sandbox.settings import SettingError, check_choice, check_seconds
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
Fate = Literal["genuine", "duplicate", "forged", "lost"]

KEY_PREFIX = "whsec_"
KEPT_DELIVERIES = 100_000


@dataclass(frozen=True, slots=True)
class Webhooks:
    """Where webhooks are sent to, as it is set up in the vendor's dashboard, and what goes wrong on the way.

    :param url: the URL to POST to
    :param secret: what they prove themselves with; None sends them without proof
    :param proof: `signature` signs as Standard Webhooks describes, `token` appends the secret to the URL as `token`
    :param events: the events to tell of
    :param delay_seconds: how late each is
    :param jitter_seconds: how much later it may be, at random, so that the order changes
    :param loss: the chance that one is not sent
    :param duplicates: the chance that one is sent twice
    :param forged: the chance that one is followed by one with a wrong proof
    :raises SettingError: a value can't be used
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
            raise SettingError("secret", type(self.secret).__name__, "text that is not empty")
        self._check_key()
        check_choice("proof", self.proof, get_args(Proof))
        for event in self.events:
            check_choice("events", event, get_args(EventName))
        for name in ("delay_seconds", "jitter_seconds"):
            check_seconds(name, getattr(self, name))
        for name in ("loss", "duplicates", "forged"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise SettingError(name, value, "a number from 0 to 1")

    def _check_key(self) -> None:
        try:
            _key(self.secret or "")
        except binascii.Error as error:
            raise SettingError("secret", f"{KEY_PREFIX}…", f"base64 after {KEY_PREFIX}") from error

    @classmethod
    def read(cls, value: Mapping[str, Json]) -> Webhooks:
        """Read webhooks from JSON.

        :raises SettingError: it has an unknown field, or a value can't be used
        """
        names = tuple(each.name for each in dataclasses.fields(cls) if each.name != "_")
        for name in value:
            check_choice("webhooks", name, names)
        if "url" not in value:
            raise SettingError("url", None, "an http or https URL")
        return cls(**value)  # type: ignore[arg-type]  # the types are checked by the constructor

    def request(self, delivery_id: str, at: float, body: bytes, *, forged: bool = False) -> httpx.Request:
        """Return the request that carries a body.

        :param at: seconds since 1970
        :param forged: whether its proof is wrong
        """
        headers = {"content-type": "application/json", "webhook-id": delivery_id}
        secret = f"not-{self.secret}"[::-1] if forged else self.secret
        if secret is None:
            return httpx.Request("POST", self.url, headers=headers, content=body)
        if self.proof == "token":
            joint = "&" if urlsplit(self.url).query else "?"
            url = f"{self.url}{joint}token={quote(secret, safe='')}"
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
    """A webhook that was sent, or that got lost.

    :param id: what tells it from others; a duplicate has the same
    :param event: the event's name
    :param workflow_id: the workflow's id
    :param execution_id: the execution's id, when it is about one
    :param fate: whether it is `genuine`, a `duplicate`, `forged`, or `lost` and so never sent
    :param happened_at: when the event happened
    :param sent_at: when it was sent
    :param status: the status code it was answered with; None while it is open and when it got no answer
    :param error: why it got no answer
    """

    id: str
    event: str
    workflow_id: str
    execution_id: str | None
    fate: Fate
    happened_at: datetime
    sent_at: datetime | None = None
    status: int | None = None
    error: str | None = None

    def body(self) -> bytes:
        """Return the JSON that carries it; all of it is assumed but the event's name."""
        data: Object = {"workflow_id": self.workflow_id}
        if self.execution_id is not None:
            data["execution_id"] = self.execution_id
        happened_at = self.happened_at.isoformat()
        return json.dumps({"id": self.id, "event": self.event, "created_at": happened_at, "data": data}).encode()


def fates(webhooks: Webhooks, chance: random.Random) -> list[tuple[Fate, float]]:
    """Decide what becomes of one event's webhook: what is sent, and how many seconds after the event."""

    def late() -> float:
        return webhooks.delay_seconds + chance.random() * webhooks.jitter_seconds

    if chance.random() < webhooks.loss:
        return [("lost", 0.0)]
    sent: list[tuple[Fate, float]] = [("genuine", late())]
    if chance.random() < webhooks.duplicates:
        sent.append(("duplicate", late()))
    if chance.random() < webhooks.forged:
        sent.append(("forged", late()))
    return sent


class Outbox:
    """What is to be sent, and what became of it. Not thread-safe by itself.

    :param seed: makes ids and chance reproducible
    """

    def __init__(self, seed: int | None) -> None:
        self._chance = random.Random(seed)  # noqa: S311  # chance, not secrets
        self._waiting: list[tuple[float, int, Webhooks, WebhookDelivery]] = []
        self._kept: deque[WebhookDelivery] = deque(maxlen=KEPT_DELIVERIES)
        self._count = 0

    def add(self, webhooks: Webhooks, event: Event, now: float) -> None:
        """Take notice of an event.

        :param now: seconds on the sandbox's clock
        """
        if event.name not in webhooks.events:
            return
        delivery_id = f"msg_{self._chance.getrandbits(64):016x}"
        for fate, late in fates(webhooks, self._chance):
            name = f"{delivery_id}_forged" if fate == "forged" else delivery_id
            delivery = WebhookDelivery(name, event.name, event.workflow_id, event.execution_id, fate, event.at)
            if fate == "lost":
                self.keep(delivery)
                continue
            self._count += 1
            heapq.heappush(self._waiting, (now + late, self._count, webhooks, delivery))

    def due(self, now: float) -> list[tuple[Webhooks, WebhookDelivery]]:
        """Return what is to be sent now, and forget it."""
        found = []
        while self._waiting and self._waiting[0][0] <= now:
            found.append(heapq.heappop(self._waiting)[2:])
        return found

    def keep(self, delivery: WebhookDelivery) -> None:
        """Remember what became of a delivery."""
        self._kept.append(delivery)

    def kept(self) -> tuple[WebhookDelivery, ...]:
        """Return the latest deliveries, in the order of their ends."""
        return tuple(self._kept)
