"""The state's API as an ASGI application: one route, for requests that are signed with a connection's API key.

Airflow mounts it without authentication of its own. What has no proof gets one and the same response, before its body
is read.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.text import get_logger
from techflow_provider.hooks.state import served_store
from techflow_provider.state import identity
from techflow_provider.state.api import MAX_BODY_BYTES, MAX_OPERATIONS, carry_out
from techflow_provider.state.components import Component, report_now_and_then
from techflow_provider.state.records import WAKEUPS
from techflow_provider.state.signing import COMPONENT_HEADER, SIGNATURE_HEADER, Proof
from techflow_provider.state.store import Store, StoreError
from techflow_provider.state_server.access import Access, Gate, find_access

log: logging.Logger = get_logger(__name__)

# Bounds the time to receive a body, however steadily it arrives.
BODY_TIMEOUT_SECONDS = 5.0
# Operations that one process carries out at the same time, each with a connection to the database.
THREADS = 4
# Connections that are looked up at the same time, by threads of their own: a lookup may be slow.
LOOKUP_THREADS = 2
MAX_CONCURRENT = 256


def refuse(status: int, reason: str) -> Response:
    """Return a response after which the connection can't be reused, since a part of a body may be unread."""
    return JSONResponse({"error": reason}, status, {"connection": "close"})


class StateApp:
    """Carries out operations on a store for those who prove that they know a connection's API key.

    :param open_state: returns the store, when it is first used
    :param gate: verifies who sends requests
    """

    def __init__(self, open_state: Callable[[], Store], gate: Gate) -> None:
        self._open_state = open_state
        self._gate = gate
        self._threads = ThreadPoolExecutor(THREADS, "techflow-state")
        self._lookups = ThreadPoolExecutor(LOOKUP_THREADS, "techflow-state-lookup")
        self._concurrent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] == "http":
            response = await self._respond(Request(scope, receive))
            await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        proof = Proof.read(request.headers) if request.method == "POST" else None
        access = await self._access(proof) if proof else None
        if proof is None or access is None:
            return refuse(401, "unauthorized")
        response = await self._handle(proof, access, request)
        response.headers[SIGNATURE_HEADER] = access.signer.response(proof.nonce, bytes(response.body))
        return response

    async def _access(self, proof: Proof) -> Access | None:
        """Return what the sender may use; None for a request without a proof, and for a replay."""
        access = self._gate.recognize(proof)
        if access is None:
            access = await asyncio.get_running_loop().run_in_executor(self._lookups, self._gate.look_up, proof)
        return access if access is not None and self._gate.is_fresh(proof) else None

    async def _handle(self, proof: Proof, access: Access, request: Request) -> Response:
        if self._concurrent >= MAX_CONCURRENT:
            return refuse(503, "busy")
        self._concurrent += 1
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        return refuse(413, f"expected a body of at most {MAX_BODY_BYTES} bytes")
            if not proof.covers(body):
                return refuse(401, "unauthorized")
            act = partial(self._carry_out, access, bytes(body), request.headers.get(COMPONENT_HEADER, ""))
            return await asyncio.get_running_loop().run_in_executor(self._threads, act)
        except TimeoutError:
            return refuse(408, "the body took too long")
        finally:
            self._concurrent -= 1

    def _carry_out(self, access: Access, body: bytes, component: str) -> Response:
        try:
            operations = json.loads(body)["operations"]
            if len(operations) > MAX_OPERATIONS:
                return refuse(400, f"expected at most {MAX_OPERATIONS} operations, got {len(operations)}")
            if not all(map(access.allows, operations)):
                return refuse(403, "expected namespaces of the connection's own account")
            store = self._open_state()
            key, caller = operations[0]["namespace"].partition("/")[0], Component.read(component)
            if caller is not None and key not in (identity.NAMESPACE, WAKEUPS):
                report_now_and_then(store, key, caller)
            return JSONResponse({"results": [carry_out(store, operation) for operation in operations]})
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            return refuse(400, f"{type(error).__name__}: {error}")
        except (StoreError, InvalidParameterError) as error:
            log.warning("An operation on the shared state failed: %s", error)
            return refuse(503, str(error))


app: StateApp = StateApp(served_store, Gate(find_access, time.time))
