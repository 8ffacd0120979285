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

# A separate pool for genuine deliveries, so that nothing else can exhaust it, nor they the threads of Airflow's API.
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
    concurrent = 0

    @app.post("/webhooks/{conn_id:path}")
    async def receive(conn_id: str, request: Request) -> Response:
        nonlocal concurrent
        delivery = Delivery(dict(request.headers), token=request.query_params.get("token"))
        if not receiver.proof(delivery):
            return _response(receiver.reject(conn_id, NO_PROOF))
        if concurrent >= MAX_CONCURRENT_DELIVERIES:
            return _response(WebhookResponse.BUSY)
        concurrent += 1
        try:
            return _response(await handle(conn_id, request, delivery))
        finally:
            concurrent -= 1

    async def handle(conn_id: str, request: Request, delivery: Delivery) -> WebhookResponse:
        proof, body = receiver.proof(delivery), await _read_body(request, bodies)
        if isinstance(body, WebhookResponse):
            return body
        delivery = replace(delivery, body=body)
        lookup = receiver.look_up(conn_id)
        if not lookup.done():
            # A sender that disconnects must not cancel what others wait for.
            await asyncio.wait([asyncio.wrap_future(lookup)])
        subscriber = receiver.verify(conn_id, delivery, proof, lookup)
        if isinstance(subscriber, WebhookResponse):
            return subscriber
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(threads, receiver.notify, conn_id, subscriber, delivery)

    return app


async def _read_body(request: Request, bodies: deque[asyncio.Timeout]) -> bytes | WebhookResponse:
    length = request.headers.get("content-length", "")
    # "²" is a digit, but not a part of a number.
    if length.isdecimal() and (len(length) > len(str(MAX_BODY_BYTES)) or int(length) > MAX_BODY_BYTES):
        return WebhookResponse.TOO_LARGE
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
