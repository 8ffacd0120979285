"""Verify webhooks, deduplicate them and wake the waits, whichever web framework received them.

A webhook decides nothing. A genuine one wakes the pollers, which read the truth from the API; a forged one costs a
comparison.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.text import get_logger
from techflow_provider.client.webhooks import Delivery, Hint, WebhookSecret
from techflow_provider.hooks.budget import open_records
from techflow_provider.hooks.connection_cache import ConnectionCache, find_connection
from techflow_provider.state.records import Records
from techflow_provider.state.store import StoreError

log: logging.Logger = get_logger(__name__)

# Many times what the six documented events need.
MAX_BODY_BYTES = 64 * 1024
# Bounds the time to receive a body, however steadily it arrives.
BODY_TIMEOUT_SECONDS = 5.0


class WebhookResponse(Enum):
    """The responses to a delivery: the HTTP status code, and the `status` in the JSON body."""

    ACCEPTED = (200, "accepted")
    DUPLICATE = (200, "duplicate")
    UNAUTHORIZED = (401, "unauthorized")
    DISABLED = (404, "disabled")
    TOO_SLOW = (408, "too slow")
    TOO_LARGE = (413, "too large")
    BUSY = (503, "busy")

    def __init__(self, status_code: int, status: str) -> None:
        self.status_code = status_code
        self.body: dict[str, str] = {"status": status}
        # A connection can't be reused while a part of a body may be unread.
        self.headers: dict[str, str] = {"connection": "close"} if status_code in (408, 413, 503) else {}


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


class Receiver:
    """Handles deliveries; safe to use from many threads, one per process.

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
        self._subscribers = ConnectionCache(find, clock)
        # Verified against when there is no secret, so that the response time reveals nothing.
        self._decoy = WebhookSecret(secrets.token_urlsafe(32))

    def handle(self, conn_id: str, delivery: Delivery) -> WebhookResponse:
        """Verify a delivery, and wake the connection's waits if it is genuine.

        Blocks while it looks up the connection, at most once in 30 seconds, and uses the shared state.
        """
        subscriber = self._subscribers.get(conn_id)
        secret = self._decoy if subscriber is None else subscriber.secret
        if secret is None:
            return WebhookResponse.DISABLED
        genuine = secret.verify(delivery, self._now())
        if subscriber is None or not genuine:
            return WebhookResponse.UNAUTHORIZED
        return _notify(conn_id, subscriber.records, delivery)


def _notify(conn_id: str, records: Records, delivery: Delivery) -> WebhookResponse:
    delivery_id = delivery.id
    try:
        if delivery_id is not None and not records.see_delivery(f"{conn_id} {delivery_id}"):
            return WebhookResponse.DUPLICATE
        records.notify()
    except StoreError as error:
        log.warning("A webhook for connection %s could not wake its waits: %s", conn_id, error)
        return WebhookResponse.BUSY
    log.info("Received a webhook for connection %s: %s", conn_id, Hint.read(delivery.body))
    return WebhookResponse.ACCEPTED
