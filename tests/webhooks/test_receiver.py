"""What a receiver answers, how long it remembers connections, and how often it looks names up."""

from __future__ import annotations

from collections import Counter

import pytest

from techflow_provider.client.webhooks import Delivery, WebhookSecret
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.records import Records
from techflow_provider.state.store import StoreError
from techflow_provider.webhooks.receiver import Answer, Receiver, Subscriber

SECRET = WebhookSecret("secret-of-the-connection")
CHANGED = WebhookSecret("another-secret-0123456789")
GENUINE = Delivery(body=b"{}", token=SECRET.text)
FORGED = Delivery(body=b"{}", token="forged-forged-forged")
ENDED = b'{"event": "execution.completed", "execution_id": "exec_1"}'
NOW = 1_700_000_000.0
ACCEPTED, REPEATED, REFUSED = Answer(200, "accepted"), Answer(200, "repeated"), Answer(401, "refused")
OFF, BUSY = Answer(404, "off"), Answer(503, "busy")


class BrokenStore(MemoryStore):
    """A store that can't be used."""

    def ring(self, name: str) -> int:
        raise StoreError(f"the disk is full: {name}")


class World:
    """Connections by name, a receiver for them, its clocks, and how often each name was looked up."""

    def __init__(self, **secrets: WebhookSecret | None) -> None:
        self.secrets: dict[str, WebhookSecret | None] = secrets
        self.store = MemoryStore()
        self.looked_up: Counter[str] = Counter()
        self.seconds = 100.25
        self.receiver = Receiver(self.find, lambda: NOW, lambda: self.seconds)

    def find(self, conn_id: str) -> Subscriber | None:
        self.looked_up[conn_id] += 1
        known = conn_id in self.secrets
        return Subscriber(self.secrets[conn_id], Records(self.store, conn_id)) if known else None

    def answer(self, conn_id: str = "one", delivery: Delivery = GENUINE) -> Answer:
        return self.receiver.answer(conn_id, delivery)

    def rung(self, conn_id: str = "one") -> int:
        return Records(self.store, conn_id).wakeups()


@pytest.fixture
def world() -> World:
    return World(one=SECRET, off=None)


def test_a_genuine_delivery_rings_the_bell_of_its_connection_alone(world):
    world.secrets["two"] = SECRET
    assert world.answer() == ACCEPTED
    assert (world.rung("one"), world.rung("two")) == (1, 0)


def test_a_signature_is_checked_against_the_time_of_day(world):
    headers = {"webhook-id": "m1", "webhook-timestamp": str(int(NOW))}
    headers["webhook-signature"] = SECRET.sign("m1", int(NOW), ENDED)
    assert world.answer(delivery=Delivery(headers, ENDED)) == ACCEPTED


@pytest.mark.parametrize("conn_id", ["one", "nobody", "", "o ne", "one\n", "x" * 251])
def test_a_forged_one_and_one_for_nobody_are_refused_alike(world, conn_id):
    delivery = FORGED if conn_id == "one" else GENUINE
    assert world.answer(conn_id, delivery) == REFUSED
    assert world.rung() == 0


def test_a_connection_without_a_secret_is_off_for_everybody(world):
    assert world.answer("off") == world.answer("off", FORGED) == OFF


@pytest.mark.parametrize("conn_id", ["", "o ne", "one\n", "x" * 251])
def test_a_name_that_no_connection_can_have_is_not_looked_up(world, conn_id):
    world.answer(conn_id)
    assert not world.looked_up


@pytest.mark.parametrize("conn_id", ["x", "x" * 250, r"a_Z-9#!(b).c:d/e\f"])
def test_every_name_that_airflow_allows_is_looked_up(world, conn_id):
    world.secrets[conn_id] = SECRET
    assert world.answer(conn_id) == ACCEPTED


def test_what_repeats_itself_rings_once_for_each_connection(world):
    world.secrets["two"] = SECRET
    ended = Delivery(body=ENDED, token=SECRET.text)
    assert [world.answer(name, ended) for name in ("one", "one", "two")] == [ACCEPTED, REPEATED, ACCEPTED]
    assert (world.rung("one"), world.rung("two")) == (1, 1)
    # What has no id is never known to be a repetition.
    assert [world.answer(), world.answer()] == [ACCEPTED, ACCEPTED]
    assert world.rung("one") == 3


def test_a_state_that_can_not_be_used_lets_the_sender_try_again(world):
    world.store = BrokenStore()
    assert world.answer() == BUSY


def test_a_connection_is_remembered_for_thirty_seconds(world):
    world.answer()
    world.secrets["one"] = CHANGED
    world.seconds += 29.9
    assert world.answer() == ACCEPTED
    assert world.looked_up["one"] == 1
    world.seconds += 0.1
    assert world.answer() == REFUSED
    assert world.looked_up["one"] == 2
    world.seconds += 29.9
    world.answer()
    assert world.looked_up["one"] == 2


def test_a_name_that_is_none_is_remembered_for_thirty_seconds(world):
    for seconds in (0, 29.9):
        world.seconds += seconds
        assert world.answer("new") == REFUSED
    assert world.looked_up["new"] == 1
    world.secrets["new"] = SECRET
    world.seconds += 0.1
    assert world.answer("new") == ACCEPTED


def test_a_connection_that_is_deleted_is_refused_and_then_known_as_none(world):
    world.answer()
    del world.secrets["one"]
    world.seconds += 30
    assert [world.answer(), world.answer()] == [REFUSED, REFUSED]
    assert world.looked_up["one"] == 2


def test_twenty_names_that_are_none_are_looked_up_in_a_second(world):
    for second in (1, 2):
        for number in range(50):
            world.answer(f"guess-{second}-{number}")
        assert sum(world.looked_up.values()) == 20 * second
        world.seconds += 1


def test_who_tries_names_does_not_keep_a_known_connection_from_being_looked_up_again(world):
    world.answer()
    world.seconds += 30
    for number in range(50):
        world.answer(f"guess-{number}")
    assert world.answer() == ACCEPTED
    assert world.looked_up["one"] == 2


def test_a_thousand_names_that_are_none_are_remembered_and_the_oldest_goes_first(world):
    for number in range(1000):
        world.seconds += number % 20 == 0
        world.answer(f"guess-{number}")
    world.seconds -= 25
    world.answer("guess-0")
    assert world.looked_up["guess-0"] == 1
    world.seconds += 1
    world.answer("one more")
    world.answer("one-more")
    world.answer("guess-1")
    world.answer("guess-0")
    assert (world.looked_up["guess-0"], world.looked_up["guess-1"]) == (2, 1)


def test_neither_secret_nor_state_of_a_connection_is_shown():
    assert repr(Subscriber(SECRET, Records(MemoryStore(), "one"))) == "Subscriber()"
