"""What a webhook is answered, whichever web framework it came through: it is checked, and rings the bell.

A webhook decides nothing. A genuine one lets those who wait know that they may look; a forged one costs a comparison.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from techflow_provider.client.webhooks import Delivery, Hint, WebhookSecret
from techflow_provider.state.records import Records
from techflow_provider.state.store import StoreError

log = logging.getLogger(__name__)

# What is documented of the six events fits many times; more is not read.
LONGEST_BODY_BYTES = 64 * 1024
# How long a body may take to arrive, however steadily it drips.
BODY_SECONDS = 5.0
# Deliveries that one process works on at the same time.
MOST_AT_ONCE = 64
# As Airflow has it.
CONNECTION_ID = re.compile(r"[\w#!()\-.:/\\]{1,250}")
# A changed secret is in force after this time.
REMEMBER_SECONDS = 30.0
REMEMBERED_STRANGERS = 1000
# Look-ups of names that are not known, in one process: who tries names must not keep the database busy.
STRANGERS_PER_SECOND = 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What the sender is told.

    :param status: HTTP status code
    :param word: the same in a word
    """

    status: int
    word: str


ACCEPTED = Answer(200, "accepted")
REPEATED = Answer(200, "repeated")
REFUSED = Answer(401, "refused")
OFF = Answer(404, "off")
TOO_SLOW = Answer(408, "too slow")
TOO_LARGE = Answer(413, "too large")
BUSY = Answer(503, "busy")


@dataclass(frozen=True, slots=True)
class Subscriber:
    """What a connection says about its webhooks.

    :param secret: None while the receiver is off for it
    :param records: where the bell is that its waits listen to
    """

    secret: WebhookSecret | None = field(repr=False)
    records: Records = field(repr=False)


class Receiver:
    """Answers deliveries; safe to use from many threads, one per process.

    :param find: looks a connection of the type `techflow` up; None for every other name
    :param now: seconds since 1970
    :param clock: monotonic seconds
    """

    def __init__(
        self,
        find: Callable[[str], Subscriber | None],
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._subscribers = _Subscribers(find, clock)
        # Compared with where there is no secret, so that the time an answer takes tells nothing.
        self._decoy = WebhookSecret(secrets.token_urlsafe(32))

    def answer(self, conn_id: str, delivery: Delivery) -> Answer:
        """Check a delivery whose body has been read within bounds, and ring where it is genuine.

        Blocks for a look-up of the connection, at most once in 30 seconds, and for the shared state.
        """
        subscriber = self._subscribers.get(conn_id)
        secret = self._decoy if subscriber is None else subscriber.secret
        if secret is None:
            return OFF
        genuine = secret.authenticates(delivery, self._now())
        return _ring(conn_id, subscriber.records, delivery) if genuine and subscriber is not None else REFUSED


def _ring(conn_id: str, records: Records, delivery: Delivery) -> Answer:
    delivery_id = delivery.id
    try:
        if delivery_id is not None and not records.see_delivery(f"{conn_id} {delivery_id}"):
            return REPEATED
        records.notify()
    except StoreError as error:
        log.warning("A webhook for connection %s could not be passed on: %s", conn_id, error)
        return BUSY
    log.info("A webhook arrived for connection %s: %s", conn_id, Hint.read(delivery.body))
    return ACCEPTED


class _Subscribers:
    """The connections that were asked for lately. Names that are none are looked up at a bounded rate."""

    def __init__(self, find: Callable[[str], Subscriber | None], clock: Callable[[], float]) -> None:
        self._find = find
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, Subscriber]] = {}
        self._strangers: OrderedDict[str, float] = OrderedDict()
        self._second = (0, 0)

    def get(self, conn_id: str) -> Subscriber | None:
        """Return what a connection says, as it was 30 seconds ago at the oldest."""
        if CONNECTION_ID.fullmatch(conn_id) is None:
            return None
        with self._lock:
            now = self._clock()
            until, subscriber = self._known.get(conn_id, (0.0, None))
            if subscriber is not None and now < until:
                return subscriber
            if subscriber is None and not self._may_look_up(conn_id, now):
                return None
        return self._keep(conn_id, self._find(conn_id), now + REMEMBER_SECONDS)

    def _may_look_up(self, conn_id: str, now: float) -> bool:
        if now < self._strangers.get(conn_id, 0.0):
            return False
        second, count = self._second
        self._second = (int(now), count + 1 if int(now) == second else 1)
        return self._second[1] <= STRANGERS_PER_SECOND

    def _keep(self, conn_id: str, subscriber: Subscriber | None, until: float) -> Subscriber | None:
        with self._lock:
            self._known.pop(conn_id, None)
            if subscriber is not None:
                self._known[conn_id] = (until, subscriber)
                return subscriber
            self._strangers[conn_id] = until
            if len(self._strangers) > REMEMBERED_STRANGERS:
                self._strangers.popitem(last=False)
            return None
