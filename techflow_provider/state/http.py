"""The store behind Airflow's API server (see `techflow_provider.state_server`), for processes without a database.

Each request is signed with a key that both sides derive from the connection, and so is each response. Requests take the
way that Airflow's own take to the API server, through the environment's proxy if there is one.
"""

from __future__ import annotations

import hmac
import json
import secrets
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar, cast

import httpx

from techflow_provider.state.api import request_bodies
from techflow_provider.state.budget_state import BudgetChange, change_to_dict
from techflow_provider.state.optimistic import (
    IDLE_SECONDS,
    LostReplyError,
    Operation,
    OptimisticStore,
    Reply,
    UnreachableError,
)
from techflow_provider.state.signing import COMPONENT_HEADER, SIGNATURE_HEADER, TOLERANCE_SECONDS, Signer
from techflow_provider.state.store import Change, Entry, StoreError
from techflow_provider.state.wire import build

T = TypeVar("T")

CONNECT_SECONDS = 5.0
# An API server that responds later than this is taken for gone.
RESPONSE_SECONDS = 10.0
UNAUTHORIZED = 401
NO_STATE = (404, 405)


class HttpStore(OptimisticStore):
    """What processes that can reach one of Airflow's API servers share.

    :param url: where the API server serves the state
    :param signer: signs the requests
    :param renew: returns what signs them from now on, when the server has refused a signature
    :param verify: the `verify` of an httpx client
    :param component: this process (see `Component.to_text`), which the API server reports to the store
    :param transport: an httpx transport, for tests
    :param clock: seconds to use in place of the store's clock, for tests
    """

    def __init__(
        self,
        url: str,
        signer: Signer,
        renew: Callable[[], Signer],
        verify: ssl.SSLContext | bool = True,
        *,
        component: str = "",
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(url, clock)
        self._url = f"{url.rstrip('/')}/"
        self._signer = signer
        self._renew = renew
        self._verify = verify
        self._transport = transport
        self._component = component

    def update(self, namespace: str, name: str, change: Change[T]) -> T:
        """Read an entry, decide and write it in one atomic step, and return the change's result."""
        if isinstance(change, BudgetChange):
            operation = {"namespace": namespace, "name": name, **change_to_dict(change)}
            return cast("T", self._run([operation], partial(build, change.result))[0])
        return super().update(namespace, name, change)

    def exchange(self, operations: Sequence[Operation]) -> list[Reply]:
        """Carry out operations, in one request unless they are too many or too long for it."""
        sent_at = time.monotonic()
        replies = self._run([asdict(each) for each in operations], partial(build, Reply))
        if not replies[0].done:
            self.set_clock(replies[0].now, sent_at)
        return replies

    def entries(self, namespace: str, prefix: str = "") -> list[Entry]:
        """Return the entries whose names begin with a prefix, by name."""
        found: tuple[Entry, ...]
        (found,) = self._run([{"namespace": namespace, "prefix": prefix}], partial(build, tuple[Entry, ...]))
        return list(found)

    def connect(self) -> httpx.Client:
        """Return a client, which connects when it is used."""
        return httpx.Client(
            verify=self._verify,
            transport=self._transport,
            # Most responses are short; compressing the others would cost the API server more than it saves.
            headers={COMPONENT_HEADER: self._component, "accept-encoding": "identity"},
            timeout=httpx.Timeout(RESPONSE_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(keepalive_expiry=IDLE_SECONDS),
        )

    def release(self) -> None:
        """Leave it to httpx, which doesn't use a connection again that was idle."""

    def _run(self, operations: Sequence[Mapping[str, Any]], read: Callable[[Any], T]) -> list[T]:
        results: list[T] = []
        for body, count in request_bodies(operations):
            content = self._send(body)
            try:
                batch = [read(each) for each in json.loads(content)["results"]]
            except (ValueError, KeyError, TypeError, IndexError):
                batch = []
            if len(batch) != count:
                raise StoreError(f"{self.location}: expected the results of {count} operations, got {content[:200]!r}")
            results += batch
        return results

    def _send(self, body: bytes) -> bytes:
        """Send a request, again with what the connection says now if it is refused, and return the response's body."""
        for is_last in (False, True):
            signer, nonce = self._signer, secrets.token_hex(16)
            response = self._post(body, signer.headers(body, time.time(), nonce))
            if response.status_code != UNAUTHORIZED:
                return self._checked(response, signer.response(nonce, response.content))
            if not is_last:
                self._signer = self._renew()
        ahead = _seconds_ahead(response)
        message = (
            f"its clock and this host's differ by {abs(ahead):.0f} s, and more than a minute isn't accepted: "
            "synchronise the clocks (NTP)"
            if abs(ahead) > TOLERANCE_SECONDS
            else "the API server does not accept the connection's API key, or [techflow] state_secret where it is set, "
            "as proof: it may know another one, or none under this connection's id. Set [techflow] state_secret to the "
            "same text on both sides where it can't know the connection"
        )
        raise StoreError(f"{self.location}: {message}")

    def _post(self, body: bytes, headers: dict[str, str]) -> httpx.Response:
        try:
            response: httpx.Response = self.client().post(self._url, content=body, headers=headers)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.PoolTimeout) as error:
            raise UnreachableError(f"{self.location}: {type(error).__name__}: {error}") from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise LostReplyError(f"{self.location}: {type(error).__name__}: {error}") from error
        return response

    def _checked(self, response: httpx.Response, signature: str) -> bytes:
        content = response.content
        if response.is_success and hmac.compare_digest(response.headers.get(SIGNATURE_HEADER, ""), signature):
            return content
        if response.is_success or response.status_code in NO_STATE or response.is_redirect:
            message = (
                f"no state is served there (status {response.status_code}): the API server needs this package, and its "
                "`core` app; with servers split by --apps, set [techflow] state_url to the URL of one with that app, "
                "followed by /techflow/state"
            )
            raise StoreError(f"{self.location}: {message}")
        # A gateway in between may respond after the request was carried out.
        kind = LostReplyError if response.is_server_error else StoreError
        raise kind(f"{self.location}: status {response.status_code}: {response.text[:200]!r}")


def _seconds_ahead(response: httpx.Response) -> float:
    """Return how far this host's clock is ahead of the server's; 0 where the response doesn't say it."""
    try:
        return time.time() - parsedate_to_datetime(response.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return 0.0
