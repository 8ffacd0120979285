"""Tell a genuine webhook from a forged one, and read it as a hint; no I/O.

TechFlow documents the names of six events and neither payload nor signature, so a delivery proves itself by a secret:
as a token in its URL, or by a signature as Standard Webhooks (https://www.standardwebhooks.com) describes it. What it
says is never taken for a fact, only for a reason to look.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.models import EVENT_PREFIX
from techflow_provider.client.parsing import DecodeError, Json, get_first, parse_json

EVENTS = (
    *("workflow.created", "workflow.updated", "workflow.deleted"),
    *("execution.started", "execution.completed", "execution.failed"),
)
KEY_PREFIX = "whsec_"
SCHEME = "v1"
TOLERANCE_SECONDS = 300
SHORTEST_SECRET = 16
LONGEST_ID = 256
# Digits of a time in seconds, until long after this code.
LONGEST_TIMESTAMP = 12
# A sender that changes its secret signs with two.
MOST_SIGNATURES = 10


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook as it arrived.

    :param headers: header fields with lower-case names
    :param body: the body's bytes
    :param token: the token in its URL
    """

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    token: str | None = field(default=None, repr=False)

    @property
    def id(self) -> str | None:
        """What tells this delivery from another and not from its repetition, when it has such a thing.

        That is the `webhook-id` header, or an event that an execution has once. Without either, two deliveries that
        look the same may be about two events.
        """
        named = self.headers.get("webhook-id", "")
        if 0 < len(named) <= LONGEST_ID:
            return named
        hint = Hint.read(self.body)
        once = hint.event is not None and hint.event.startswith(EVENT_PREFIX) and hint.execution_id is not None
        return f"{hint.event} {hint.execution_id}" if once else None


@dataclass(frozen=True, slots=True)
class WebhookSecret:
    """What a sender and the receiver of webhooks share. Two of them are compared in constant time alone.

    :param text: a text of 16 characters or more, or `whsec_` and a key in base64
    :raises InvalidParameterError: it can't be used; the message doesn't show it
    """

    text: str = field(repr=False)

    def __post_init__(self) -> None:
        expected = f"{SHORTEST_SECRET} characters or more without spaces, or {KEY_PREFIX} and a key in base64"
        if not isinstance(self.text, str):
            raise InvalidParameterError("webhook_secret", type(self.text).__name__, expected)
        if len(self.text) < SHORTEST_SECRET or not all("!" <= character <= "~" for character in self.text):
            raise InvalidParameterError("webhook_secret", f"{len(self.text)} characters", expected)
        try:
            self._key()
        except binascii.Error as error:
            raise InvalidParameterError("webhook_secret", f"{KEY_PREFIX} and no base64", expected) from error

    def _key(self) -> bytes:
        if not self.text.startswith(KEY_PREFIX):
            return self.text.encode()
        return base64.b64decode(self.text.removeprefix(KEY_PREFIX), validate=True)

    def is_token(self, token: str) -> bool:
        """Whether a token is this secret. A plus sign that was read as a space counts as a plus sign."""
        return hmac.compare_digest(token.replace(" ", "+").encode(errors="replace"), self.text.encode())

    def sign(self, delivery_id: str, timestamp: int | str, body: bytes) -> str:
        """Return the signature of a delivery, with the scheme in front.

        :param timestamp: seconds since 1970, as the header has them
        """
        signed = f"{delivery_id}.{timestamp}.".encode(errors="replace") + body
        digest = hmac.new(self._key(), signed, hashlib.sha256).digest()
        return f"{SCHEME},{base64.b64encode(digest).decode()}"

    def has_signed(self, delivery: Delivery, now: float) -> bool:
        """Whether a delivery has a signature of this secret that is not older or newer than five minutes.

        :param now: seconds since 1970
        """
        delivery_id, timestamp, signatures = (
            delivery.headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature")
        )
        if not 0 < len(delivery_id) <= LONGEST_ID or not _is_recent(timestamp, now):
            return False
        own = self.sign(delivery_id, timestamp, delivery.body).encode()
        given = signatures.split(maxsplit=MOST_SIGNATURES)[:MOST_SIGNATURES]
        return any(hmac.compare_digest(own, each.encode(errors="replace")) for each in given)

    def authenticates(self, delivery: Delivery, now: float) -> bool:
        """Whether a delivery comes from somebody who knows this secret, by its token or by its signature.

        :param now: seconds since 1970
        """
        by_token = self.is_token(delivery.token or "")
        return self.has_signed(delivery, now) or by_token


def _is_recent(timestamp: str, now: float) -> bool:
    readable = timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= LONGEST_TIMESTAMP
    return readable and abs(now - int(timestamp)) <= TOLERANCE_SECONDS


@dataclass(frozen=True, slots=True)
class Hint:
    """What a webhook seems to be about, for the log and to know it again; each is None when it can't be told.

    :param event: one of the six documented names
    :param workflow_id: a workflow's id
    :param execution_id: an execution's id
    """

    event: str | None = None
    workflow_id: str | None = None
    execution_id: str | None = None

    @classmethod
    def read(cls, body: bytes) -> Hint:
        """Read what a body hints at; any body will do, since no payload is documented."""
        try:
            outer = parse_json(body)
        except DecodeError:
            return cls()
        if not isinstance(outer, dict):
            return cls()
        inner = get_first(outer, "data", "payload", "object")
        sources = [outer, *([inner] if isinstance(inner, dict) else [])]
        event = _first(sources, "event", "type", "event_type", "event_name", "name")
        return cls(
            event=event if event in EVENTS else None,
            workflow_id=_first(sources, "workflow_id") or _nested(sources, "workflow"),
            execution_id=_first(sources, "execution_id") or _nested(sources, "execution"),
        )


def _first(sources: list[dict[str, Json]], *names: str) -> str | None:
    found = (get_first(source, *names) for source in sources)
    return next((each for each in found if isinstance(each, str) and 0 < len(each) <= LONGEST_ID), None)


def _nested(sources: list[dict[str, Json]], name: str) -> str | None:
    found = (get_first(source, name) for source in sources)
    return _first([each for each in found if isinstance(each, dict)], "id", f"{name}_id")
