"""Verify webhooks, deduplicate them and wake the waits, whichever web framework received them.

A webhook decides nothing. A genuine one wakes the pollers, which read the truth from the API; a forged one costs a
comparison. Everything without a proof gets one and the same response; where a proof can't be verified now, the response
asks the sender to try again later.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from enum import Enum

from airflow.providers.common.compat.sdk import Stats, conf

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.parsing import counted
from techflow_provider.client.text import get_logger
from techflow_provider.client.webhooks import Delivery, Proof, WebhookSecret
from techflow_provider.hooks.budget import open_records
from techflow_provider.hooks.connection_cache import ConnectionCache, find_connection
from techflow_provider.state.records import Records
from techflow_provider.state.store import StoreError

log: logging.Logger = get_logger(__name__)

# The six documented events need a fraction of this.
MAX_BODY_BYTES = 64 * 1024
# Bounds the time to receive a body, however steadily it arrives.
BODY_TIMEOUT_SECONDS = 5.0
# How many names are looked up at the same time: as many as `ConnectionCache` allows when each takes 0.3 seconds.
MAX_LOOKUPS = 32
# Further threads for names that have received webhooks, so that no guessed name can delay those.
KNOWN_LOOKUP_THREADS = 2
LOG_SECONDS = 60.0
NO_PROOF = "it has no secret in its URL or a header, and no well-formed and recent signature"
OK = 200
NOT_HEARD = "; no poller listens for it: nothing waits, or what waits keeps its state elsewhere (see doctor)"


class WebhookResponse(Enum):
    """The responses to a delivery: the HTTP status code, and the `status` in the JSON body."""

    ACCEPTED = (200, "accepted")
    DUPLICATE = (200, "duplicate")
    UNAUTHORIZED = (401, "unauthorized")
    TOO_SLOW = (408, "too slow")
    TOO_LARGE = (413, "too large")
    BUSY = (503, "busy")

    def __init__(self, status_code: int, status: str) -> None:
        self.status_code = status_code
        self.body: dict[str, str] = {"status": status}
        # A connection can't be reused while a part of a body may be unread.
        self.headers: dict[str, str] = {} if status_code == OK else {"connection": "close"}


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A connection as the receiver needs it.

    :param secret: None while the connection receives no webhooks
    :param records: where its waits observe the wake-up counter
    """

    secret: WebhookSecret | None = field(repr=False)
    records: Records = field(repr=False)


def find_subscriber(conn_id: str) -> Subscriber | None:
    """Return a connection's subscriber; None when it is unknown, of another type, or can't be used."""
    connection = find_connection(conn_id)
    if connection is None:
        return None
    try:
        return Subscriber(connection.webhook_secret, open_records(connection))
    except InvalidParameterError as error:
        log.warning("Webhooks are rejected, since nobody can be woken: %s", error)
        return None


class UndecidedError(Exception):
    """The validity of a delivery can't be determined now."""


