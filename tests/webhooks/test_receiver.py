"""How a receiver responds, how long it caches connections, and how often it looks up names."""

from __future__ import annotations

import logging
from collections import Counter
from typing import NoReturn

import pytest

from techflow_provider.client.webhooks import Delivery, WebhookSecret
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.records import Records
from techflow_provider.state.store import StoreError, Write
from techflow_provider.webhooks.receiver import Receiver, Subscriber

SECRET = WebhookSecret("secret-of-the-connection")
CHANGED = WebhookSecret("another-secret-0123456789")
GENUINE = Delivery(body=b"{}", token=SECRET.text)
FORGED = Delivery(body=b"{}", token="forged-forged-forged")
ENDED = b'{"event": "execution.completed", "execution_id": "exec_1"}'
NOW = 1_700_000_000.0
ACCEPTED, DUPLICATE = (200, "accepted"), (200, "duplicate")
UNAUTHORIZED = (401, "unauthorized")
BUSY = (503, "busy")


class BrokenStore(MemoryStore):
    """An unavailable store."""

    def update(self, namespace: str, name: str, change: object) -> NoReturn:
        raise StoreError(f"the disk is full: {namespace}")


class Scene:
    """Connections by name, their receiver, its clocks, and how often each name was looked up."""

    def __init__(self, **secrets: WebhookSecret | None) -> None:
        self.secrets: dict[str, WebhookSecret | None] = secrets
        self.store = MemoryStore()
        self.lookups: Counter[str] = Counter()
        self.seconds = 100.25
        self.receiver = Receiver(self.find, lambda: NOW, lambda: self.seconds)

    def find(self, conn_id: str) -> Subscriber | None:
        self.lookups[conn_id] += 1
        known = conn_id in self.secrets
        return Subscriber(self.secrets[conn_id], Records(self.store, conn_id)) if known else None

    def handle(self, conn_id: str = "one", delivery: Delivery = GENUINE) -> tuple[int, str]:
        response = self.receiver.handle(conn_id, delivery)
        return response.status_code, response.body["status"]

    def wakeups(self, conn_id: str = "one") -> int:
        return Records(self.store, conn_id).wakeups()


@pytest.fixture
def scene() -> Scene:
    return Scene(one=SECRET, off=None)


def test_a_genuine_delivery_wakes_only_the_waits_of_its_connection(scene):
    scene.secrets["two"] = SECRET
    assert scene.handle() == ACCEPTED
    assert (scene.wakeups("one"), scene.wakeups("two")) == (1, 0)


def test_a_delivery_that_no_poller_listens_for_is_logged_as_that(scene, caplog):
    caplog.set_level(logging.INFO)
    assert scene.handle() == ACCEPTED
    assert "no poller listens for it" in caplog.messages[-1]
    scene.store.update("one/waits", "a reader", lambda *_: (Write("{}", 60.0), None))
    assert scene.handle() == ACCEPTED
    assert "no poller" not in caplog.messages[-1]


def test_a_signature_is_verified_against_the_current_time(scene):
    headers = {"webhook-id": "m1", "webhook-timestamp": str(int(NOW))}
    headers["webhook-signature"] = SECRET.sign("m1", int(NOW), ENDED)
    assert scene.handle(delivery=Delivery(headers, ENDED)) == ACCEPTED


@pytest.mark.parametrize("conn_id", ["one", "unknown", "", "o ne", "one\n", "x" * 251])
def test_a_forged_delivery_and_an_unknown_connection_get_the_same_response(scene, conn_id):
    delivery = FORGED if conn_id == "one" else GENUINE
    assert scene.handle(conn_id, delivery) == UNAUTHORIZED
    assert scene.wakeups() == 0


def test_a_connection_without_a_secret_receives_nothing(scene):
    assert scene.handle("off") == scene.handle("off", FORGED) == UNAUTHORIZED


