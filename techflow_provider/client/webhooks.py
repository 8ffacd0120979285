"""Verify webhooks and read their payload as a hint; no I/O.

TechFlow documents the names of six events, but neither payload nor signature. A delivery therefore proves its origin by
a shared secret: as a token in a header or in its URL, or by a signature as Standard Webhooks
(https://www.standardwebhooks.com), Svix, GitHub or Stripe write it. Its content is never taken as a fact, only as a
reason to poll.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.models import EVENT_PREFIX
from techflow_provider.client.parsing import DecodeError, Json, get_first, parse_json
from techflow_provider.client.text import printable

EVENTS = (
    *("workflow.created", "workflow.updated", "workflow.deleted"),
    *("execution.started", "execution.completed", "execution.failed"),
)
KEY_PREFIX = "whsec_"
SCHEME = "v1"
TOLERANCE_SECONDS = 300
MIN_SECRET_LENGTH = 16
MAX_SECRETS = 2
MAX_ID_LENGTH = 256
# Digits of a Unix time; enough for the next 29,000 years.
MAX_TIMESTAMP_LENGTH = 12
# A sender that rotates its secret signs with two.
MAX_SIGNATURES = 10
DIGEST_LENGTH = 32
BEARER = "bearer "


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature as the headers state it, in any of the known forms.

    :param prefix: what is signed before the body
    :param digests: HMAC-SHA256 digests, one of which has to be right
    """

    prefix: bytes
    digests: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Proof:
    """What a delivery offers as a proof of its origin, known before its body is read.

    :param tokens: secrets, as they were received
    :param signatures: well-formed and recent signatures
    """

    tokens: tuple[str, ...] = field(default=(), repr=False)
    signatures: tuple[Signature, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.tokens or self.signatures)


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

    def proof(self, now: float, token_header: str = "") -> Proof:
        """Return what the delivery offers as a proof; nothing is verified yet.

        :param now: seconds since 1970; a signature with a time counts within five minutes of it
        :param token_header: a header that holds the secret, or a signature of the body, beside the usual ones
        """
        authorization, own = self.headers.get("authorization", ""), self.headers.get(token_header.lower(), "")
        bearer = authorization[len(BEARER) :] if authorization.lower().startswith(BEARER) else ""
        tokens = (bearer.strip(), own.strip(), self.token or "")
        signatures = _signatures(self.headers, own, now)
        return Proof(tuple(filter(None, tokens)), tuple(each for each in signatures if each.digests))

    @property
    def id(self) -> str | None:
        """An identifier that only repetitions of this delivery share, or None.

        That is a header such as `webhook-id`, or an event that occurs once per execution. Without either, two identical
        deliveries may report two events.
        """
        header = next(filter(None, (self.headers.get(name) for name in ID_HEADERS)), "")
        if 0 < len(header) <= MAX_ID_LENGTH:
            return printable(header)
        hint = Hint.read(self.body)
        unique = hint.event is not None and hint.event.startswith(EVENT_PREFIX) and hint.execution_id is not None
        return printable(f"{hint.event} {hint.execution_id}") if unique else None


ID_HEADERS = ("webhook-id", "svix-id", "x-github-delivery")


def _signatures(headers: Mapping[str, str], own: str, now: float) -> Iterator[Signature]:
    for name in ("webhook", "svix"):
        delivery_id, at, signatures = (headers.get(f"{name}-{part}", "") for part in ("id", "timestamp", "signature"))
        if 0 < len(delivery_id) <= MAX_ID_LENGTH and _is_recent(at, now):
            digests = (each.removeprefix(f"{SCHEME},") for each in signatures.split() if each.startswith(f"{SCHEME},"))
            yield Signature(signed_prefix(delivery_id, at), _digests(_from_base64, digests))
    for header in (headers.get("x-hub-signature-256", ""), own):
        yield Signature(b"", _digests(bytes.fromhex, [header.strip().removeprefix("sha256=")]))
    parts = [
        part.strip().partition("=") for part in headers.get("stripe-signature", "").split(",")[: 2 * MAX_SIGNATURES]
    ]
    at = next((value for name, _, value in parts if name == "t"), "")
    if _is_recent(at, now):
        yield Signature(
            f"{at}.".encode(), _digests(bytes.fromhex, (value for name, _, value in parts if name == SCHEME))
        )


