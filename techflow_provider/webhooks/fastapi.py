"""The receiver in Airflow 3's API server: an application that is mounted below `/techflow`."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from techflow_provider.client.webhooks import Delivery
from techflow_provider.webhooks.receiver import BODY_TIMEOUT_SECONDS, MAX_BODY_BYTES, Receiver, WebhookResponse

# A separate pool, so that a flood of webhooks can't exhaust the threads of Airflow's API.
THREADS = 2
# Deliveries that one process handles at the same time.
MAX_CONCURRENT_DELIVERIES = 64


def create_app(receiver: Receiver) -> FastAPI:
    """Return an application that passes deliveries to a receiver."""
    # By default, FastAPI would publish a description of the application.
    app = FastAPI(title="TechFlow webhooks", openapi_url=None)
    threads = ThreadPoolExecutor(THREADS, "techflow-webhooks")
    concurrent = 0

    @app.post("/webhooks/{conn_id:path}")
    async def receive(conn_id: str, request: Request) -> Response:
        nonlocal concurrent
        if concurrent >= MAX_CONCURRENT_DELIVERIES:
            return _response(WebhookResponse.BUSY)
        concurrent += 1
        try:
            response = await _read_body(request)
            if isinstance(response, bytes):
                delivery = Delivery(dict(request.headers), response, request.query_params.get("token"))
                loop = asyncio.get_running_loop()
                response = await loop.run_in_executor(threads, receiver.handle, conn_id, delivery)
            return _response(response)
        finally:
            concurrent -= 1

    return app


async def _read_body(request: Request) -> bytes | WebhookResponse:
    length = request.headers.get("content-length", "")
    if length.isdigit() and (len(length) > len(str(MAX_BODY_BYTES)) or int(length) > MAX_BODY_BYTES):
        return WebhookResponse.TOO_LARGE
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    return WebhookResponse.TOO_LARGE
    except (TimeoutError, ClientDisconnect):
        return WebhookResponse.TOO_SLOW
    return bytes(body)


def _response(response: WebhookResponse) -> Response:
    return JSONResponse(response.body, response.status_code, response.headers)


app: FastAPI = create_app(Receiver())
