"""The receiver in Airflow 3's API server: an application that is mounted below `/techflow`."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from techflow_provider.client.webhooks import Delivery
from techflow_provider.webhooks.receiver import (
    BODY_SECONDS,
    BUSY,
    LONGEST_BODY_BYTES,
    MOST_AT_ONCE,
    TOO_LARGE,
    TOO_SLOW,
    Answer,
    Receiver,
)
from techflow_provider.webhooks.subscribers import find_subscriber

# Threads of its own, so that no flood of webhooks takes those that Airflow's API works with.
THREADS = 2


class _Refused(Exception):  # noqa: N818  # an answer, not an error
    """A body was not read to its end."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.answer = answer


def create_app(receiver: Receiver) -> FastAPI:
    """Return an application that hands deliveries to a receiver."""
    # A FastAPI application describes itself to everybody unless it is told not to.
    app = FastAPI(title="TechFlow webhooks", openapi_url=None)
    threads = ThreadPoolExecutor(THREADS, "techflow-webhooks")
    at_work: set[object] = set()

    async def take(conn_id: str, request: Request) -> Answer:
        delivery = Delivery(dict(request.headers), await _body(request), request.query_params.get("token"))
        return await asyncio.get_running_loop().run_in_executor(threads, receiver.answer, conn_id, delivery)

    @app.post("/webhooks/{conn_id:path}")
    async def receive(conn_id: str, request: Request) -> Response:
        if len(at_work) >= MOST_AT_ONCE:
            return _response(BUSY)
        mark = object()
        at_work.add(mark)
        try:
            return _response(await take(conn_id, request))
        except _Refused as refused:
            return _response(refused.answer)
        finally:
            at_work.discard(mark)

    return app


async def _body(request: Request) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and (len(declared) > len(str(LONGEST_BODY_BYTES)) or int(declared) > LONGEST_BODY_BYTES):
        raise _Refused(TOO_LARGE)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > LONGEST_BODY_BYTES:
                    raise _Refused(TOO_LARGE)
    except (TimeoutError, ClientDisconnect) as error:
        raise _Refused(TOO_SLOW) from error
    return bytes(body)


def _response(answer: Answer) -> Response:
    # After a body that was not read to its end, the connection is of no further use.
    headers = {"connection": "close"} if answer in (TOO_LARGE, TOO_SLOW, BUSY) else {}
    return JSONResponse({"status": answer.word}, answer.status, headers)


app = create_app(Receiver(find_subscriber))
