"""The state's API in this process, for tests: a client's transport that runs the application."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import httpx

from techflow_provider.state.signing import DEPLOYMENT, Signer, derive_key
from techflow_provider.state.store import Store
from techflow_provider.state_server.access import Access, Gate
from techflow_provider.state_server.app import StateApp

URL = "http://api-server.example/techflow/state"
DEPLOYMENT_SIGNER = Signer(DEPLOYMENT, derive_key("the-secret-of-the-deployment", DEPLOYMENT))
DEPLOYMENT_ACCESS = {DEPLOYMENT: Access(DEPLOYMENT_SIGNER, None)}


class AppTransport(httpx.BaseTransport):
    """Hands requests to an application, and counts them.

    :param app: the application
    """

    def __init__(self, app: StateApp) -> None:
        self._transport = httpx.ASGITransport(app)
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Run the application in an event loop of its own."""
        self.requests.append(request)
        return asyncio.run(self._handle(request))

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        response = await self._transport.handle_async_request(request)
        content = await response.aread()
        return httpx.Response(response.status_code, headers=response.headers, content=content)


def serve(
    store: Store,
    accesses: Mapping[str, Access] = DEPLOYMENT_ACCESS,
    now: Callable[[], float] = time.time,
) -> AppTransport:
    """Return a transport to the state's API over a store."""
    return AppTransport(StateApp(lambda: store, Gate(accesses.get, now)))
