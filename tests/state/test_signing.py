"""Which requests count as signed, and with what."""

from __future__ import annotations

import pytest

from techflow_provider.state.signing import (
    CONNECTION_HEADER,
    SIGNATURE_HEADER,
    TOLERANCE_SECONDS,
    Proof,
    Signer,
    derive_key,
)

SIGNER = Signer("techflow_default", derive_key("an-api-key", "account"))
BODY, AT, NONCE = b'{"operations":[]}', 1_800_000_000.7, "0123456789abcdef" * 2


def proof(**changes: str) -> Proof:
    headers = {**SIGNER.headers(BODY, AT, NONCE), **changes}
    found = Proof.read(headers)
    assert found is not None
    return found


def test_a_signed_request_proves_that_its_sender_knows_the_key():
    found = proof()
    assert (found.name, found.at, found.nonce) == ("techflow_default", 1_800_000_000, NONCE)
    assert found.verify(SIGNER.key)
    assert found.covers(BODY)


@pytest.mark.parametrize("secret", ["another-key", "an-api-key ", ""])
def test_another_key_proves_nothing(secret):
    assert not proof().verify(derive_key(secret, "account"))
    assert not proof().verify(derive_key("an-api-key", "another account"))


def test_a_signature_covers_name_time_nonce_and_body():
    text = SIGNER.headers(BODY, AT, NONCE)[SIGNATURE_HEADER]
    assert not proof(**{CONNECTION_HEADER: "another"}).verify(SIGNER.key)
    assert not proof(**{SIGNATURE_HEADER: text.replace("1800000000", "1800000001")}).verify(SIGNER.key)
    assert not proof(**{SIGNATURE_HEADER: text.replace(NONCE, "f" * 32)}).verify(SIGNER.key)
    digest = text.split()[3]
    assert not proof(**{SIGNATURE_HEADER: text.replace(digest, "0" * 64)}).verify(SIGNER.key)
    assert not proof().covers(BODY + b" ")


@pytest.mark.parametrize("seconds", [-TOLERANCE_SECONDS, 0, TOLERANCE_SECONDS - 1])
def test_a_request_is_recent_for_a_minute_in_each_direction(seconds):
    assert proof().is_recent(AT + seconds)


@pytest.mark.parametrize("seconds", [-TOLERANCE_SECONDS - 1, TOLERANCE_SECONDS + 1])
def test_an_older_or_later_one_is_not(seconds):
    assert not proof().is_recent(AT + seconds)


@pytest.mark.parametrize("value", ["", "v1", "v2 1 2 3 4", f"v1 {'9' * 10} {'a' * 31} {'b' * 64} {'c' * 64}"])
def test_anything_else_than_a_signature_proves_nothing(value):
    assert Proof.read({SIGNATURE_HEADER: value, CONNECTION_HEADER: "techflow_default"}) is None
    assert Proof.read({}) is None


def test_a_name_that_does_not_fit_into_a_header_arrives():
    signer = Signer("prod/ümlaut #1", SIGNER.key)
    found = Proof.read(signer.headers(BODY, AT, NONCE))
    assert found is not None
    assert found.name == signer.name
    assert found.verify(signer.key)


def test_a_response_is_signed_for_one_request_and_differs_from_a_request():
    signature = SIGNER.response(NONCE, BODY)
    assert signature != SIGNER.response("f" * 32, BODY)
    assert signature != SIGNER.response(NONCE, BODY + b" ")
    assert signature not in SIGNER.headers(BODY, AT, NONCE)[SIGNATURE_HEADER]


def test_no_key_shows_in_a_repr():
    assert SIGNER.key.hex() not in repr(SIGNER)
    assert repr(SIGNER.key) not in repr(SIGNER)
