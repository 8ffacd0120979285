"""Verify webhooks and read their payload as a hint; no I/O.

TechFlow documents the names of six events, but neither payload nor signature. A delivery therefore proves its origin by
a shared secret: as a token in its URL, or by a signature as specified by Standard Webhooks
(https://www.standardwebhooks.com). Its content is never taken as a fact, only as a reason to poll.
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
MIN_SECRET_LENGTH = 16
MAX_ID_LENGTH = 256
# Digits of a Unix time; enough for the next 29,000 years.
MAX_TIMESTAMP_LENGTH = 12
# A sender that rotates its secret signs with two.
MAX_SIGNATURES = 10


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook as it was received.

    :param headers: header fields with lower-case names
    :param body: the body's bytes
    :param token: the token in its URL
    """

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    token: str | None = field(default=None, repr=False)

    @property
    def id(self) -> str | None:
        """An identifier that only repetitions of this delivery share, or None.

        That is the `webhook-id` header, or an event that occurs once per execution. Without either, two identical
        deliveries may report two events.
        """
        header = self.headers.get("webhook-id", "")
        if 0 < len(header) <= MAX_ID_LENGTH:
            return header
        hint = Hint.read(self.body)
        unique = hint.event is not None and hint.event.startswith(EVENT_PREFIX) and hint.execution_id is not None
        return f"{hint.event} {hint.execution_id}" if unique else None


@dataclass(frozen=True, slots=True)
class WebhookSecret:
    """The secret that the sender and the receiver of webhooks share; it is compared in constant time.

    ::

        WebhookSecret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").verify(Delivery(headers, body), time.time())

    :param text: 16 characters or more, or `whsec_` and a key in base64
    :raises InvalidParameterError: it can't be used; the message doesn't show it
    """

    text: str = field(repr=False)

    def __post_init__(self) -> None:
        expected = f"{MIN_SECRET_LENGTH} characters or more without spaces, or {KEY_PREFIX} and a key in base64"
        if not isinstance(self.text, str):
            raise InvalidParameterError("webhook_secret", type(self.text).__name__, expected)
        if len(self.text) < MIN_SECRET_LENGTH or not all("!" <= character <= "~" for character in self.text):
            raise InvalidParameterError("webhook_secret", f"{len(self.text)} characters", expected)
        try:
            self._key()
        except binascii.Error as error:
            raise InvalidParameterError("webhook_secret", f"{KEY_PREFIX} and invalid base64", expected) from error

    def _key(self) -> bytes:
        if not self.text.startswith(KEY_PREFIX):
            return self.text.encode()
        return base64.b64decode(self.text.removeprefix(KEY_PREFIX), validate=True)

    def sign(self, delivery_id: str, timestamp: int | str, body: bytes) -> str:
        """Return the signature of a delivery, preceded by its scheme.

        :param timestamp: seconds since 1970, as in the header
        """
        content = f"{delivery_id}.{timestamp}.".encode(errors="replace") + body
        digest = hmac.new(self._key(), content, hashlib.sha256).digest()
        return f"{SCHEME},{base64.b64encode(digest).decode()}"

    def verify(self, delivery: Delivery, now: float) -> bool:
        """Whether the sender of a delivery knows this secret, by its token or by its signature.

        :param now: seconds since 1970
        """
        has_token = self.verify_token(delivery.token or "")
        return self.verify_signature(delivery, now) or has_token

    def verify_token(self, token: str) -> bool:
        """Whether a token is this secret. A space counts as a plus sign, since URL decoding replaces plus signs."""
        return hmac.compare_digest(token.replace(" ", "+").encode(errors="replace"), self.text.encode())

    def verify_signature(self, delivery: Delivery, now: float) -> bool:
        """Whether a delivery is signed with this secret, with a timestamp within the tolerance of five minutes.

        :param now: seconds since 1970
        """
        delivery_id, timestamp, signatures = (
            delivery.headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature")
        )
        if not 0 < len(delivery_id) <= MAX_ID_LENGTH or not _is_recent(timestamp, now):
            return False
        expected = self.sign(delivery_id, timestamp, delivery.body).encode()
        received = signatures.split(maxsplit=MAX_SIGNATURES)[:MAX_SIGNATURES]
        return any(hmac.compare_digest(expected, each.encode(errors="replace")) for each in received)


def _is_recent(timestamp: str, now: float) -> bool:
    is_number = timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= MAX_TIMESTAMP_LENGTH
    return is_number and abs(now - int(timestamp)) <= TOLERANCE_SECONDS


@dataclass(frozen=True, slots=True)
class Hint:
    """What a webhook seems to be about, for the log and to detect repetitions; each field may be unknown.

    :param event: one of the six documented names
    :param workflow_id: a workflow's id
    :param execution_id: an execution's id
    """

    event: str | None = None
    workflow_id: str | None = None
    execution_id: str | None = None

    @classmethod
    def read(cls, body: bytes) -> Hint:
        """Read any body, since no payload is documented."""
        try:
            payload = parse_json(body)
        except DecodeError:
            return cls()
        if not isinstance(payload, dict):
            return cls()
        inner = get_first(payload, "data", "payload", "object")
        sources = [payload, *([inner] if isinstance(inner, dict) else [])]
        event = _first_text(sources, "event", "type", "event_type", "event_name", "name")
        return cls(event if event in EVENTS else None, _read_id(sources, "workflow"), _read_id(sources, "execution"))


def _read_id(sources: list[dict[str, Json]], name: str) -> str | None:
    """Return `<name>_id`, or the id of the object `<name>`."""
    objects = [value for each in sources if isinstance(value := get_first(each, name), dict)]
    return _first_text(sources, f"{name}_id") or _first_text(objects, "id", f"{name}_id")


def _first_text(sources: list[dict[str, Json]], *names: str) -> str | None:
    values = (get_first(source, *names) for source in sources)
    return next((each for each in values if isinstance(each, str) and 0 < len(each) <= MAX_ID_LENGTH), None)
