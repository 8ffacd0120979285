"""The receiver in Airflow 3's API server: an application that is mounted below `/techflow`."""

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from techflow_provider.client.webhooks import Delivery
from techflow_provider.webhooks.receiver import (
    BODY_TIMEOUT_SECONDS,
    MAX_BODY_BYTES,
    NO_PROOF,
    Receiver,
    WebhookResponse,
)

# A pool of their own, so that deliveries can't exhaust the threads of Airflow's API.
THREADS = 4
# Deliveries with a proof, be it right or wrong, that one process handles at the same time.
MAX_CONCURRENT_DELIVERIES = 1024
# Bodies that are received at the same time. A further one takes the place of the one that has taken longest so far.
MAX_CONCURRENT_BODIES = 64


def create_app(receiver: Receiver) -> FastAPI:
    """Return an application that passes deliveries to a receiver."""
    # By default, FastAPI would publish a description of the application.
    app = FastAPI(title="TechFlow webhooks", openapi_url=None)
    threads = ThreadPoolExecutor(THREADS, "techflow-webhooks")
    bodies: deque[asyncio.Timeout] = deque()
    slots = asyncio.Semaphore(MAX_CONCURRENT_DELIVERIES)

    @app.post("/webhooks/{conn_id:path}")
    async def receive(conn_id: str, request: Request) -> Response:
        delivery = Delivery(dict(request.headers), token=request.query_params.get("token"))
        if not receiver.proof(delivery):
            return _response(receiver.reject(conn_id, NO_PROOF))
        if slots.locked():
            return _response(WebhookResponse.BUSY)
        async with slots:
            body = await _read_body(request, bodies)
            if isinstance(body, WebhookResponse):
                return _response(body)
            lookup = receiver.look_up(conn_id)
            # A sender that disconnects must not cancel what others wait for.
            await asyncio.wait([asyncio.wrap_future(lookup)])
            loop, complete = asyncio.get_running_loop(), replace(delivery, body=body)
            return _response(await loop.run_in_executor(threads, receiver.decide, conn_id, complete, lookup))

    return app


async def _read_body(request: Request, bodies: deque[asyncio.Timeout]) -> bytes | WebhookResponse:
    body = bytearray()
    if len(bodies) >= MAX_CONCURRENT_BODIES:
        bodies.popleft().reschedule(0)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_SECONDS) as limit:
            bodies.append(limit)
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    return WebhookResponse.TOO_LARGE
    except (TimeoutError, ClientDisconnect):
        return WebhookResponse.TOO_SLOW if limit in bodies else WebhookResponse.BUSY
    finally:
        if limit in bodies:
            bodies.remove(limit)
    return bytes(body)


def _response(response: WebhookResponse) -> Response:
    return JSONResponse(response.body, response.status_code, response.headers)


app: FastAPI = create_app(Receiver())
