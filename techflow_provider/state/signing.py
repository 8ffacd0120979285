"""Sign the requests of the state's API, and verify them, without I/O, clock or randomness of its own.

A request is signed with a key that both sides derive from a secret which they have anyway: a connection's API key, or
`[techflow] state_secret`. The signature comes in headers and covers the body's digest, so it is verified before the
body is read. The response is signed with the same key, so that no other server can pass itself off as the state's.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

# How far the clocks of both sides may be apart, and how long a nonce is remembered in each direction.
TOLERANCE_SECONDS = 60.0
SIGNATURE_HEADER = "x-techflow-signature"
# What a component says of itself; isn't signed, since it is only shown.
COMPONENT_HEADER = "x-techflow-component"
CONNECTION_HEADER = "x-techflow-connection"
# The name that stands for `[techflow] state_secret` in place of a connection's.
DEPLOYMENT = "!deployment"
SIGNATURE = re.compile(r"v1 ([0-9]{10}) ([0-9a-f]{32}) ([0-9a-f]{64}) ([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs in the name of a connection, or of the deployment.

    :param name: the connection's id, or `DEPLOYMENT`
    :param key: what `derive_key` returns
    """

    name: str
    key: bytes = field(repr=False)

    def headers(self, body: bytes, at: float, nonce: str) -> dict[str, str]:
        """Return the headers of a request.

        :param at: seconds since 1970
        :param nonce: 32 hexadecimal digits that are used once
        """
        digest = hashlib.sha256(body).hexdigest()
        signature = _sign(self.key, "request", self.name, f"{int(at)}", nonce, digest)
        name = quote(self.name, safe="")
        return {CONNECTION_HEADER: name, SIGNATURE_HEADER: f"v1 {int(at)} {nonce} {digest} {signature}"}

    def response(self, nonce: str, body: bytes) -> str:
        """Return the signature of the response to the request with a nonce."""
        return _sign(self.key, "response", self.name, nonce, hashlib.sha256(body).hexdigest())


@dataclass(frozen=True, slots=True)
class Proof:
    """What a request's headers say of who sent it.

    :param name: the connection's id, or `DEPLOYMENT`
    :param at: when it was signed, in seconds since 1970
    :param nonce: is used once
    :param digest: the body's digest
    :param signature: covers all of these
    """

    name: str
    at: int
    nonce: str
    digest: str
    signature: str = field(repr=False)

    @classmethod
    def read(cls, headers: Mapping[str, str]) -> Proof | None:
        """Read a request's headers, whose names are in lower case; None where they can't be a proof."""
        found = SIGNATURE.fullmatch(headers.get(SIGNATURE_HEADER, ""))
        if found is None:
            return None
        at, nonce, digest, signature = found.groups()
        return cls(unquote(headers.get(CONNECTION_HEADER, "")), int(at), nonce, digest, signature)

    def is_recent(self, now: float) -> bool:
        """Whether it was signed lately."""
        return abs(now - self.at) <= TOLERANCE_SECONDS

    def verify(self, key: bytes) -> bool:
        """Whether it was signed with a key."""
        expected = _sign(key, "request", self.name, f"{self.at}", self.nonce, self.digest)
        return hmac.compare_digest(expected, self.signature)

    def covers(self, body: bytes | bytearray) -> bool:
        """Whether it was signed for a body."""
        return hmac.compare_digest(hashlib.sha256(body).hexdigest(), self.digest)


def derive_key(secret: str, purpose: str) -> bytes:
    """Return a key for this protocol alone, from which the secret can't be computed (HKDF, RFC 5869).

    :param secret: an API key, or `[techflow] state_secret`
    :param purpose: what the key is for: an account, or `DEPLOYMENT`
    """
    extracted = hmac.digest(b"techflow state v1", secret.encode(), "sha256")
    return hmac.digest(extracted, purpose.encode() + b"\x01", "sha256")


def _sign(key: bytes, *parts: str) -> str:
    # The method and the path are the same in all requests; a proxy may put a prefix before the path.
    text = "\n".join(("v1", "POST", "/techflow/state/", *parts))
    return hmac.digest(key, text.encode(), "sha256").hex()