class Receiver:
    """Handles deliveries; safe to use from many threads, one per process.

    Whether a delivery offers a proof is known from its headers. Its connection is then looked up in threads that
    nothing else uses, once for all deliveries that wait for it, so that forged ones can't keep a genuine one waiting.

    :param find: returns the subscriber of a connection of the type `techflow`; None for every other name
    :param now: seconds since 1970
    :param clock: monotonic seconds
    """

    def __init__(
        self,
        find: Callable[[str], Subscriber | None] = find_subscriber,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._clock = clock
        self._subscribers = ConnectionCache(find, clock)
        self._lock = threading.Lock()
        self._lookups: dict[str, Future[Subscriber | None]] = {}
        self._threads = ThreadPoolExecutor(MAX_LOOKUPS + KNOWN_LOOKUP_THREADS, "techflow-webhook-lookups")
        # Verified against when there is no secret, so that the response time reveals nothing.
        self._decoy = WebhookSecret.generate()
        self._rejected = 0
        self._logged_at = -math.inf

    def handle(self, conn_id: str, delivery: Delivery) -> WebhookResponse:
        """Verify a delivery, and wake the connection's waits if it is genuine; blocks."""
        if not self.proof(delivery):
            return self.reject(conn_id, NO_PROOF)
        lookup = self.look_up(conn_id)
        wait([lookup])
        return self.decide(conn_id, delivery, lookup)

    def proof(self, delivery: Delivery) -> Proof:
        """Return what a delivery offers as a proof of its origin; its body isn't needed."""
        if not conf.getboolean("techflow", "webhook_url_tokens", fallback=True):
            delivery = replace(delivery, token=None)
        return delivery.proof(self._now(), conf.get("techflow", "webhook_token_header", fallback=""))

    def look_up(self, conn_id: str) -> Future[Subscriber | None]:
        """Return a connection's subscriber as it was at most 30 seconds ago, or will be known soon.

        Its exception means that the connection can't be looked up now.
        """
        with self._lock:
            if conn_id in self._lookups:
                return self._lookups[conn_id]
            if len(self._lookups) >= MAX_LOOKUPS and not self._subscribers.was_known(conn_id):
                refused: Future[Subscriber | None] = Future()
                refused.set_exception(UndecidedError("too many other names are being tried"))
                return refused
            self._lookups[conn_id] = found = self._threads.submit(self._find, conn_id)
        # Outside of the lock, since it runs here if the lookup has ended already.
        found.add_done_callback(lambda _: self._lookups.pop(conn_id, None))
        return found

    def _find(self, conn_id: str) -> Subscriber | None:
        found = self._subscribers.get(conn_id)
        if found is None and not self._subscribers.is_unknown(conn_id):
            raise UndecidedError("too many other names are being tried")
        return found

    def decide(self, conn_id: str, delivery: Delivery, lookup: Future[Subscriber | None]) -> WebhookResponse:
        """Verify a delivery that offers a proof, and wake its connection's waits if it is genuine; blocks.

        :param lookup: has ended
        """
        if error := lookup.exception():
            return self.reject(conn_id, f"it can't be verified now: {error}", WebhookResponse.BUSY)
        subscriber = lookup.result()
        secret = subscriber.secret if subscriber else None
        genuine = (secret or self._decoy).verify_proof(self.proof(delivery), delivery.body)
        if subscriber is None or secret is None:
            return self.reject(conn_id, "there is no such connection, or it has no webhook_secret")
        if not genuine:
            return self.reject(conn_id, "the secret or the signature is wrong")
        return self._notify(conn_id, subscriber.records, delivery)

    def reject(
        self, conn_id: str, reason: str, response: WebhookResponse = WebhookResponse.UNAUTHORIZED
    ) -> WebhookResponse:
        """Return the response to what isn't proved, by default the same to all, and log it now and then."""
        with self._lock:
            self._rejected += 1
            count, due = self._rejected, self._clock() >= self._logged_at + LOG_SECONDS
            if due:
                self._rejected, self._logged_at = 0, self._clock()
        if due:
            log.warning(
                "Rejected %s; the last one for connection %.250r: %s", counted(count, "webhook"), conn_id, reason
            )
        return _count(response)

    def _notify(self, conn_id: str, records: Records, delivery: Delivery) -> WebhookResponse:
        try:
            if delivery.id is not None and not records.see_delivery(f"{conn_id} {delivery.id}"):
                return _count(WebhookResponse.DUPLICATE)
            records.notify()
            heard = "" if records.are_awaited() else NOT_HEARD
        except StoreError as error:
            log.warning("A webhook for connection %s could not wake its waits: %s", conn_id, error)
            return _count(WebhookResponse.BUSY)
        log.info("Received a webhook for connection %s%s", conn_id, heard)
        return _count(WebhookResponse.ACCEPTED)


def _count(response: WebhookResponse) -> WebhookResponse:
    """Count a response in Airflow's metrics; its connection may be anybody's invention, so that isn't a tag."""
    Stats.incr("techflow.webhooks", tags={"status": response.body["status"]})
    return response