@pytest.mark.parametrize("conn_id", ["", "o ne", "one\n", "x" * 251])
def test_an_invalid_connection_id_is_not_looked_up(scene, conn_id):
    scene.handle(conn_id)
    assert not scene.lookups


@pytest.mark.parametrize("conn_id", ["x", "x" * 250, r"a_Z-9#!(b).c:d/e\f"])
def test_every_connection_id_that_airflow_allows_is_looked_up(scene, conn_id):
    scene.secrets[conn_id] = SECRET
    assert scene.handle(conn_id) == ACCEPTED


def test_a_duplicate_delivery_wakes_once_per_connection(scene):
    scene.secrets["two"] = SECRET
    ended = Delivery({"x-github-delivery": "1"}, ENDED, SECRET.text)
    assert [scene.handle(name, ended) for name in ("one", "one", "two")] == [ACCEPTED, DUPLICATE, ACCEPTED]
    assert (scene.wakeups("one"), scene.wakeups("two")) == (1, 1)
    # Without an id, a delivery can't be recognised as a duplicate.
    assert [scene.handle(), scene.handle()] == [ACCEPTED, ACCEPTED]
    assert scene.wakeups("one") == 3


def test_an_unavailable_state_gives_a_503_so_that_the_sender_retries(scene):
    scene.store = BrokenStore()
    assert scene.handle() == BUSY


def test_a_connection_is_cached_for_thirty_seconds(scene):
    scene.handle()
    scene.secrets["one"] = CHANGED
    scene.seconds += 29.9
    assert scene.handle() == ACCEPTED
    assert scene.lookups["one"] == 1
    scene.seconds += 0.1
    assert scene.handle() == UNAUTHORIZED
    assert scene.lookups["one"] == 2
    scene.seconds += 29.9
    scene.handle()
    assert scene.lookups["one"] == 2


def test_an_unknown_name_is_cached_for_thirty_seconds(scene):
    for seconds in (0, 29.9):
        scene.seconds += seconds
        assert scene.handle("new") == UNAUTHORIZED
    assert scene.lookups["new"] == 1
    scene.secrets["new"] = SECRET
    scene.seconds += 0.1
    assert scene.handle("new") == ACCEPTED


def test_a_deleted_connection_becomes_an_unknown_name(scene):
    scene.handle()
    del scene.secrets["one"]
    scene.seconds += 30
    assert [scene.handle(), scene.handle()] == [UNAUTHORIZED, UNAUTHORIZED]
    assert scene.lookups["one"] == 2


def test_at_most_a_hundred_unknown_names_are_looked_up_per_second_and_the_rest_is_to_be_sent_again(scene):
    for second in (1, 2):
        responses = Counter(scene.handle(f"guess-{second}-{number}") for number in range(150))
        assert responses == {UNAUTHORIZED: 100, BUSY: 50}
        assert sum(scene.lookups.values()) == 100 * second
        scene.seconds += 1


def test_guessed_names_do_not_prevent_the_lookup_of_a_known_connection(scene):
    scene.handle()
    scene.seconds += 30
    for number in range(150):
        scene.handle(f"guess-{number}")
    assert scene.handle() == ACCEPTED
    assert scene.lookups["one"] == 2


def test_a_thousand_unknown_names_are_cached_and_the_oldest_is_dropped_first(scene):
    for number in range(1000):
        scene.seconds += number % 20 == 0
        scene.handle(f"guess-{number}")
    scene.seconds -= 25
    scene.handle("guess-0")
    assert scene.lookups["guess-0"] == 1
    scene.seconds += 1
    scene.handle("one more")
    scene.handle("one-more")
    scene.handle("guess-1")
    scene.handle("guess-0")
    assert (scene.lookups["guess-0"], scene.lookups["guess-1"]) == (2, 1)


def test_the_repr_shows_neither_secret_nor_state():
    assert repr(Subscriber(SECRET, Records(MemoryStore(), "one"))) == "Subscriber()"
