"""Deliveries as other senders prove them: by their own libraries where there are any, else as their docs say."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable
from concurrent.futures import wait
from datetime import UTC, datetime
from threading import Event
from typing import Any

import pytest

from techflow_provider.client import InvalidParameterError
from techflow_provider.client.webhooks import Delivery, WebhookSecret
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.records import Records
from techflow_provider.webhooks.receiver import MAX_LOOKUPS, Receiver, Subscriber

NOW = 1_700_000_000
AT = datetime.fromtimestamp(NOW, UTC)
BODY = '{"event": "execution.completed", "execution_id": "exec_1"}'
SECRET = WebhookSecret.generate()
PLAIN = WebhookSecret("a-plain-secret-of-24-chars")
OTHER = WebhookSecret.generate()


def receiver(secret: WebhookSecret = SECRET) -> Receiver:
    subscriber = Subscriber(secret, Records(MemoryStore(), "one"))
    return Receiver(lambda name: subscriber if name == "one" else None, lambda: NOW, lambda: 0.0)


def status(headers: dict[str, str], secret: WebhookSecret = SECRET, token: str | None = None) -> int:
    lower = {name.lower(): value for name, value in headers.items()}
    return receiver(secret).handle("one", Delivery(lower, BODY.encode(), token)).status_code


def standard_webhooks(secret: str) -> dict[str, str]:
    library = pytest.importorskip("standardwebhooks")
    signature = library.Webhook(secret).sign("msg_1", AT, BODY)
    return {"webhook-id": "msg_1", "webhook-timestamp": str(NOW), "webhook-signature": signature}


def svix(secret: str) -> dict[str, str]:
    library = pytest.importorskip("svix.webhooks")
    signature = library.Webhook(secret).sign("msg_1", AT, BODY)
    return {"svix-id": "msg_1", "svix-timestamp": str(NOW), "svix-signature": signature}


def github(secret: str) -> dict[str, str]:
    digest = hmac.new(secret.encode(), BODY.encode(), hashlib.sha256).hexdigest()
    return {"X-GitHub-Delivery": "72d3162e", "X-Hub-Signature-256": f"sha256={digest}"}


def stripe(secret: str, at: int = NOW) -> dict[str, str]:
    digest = hmac.new(secret.encode(), f"{at}.{BODY}".encode(), hashlib.sha256).hexdigest()
    return {"Stripe-Signature": f"t={at},v1={'0' * 64},v1={digest},v0=6ffbb5"}


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"bearer {secret}"}


SENDERS: dict[str, Callable[[str], dict[str, str]]] = {
    "standard webhooks": standard_webhooks,
    "svix": svix,
    "github": github,
    "stripe": stripe,
    "bearer": bearer,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sender", SENDERS.values(), ids=SENDERS)
def test_a_delivery_of_each_sender_is_accepted_with_the_right_secret_only(sender):
    assert status(sender(SECRET.text)) == 200
    assert status(sender(OTHER.text)) == 401


@pytest.mark.parametrize("sender", [github, stripe, bearer])
def test_a_secret_of_plain_text_suits_senders_that_use_its_text(sender):
    assert status(sender(PLAIN.text), PLAIN) == 200


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sender", SENDERS.values(), ids=SENDERS)
def test_while_a_secret_is_replaced_the_new_and_the_old_one_are_accepted(sender):
    both = WebhookSecret(f"{SECRET.text} {OTHER.text}")
    assert status(sender(SECRET.text), both) == status(sender(OTHER.text), both) == 200
    assert status(sender(WebhookSecret.generate().text), both) == 401
    with pytest.raises(InvalidParameterError, match="3 secrets"):
        WebhookSecret(f"{both.text} {PLAIN.text}")


def test_a_signature_with_a_time_is_valid_for_five_minutes():
    assert status(stripe(SECRET.text, NOW - 300)) == 200
    assert status(stripe(SECRET.text, NOW - 301)) == 401


@pytest.mark.parametrize("value", [PLAIN.text, github(PLAIN.text)["X-Hub-Signature-256"]])
def test_a_header_of_ones_own_holds_the_secret_or_a_signature_of_the_body(monkeypatch, value):
    headers = {"X-TechFlow-Proof": value}
    assert status(headers, PLAIN) == 401
    monkeypatch.setenv("AIRFLOW__TECHFLOW__WEBHOOK_TOKEN_HEADER", "X-TechFlow-Proof")
    assert status(headers, PLAIN) == 200
    assert status(headers, OTHER) == 401


def test_tokens_in_urls_can_be_refused(monkeypatch):
    assert status({}, PLAIN, PLAIN.text) == 200
    monkeypatch.setenv("AIRFLOW__TECHFLOW__WEBHOOK_URL_TOKENS", "False")
    assert status({}, PLAIN, PLAIN.text) == 401
    assert status(bearer(PLAIN.text), PLAIN) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"x-hub-signature-256": "sha256=xyz"},
        {"x-hub-signature-256": "sha256=" + "0" * 63},
        {"stripe-signature": f"t={NOW}"},
        {"stripe-signature": f"t={NOW - 900},v1={'0' * 64}"},
        {"stripe-signature": "," * 5000},
        {"authorization": "Basic dXNlcjpwYXNz"},
        {"authorization": "Bearer "},
        {"webhook-id": "m", "webhook-timestamp": str(NOW), "webhook-signature": "v1,AAAA"},
        {"svix-id": "m", "svix-timestamp": str(NOW - 900), "svix-signature": SECRET.sign("m", NOW - 900, b"")},
        {},
    ],
)
def test_a_delivery_without_a_well_formed_and_recent_proof_causes_no_lookup(headers):
    def find(_: str) -> Subscriber:
        raise AssertionError

    assert Receiver(find, lambda: NOW, lambda: 0.0).handle("one", Delivery(headers, b"")).status_code == 401


@pytest.mark.parametrize("delivery_id", ["\ud800", "\x00", "\udfff\x1b[31m"])
def test_an_id_that_no_database_stores_is_accepted(delivery_id):
    own = receiver()
    for expected in ("accepted", "duplicate"):
        delivery = Delivery({"webhook-id": delivery_id}, b"{}", SECRET.text)
        assert own.handle("one", delivery).body == {"status": expected}


def test_while_a_connection_cannot_be_looked_up_its_deliveries_are_to_be_sent_again():
    def find(_: str) -> Subscriber:
        raise ConnectionError("the database is starting")

    assert Receiver(find, lambda: NOW, lambda: 0.0).handle("one", Delivery({}, b"", SECRET.text)).status_code == 503


def test_forged_deliveries_whose_lookups_hang_delay_no_genuine_one():
    subscriber, release = Subscriber(SECRET, Records(MemoryStore(), "one")), Event()

    def find(name: str) -> Subscriber | None:
        if name == "one":
            return subscriber
        release.wait()
        return None

    own = Receiver(find, lambda: NOW, lambda: 0.0)
    genuine = Delivery({}, b"", SECRET.text)
    guesses = [own.look_up(f"guess-{number}") for number in range(MAX_LOOKUPS - 1)]
    try:
        # The first one of a fresh process.
        assert own.handle("one", genuine).status_code == 200
        guesses += [own.look_up(f"guess-{number}") for number in range(MAX_LOOKUPS - 1, 2 * MAX_LOOKUPS)]
        assert own.handle("one", genuine).status_code == 200
        assert own.handle("another", genuine).status_code == 503
    finally:
        release.set()
    wait(guesses)
    assert sum(guess.exception() is not None for guess in guesses) == MAX_LOOKUPS


def test_one_lookup_serves_all_deliveries_that_wait_for_it():
    release, names = Event(), []

    def find(name: str) -> Any:
        names.append(name)
        release.wait()

    own = Receiver(find, lambda: NOW, lambda: 0.0)
    lookups = {own.look_up("one") for _ in range(50)}
    release.set()
    wait(lookups)
    assert (len(lookups), names) == (1, ["one"])


def test_rejected_deliveries_are_logged_once_a_minute_with_their_number_and_without_their_secret(caplog):
    seconds = 100.0
    own = Receiver(lambda _: None, lambda: NOW, lambda: seconds)
    with caplog.at_level(logging.WARNING, logger="techflow_provider.webhooks.receiver"):
        for _ in range(5):
            own.handle("one\x1b[31m", Delivery({}, b"", SECRET.text))
        seconds += 60
        own.handle("one", Delivery())
    first, second = caplog.messages
    assert first.startswith("Rejected 1 webhook; the last one for connection 'one\\x1b[31m': there is no such")
    assert second.startswith("Rejected 5 webhooks; the last one for connection 'one': it has no secret")
    assert SECRET.text not in caplog.text
