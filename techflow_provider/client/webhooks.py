"""Verify webhooks; no I/O.

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product

from techflow_provider.client.errors import InvalidParameterError
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


ID_HEADERS = ("webhook-id", "svix-id", "x-github-delivery")


@dataclass(frozen=True, slots=True)
class Proof:
    """What a delivery offers as a proof of its origin, known before its body is read.

    :param tokens: secrets, as they were received
    :param signatures: well-formed and recent signatures: what is signed before the body, and HMAC-SHA256 digests, one
        of which has to be right
    """

    tokens: tuple[str, ...] = field(default=(), repr=False)
    signatures: tuple[tuple[bytes, list[bytes]], ...] = field(default=(), repr=False)

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
        return Proof(tuple(filter(None, tokens)), tuple(_signatures(self.headers, own, now)))

    @property
    def id(self) -> str | None:
        """An identifier that only repetitions of this delivery share; None where the sender gives it none."""
        header = next(filter(None, (self.headers.get(name) for name in ID_HEADERS)), "")
        return printable(header) if 0 < len(header) <= MAX_ID_LENGTH else None


def _signatures(headers: Mapping[str, str], own: str, now: float) -> Iterator[tuple[bytes, list[bytes]]]:
    """Yield the well-formed and recent signatures of Standard Webhooks, Svix, GitHub, an own header, and Stripe."""
    whole = [each.strip().removeprefix("sha256=") for each in (headers.get("x-hub-signature-256", ""), own)]
    found: list[tuple[bytes, Callable[[str], bytes], list[str]]] = [(b"", bytes.fromhex, whole)]
    for name in ("webhook", "svix"):
        delivery_id, at, signatures = (headers.get(f"{name}-{part}", "") for part in ("id", "timestamp", "signature"))
        if 0 < len(delivery_id) <= MAX_ID_LENGTH and _is_recent(at, now):
            texts = [each.removeprefix(f"{SCHEME},") for each in signatures.split() if each.startswith(f"{SCHEME},")]
            found.append((signed_prefix(delivery_id, at), _from_base64, texts))
    parts = [part.strip().partition("=") for part in headers.get("stripe-signature", "").split(",")]
    at = next((value for name, _, value in parts if name == "t"), "")
    if _is_recent(at, now):
        found.append((f"{at}.".encode(), bytes.fromhex, [value for name, _, value in parts if name == SCHEME]))
    for prefix, decode, texts in found:
        digests = [digest for text in texts[:MAX_SIGNATURES] if (digest := _decoded(text, decode))]
        if digests:
            yield prefix, digests


def _decoded(text: str, decode: Callable[[str], bytes]) -> bytes | None:
    with suppress(ValueError):
        digest = decode(text)
        return digest if len(digest) == DIGEST_LENGTH else None
    return None


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
        keys = [key for text in self._texts for key in _keys(text)]
        for prefix, digests in proof.signatures:
            expected = [_digest(key, prefix + body) for key in keys]
            results += [hmac.compare_digest(*pair) for pair in product(expected, digests)]
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