def _digests(decode: Callable[[str], bytes], texts: Iterable[str]) -> tuple[bytes, ...]:
    found: list[bytes] = []
    for text in list(texts)[:MAX_SIGNATURES]:
        with suppress(ValueError):
            found.append(decode(text))
    return tuple(each for each in found if len(each) == DIGEST_LENGTH)


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _is_recent(timestamp: str, now: float) -> bool:
    is_number = timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= MAX_TIMESTAMP_LENGTH
    return is_number and abs(now - int(timestamp)) <= TOLERANCE_SECONDS


def signed_prefix(delivery_id: str, timestamp: int | str) -> bytes:
    """Return what Standard Webhooks signs before the body."""
    return f"{delivery_id}.{timestamp}.".encode(errors="replace")


@dataclass(frozen=True, slots=True)
class WebhookSecret:
    """The secret that the sender and the receiver of webhooks share; it is compared in constant time.

    ::

        WebhookSecret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").verify(Delivery(headers, body), time.time())

    :param text: 16 characters or more, or `whsec_` and a key in base64; while one is replaced, the new one and the old
        one with a space between them
    :raises InvalidParameterError: it can't be used; the message doesn't show it
    """

    text: str = field(repr=False)

    def __post_init__(self) -> None:
        # Apart, since the variables of an error's frames are collected by crash reporters.
        problem = _problem(self.text)
        if problem is not None:
            expected = (
                f"{MIN_SECRET_LENGTH} characters or more without spaces, or {KEY_PREFIX} and a key in base64; "
                "or two of them with a space between"
            )
            raise InvalidParameterError("webhook_secret", problem, expected)

    @classmethod
    def generate(cls) -> WebhookSecret:
        """Return a new secret of 32 random bytes, in the form that the libraries of Standard Webhooks expect."""
        return cls(KEY_PREFIX + base64.b64encode(secrets.token_bytes(DIGEST_LENGTH)).decode())

    @property
    def _texts(self) -> list[str]:
        return self.text.split()

    def sign(self, delivery_id: str, timestamp: int | str, body: bytes) -> str:
        """Return the signature of a delivery as Standard Webhooks writes it, preceded by its scheme.

        :param timestamp: seconds since 1970, as in the header
        """
        digest = _digest(_keys(self._texts[0])[0], signed_prefix(delivery_id, timestamp) + body)
        return f"{SCHEME},{base64.b64encode(digest).decode()}"

    def verify(self, delivery: Delivery, now: float) -> bool:
        """Whether the sender of a delivery knows this secret, by a token or by a signature.

        :param now: seconds since 1970
        """
        return self.verify_proof(delivery.proof(now), delivery.body)

    def verify_proof(self, proof: Proof, body: bytes) -> bool:
        """Whether a proof is right; all of it is compared, so that the time reveals nothing."""
        results = [self.verify_token(token) for token in proof.tokens]
        for signature in proof.signatures:
            for key in (key for text in self._texts for key in _keys(text)):
                expected = _digest(key, signature.prefix + body)
                results += [hmac.compare_digest(expected, digest) for digest in signature.digests]
        return any(results)

    def verify_token(self, token: str) -> bool:
        """Whether a token is this secret. A space counts as a plus sign, since URL decoding replaces plus signs."""
        received = token.replace(" ", "+").encode(errors="replace")
        return any(hmac.compare_digest(received, text.encode()) for text in self._texts)


def _problem(text: object) -> str | None:
    """Return why a text can't be used as a secret, without showing it."""
    if not isinstance(text, str):
        return type(text).__name__
    parts = text.split()
    if not 0 < len(parts) <= MAX_SECRETS:
        return f"{len(parts)} secrets"
    for part in parts:
        if len(part) < MIN_SECRET_LENGTH or not all("!" <= character <= "~" for character in part):
            return f"{len(part)} characters"
        if part.startswith(KEY_PREFIX) and len(_keys(part)) == 1:
            return f"{KEY_PREFIX} and invalid base64"
    return None


def _keys(text: str) -> list[bytes]:
    """Return the keys that senders derive from a secret: from base64 as Standard Webhooks does, or from its text."""
    decoded: list[bytes] = []
    with suppress(binascii.Error):
        decoded.append(_from_base64(text.removeprefix(KEY_PREFIX)))
    return [*decoded, text.encode()] if text.startswith(KEY_PREFIX) else [text.encode(), *decoded]


def _digest(key: bytes, content: bytes) -> bytes:
    return hmac.new(key, content, hashlib.sha256).digest()


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
