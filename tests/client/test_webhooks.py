"""Genuine deliveries are accepted, and forged ones are rejected."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from techflow_provider.client import InvalidParameterError
from techflow_provider.client.webhooks import Delivery, WebhookSecret

NOW = 1_700_000_000
BODY = b'{"event": "execution.completed"}'
# The example of the Standard Webhooks specification's reference libraries.
KNOWN_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KNOWN_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
KNOWN_TIMESTAMP = 1614265330
KNOWN_BODY = b'{"test": 2432232314}'
KNOWN_SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
SECRET = WebhookSecret("correct horse battery".replace(" ", "-"))
OTHER = WebhookSecret("another-secret-0123456789")
# The correct time in digits that int() accepts and no sender writes.
ARABIC = str(NOW).translate({ord(str(digit)): 0x0660 + digit for digit in range(10)})


def signed(secret: WebhookSecret = SECRET, at: int | str = NOW, name: str = "msg_1", **changes: Any) -> Delivery:
    """A correctly signed delivery, with some changes."""
    headers = {"webhook-id": name, "webhook-timestamp": str(at), "webhook-signature": secret.sign(name, at, BODY)}
    body = changes.pop("body", BODY)
    return Delivery({**headers, **{f"webhook-{name}": value for name, value in changes.items()}}, body)


def test_the_signature_equals_that_of_the_reference_library() -> None:
    assert WebhookSecret(KNOWN_SECRET).sign(KNOWN_ID, KNOWN_TIMESTAMP, KNOWN_BODY) == KNOWN_SIGNATURE


def test_a_correct_signature_or_token_is_sufficient() -> None:
    assert SECRET.verify(signed(), NOW)
    assert SECRET.verify(Delivery(body=BODY, token=SECRET.text), NOW)


@pytest.mark.parametrize("name", ["x", "x" * 256, "\ud800"])
def test_a_delivery_id_has_at_most_256_characters(name: str) -> None:
    assert SECRET.verify(signed(name=name), NOW)
    assert signed(name=name).id == name.replace("\ud800", r"\ud800")


def test_a_longer_delivery_id_is_ignored() -> None:
    assert signed(name="x" * 257).id is None


def test_a_timestamp_has_at_most_twelve_digits() -> None:
    assert SECRET.verify(signed(at=f"{NOW:012}"), NOW)
    assert not SECRET.verify(signed(at="9" * 12), NOW)


def test_at_most_ten_signatures_are_compared() -> None:
    right = SECRET.sign("msg_1", NOW, BODY)
    assert SECRET.verify(signed(signature=" ".join(["v1,AAAA"] * 9 + [right, "v1,AAAA"])), NOW)
    assert SECRET.verify(signed(signature=f"v1,AAAA  {right}"), NOW)


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_signature_needs_all_three_headers(missing: str) -> None:
    delivery = signed()
    headers = {name: value for name, value in delivery.headers.items() if name != missing}
    assert not SECRET.verify(Delivery(headers, BODY), NOW)


@pytest.mark.parametrize("seconds", [-300, 0, 300])
def test_the_tolerance_is_five_minutes(seconds: int) -> None:
    assert SECRET.verify(signed(at=NOW + seconds), NOW)


@pytest.mark.parametrize(
    "forged",
    [
        Delivery(body=BODY),
        Delivery(body=BODY, token=""),
        Delivery(body=BODY, token=OTHER.text),
        Delivery(body=BODY, token=SECRET.text[:-1]),
        Delivery(body=BODY, token="\ud800é"),
        signed(OTHER),
        signed(at=NOW - 301),
        signed(at=NOW + 301),
        signed(at="-1"),
        signed(at="٣" * 10),
        signed(at=ARABIC),
        signed(at=f"+{NOW}"),
        signed(at=f"{NOW:_}"),
        signed(at="9" * 500),
        signed(at="9" * 5000),
        signed(at=f"{NOW:013}"),
        signed(name=""),
        signed(name="x" * 257),
        signed(name="x" * 257, at="9" * 500),
        signed(timestamp=str(NOW + 1)),
        signed(id="msg_2"),
        signed(id=""),
        signed(id="x" * 1000),
        signed(body=BODY + b" "),
        signed(signature=""),
        signed(signature="v1,"),
        signed(signature=SECRET.sign("msg_1", NOW, BODY).replace("v1,", "v1a,")),
        signed(signature="v1,\ud800é"),
        signed(signature=" ".join(["v1,AAAA"] * 10 + [SECRET.sign("msg_1", NOW, BODY)])),
    ],
)
def test_a_forged_delivery_is_rejected(forged: Delivery) -> None:
    assert not SECRET.verify(forged, NOW)


def test_one_correct_signature_of_several_is_sufficient() -> None:
    signatures = f"{OTHER.sign('msg_1', NOW, BODY)} v2,unknown {SECRET.sign('msg_1', NOW, BODY)}"
    assert SECRET.verify(signed(signature=signatures), NOW)


@given(body=st.binary(max_size=200), delivery_id=st.text(min_size=1, max_size=50), other=st.binary(max_size=200))
def test_a_signature_is_valid_for_one_body_only(body: bytes, delivery_id: str, other: bytes) -> None:
    headers = {"webhook-id": delivery_id, "webhook-timestamp": str(NOW)}
    headers["webhook-signature"] = SECRET.sign(delivery_id, NOW, body)
    assert SECRET.verify(Delivery(headers, body), NOW)
    assert SECRET.verify(Delivery(headers, other), NOW) == (other == body)


def test_a_space_in_a_token_counts_as_a_plus_sign() -> None:
    secret = WebhookSecret("whsec_" + base64.b64encode(b"\xfb" * 24).decode())
    assert "+" in secret.text
    assert secret.verify_token(secret.text.replace("+", " "))


@pytest.mark.parametrize(
    "text",
    [
        *("", "short", "x" * 15, "with a space inside it", "with-a-delete-\x7f-inside", "grün-0123456789-0123"),
        *("whsec_no!base64!!!", "whsec_YWJjZA=!YWJj", 7),
    ],
)
def test_an_invalid_secret_is_rejected_and_not_shown(text: Any) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        WebhookSecret(text)
    assert not text or str(text) not in str(caught.value)


@pytest.mark.parametrize("text", ["x" * 16, "!" * 16, "~" * 16])
def test_sixteen_printable_characters_are_a_secret(text: str) -> None:
    assert WebhookSecret(text).verify_token(text)


def test_the_repr_shows_neither_secret_nor_delivery() -> None:
    assert repr(SECRET) == "WebhookSecret()"
    assert repr(signed()) == repr(Delivery(token=SECRET.text)) == "Delivery()"


def test_an_empty_delivery_is_rejected() -> None:
    assert Delivery() == Delivery({}, b"", None)
    assert not WebhookSecret("~" * 16).verify(Delivery(), NOW)


def test_a_delivery_is_identified_by_its_header() -> None:
    assert Delivery({"webhook-id": "msg_1"}, BODY).id == "msg_1"
    assert Delivery({"x-github-delivery": "1"}, BODY).id == "1"
    assert Delivery(body=BODY).id is None
