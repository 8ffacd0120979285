"""The sandbox as a whole: authentication, rate limit, faults and the record around the app."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from email.utils import format_datetime

import httpx

from techflow_provider.sandbox import openapi
from techflow_provider.sandbox.app import App, check_workflow
from techflow_provider.sandbox.control import CONTROL_PREFIX, control
from techflow_provider.sandbox.faults import Fault, Faults
from techflow_provider.sandbox.limits import Window, window
from techflow_provider.sandbox.messages import (
    Answer,
    ApiError,
    Delivery,
    Json,
    Object,
    Pause,
    Request,
    json_answer,
)
from techflow_provider.sandbox.record import Ledger, Record, settled
from techflow_provider.sandbox.settings import Outcome, Settings
from techflow_provider.sandbox.sockets import serve
from techflow_provider.sandbox.state import Event, Execution, Plan, State
from techflow_provider.sandbox.transport import SandboxTransport
from techflow_provider.sandbox.webhooks import Outbox, WebhookDelivery, Webhooks

DOCUMENTED_BASE_URL = "https://api.techflow.com/v2"


@dataclass(kw_only=True, eq=False)
class Sandbox(Settings):
    """A local TechFlow; its parameters are those of `Settings`. Safe to use from many threads.

    `sandbox.transport()` serves httpx clients in-process, `sandbox.serve()` over a socket.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._lock = threading.RLock()
        self.base_url = DOCUMENTED_BASE_URL
        self.on_request: Callable[[Record], None] = lambda _: None
        self._begin()

    def _begin(self) -> None:
        chance = random.Random(self.seed)  # noqa: S311  # ids, not secrets

        def new_id(prefix: str) -> str:
            return f"{prefix}_{chance.getrandbits(48):012x}"

        self.faults = Faults(self.seed)
        self._ledger = Ledger()
        self._outbox = Outbox(self.seed)
        self._told = 0
        self._windows: dict[str, Window] = {}
        self._origin = self.clock.monotonic()
        self._state = State(self.clock, new_id, Plan(self.execution_seconds, self.outcome))
        self._app = App(self._state, self)
        for workflow_id, name in self.workflows_at_start.items():
            self.add_workflow(name, id=workflow_id)

    def reset(self) -> None:
        """Forget everything: workflows, executions, plans, faults, requests and what the rate limit has counted."""
        with self._lock:
            self._begin()

    @property
    def workflows(self) -> tuple[Object, ...]:
        """Copies of all workflows, oldest first, as Get Workflow shows them."""
        with self._lock:
            return tuple(self._state.workflows())

    @property
    def executions(self) -> tuple[Execution, ...]:
        """All executions as they stand now, in the order of their starts, those that the history lacks included."""
        with self._lock:
            return self._state.executions()

    @property
    def events(self) -> tuple[Event, ...]:
        """All changes so far, under the names of the webhook events."""
        with self._lock:
            return self._state.events

    @property
    def deliveries(self) -> tuple[WebhookDelivery, ...]:
        """The webhooks that were answered, that got no answer, and that were lost, in the order of their ends."""
        with self._lock:
            return self._outbox.kept()

    def due_webhooks(self) -> list[tuple[Webhooks, WebhookDelivery]]:
        """Return the webhooks whose time has come, for the sender."""
        with self._lock:
            now = self.clock.monotonic()
            events = self._state.events_since(self._told)
            self._told += len(events)
            if self.webhooks is not None:
                for event in events:
                    self._outbox.add(self.webhooks, event, now)
            return self._outbox.due(now)

    def keep_delivery(self, delivery: WebhookDelivery) -> None:
        """Remember what became of a webhook, for the sender."""
        with self._lock:
            self._outbox.keep(delivery)

    def add_workflow(self, name: str, *, id: str | None = None, **fields: Json) -> str:  # noqa: A002  # the field's name
        """Create a workflow without a request and return its id.

        :raises ApiError: a field has a wrong type
        """
        workflow: Object = {"status": self.status_words.get("active", "active"), **fields, "name": name}
        check_workflow(workflow)
        with self._lock:
            return str(self._state.create_workflow(workflow, id)["id"])

    def start(self, workflow_id: str, payload: Object | None = None) -> Execution:
        """Start an execution without a request, as somebody else with the same account would.

        :raises KeyError: there is no such workflow
        """
        with self._lock:
            return self._state.start(workflow_id, payload)

    def plan(
        self,
        workflow_id: str,
        *,
        seconds: float | None = None,
        outcome: Outcome | None = None,
        error: str | None = None,
    ) -> None:
        """Say how the future executions of a workflow go; what is None stays with the sandbox's settings.

        :raises SettingError: a value can't be used
        """
        self.keep_plan(workflow_id, Plan(seconds, outcome, error))

    def keep_plan(self, workflow_id: str, plan: Plan) -> Plan:
        """Say how the future executions of a workflow go, and return the plan."""
        with self._lock:
            self._state.plan(workflow_id, plan)
        return plan

    def finish(self, execution_id: str, *, outcome: Outcome | None = None, error: str | None = None) -> Execution:
        """End a running execution now.

        :raises KeyError: there is no such execution
        :raises SettingError: it is already over, or the outcome is unknown
        """
        with self._lock:
            return self._state.finish(execution_id, outcome, error)

    @property
    def requests(self) -> tuple[Record, ...]:
        """The requests that arrived below the base URL, in the order of arrival."""
        with self._lock:
            return self._ledger.records()

    def count(self, method: str | None = None, path: str | None = None, status: int | None = None) -> int:
        """Return how many requests have a method, a path and a status, each when given.

        :param path: a path below the base URL; `*` stands for one part of it, `**` for any number
        """
        with self._lock:
            return self._ledger.count(method, path, status)

    def counts(self) -> tuple[tuple[str, str, int | None, int], ...]:
        """Return method, path, status and number of the requests of each kind."""
        with self._lock:
            return tuple(self._ledger.counts())

    def transport(self) -> httpx.MockTransport:
        """Return a transport for `httpx.Client` and `httpx.AsyncClient` that reaches the sandbox in-process."""
        return SandboxTransport(self.handle, self.clock)

    def serve(self, host: str = "127.0.0.1", port: int = 0) -> AbstractContextManager[str]:
        """Serve over a socket while the context lasts; it gives the base URL, which is also kept in `base_url`.

        :param port: 0 takes a free one
        :raises OSError: the port is taken
        """
        return serve(self, host, port)

    def handle(self, request: Request) -> Generator[Pause, None, Delivery]:
        """Carry out one request; the time that it yields is the transport's to let pass."""
        special = self._special(request)
        if special is not None:
            return self.stamped(Delivery(special))
        key = self._accepted_key(request)
        with self._lock:
            record = Record(self.clock.now(), request.method, request.path, key is not None)
            number = self._ledger.arrive(record)
            refusal = self._refusal(key)
            fault = None if refusal else self.faults.draw(request.method, request.path)
        delivery = Delivery(refusal) if refusal else (yield from self._carry_out(request, fault))
        self._settle(number, settled(record, delivery.status))
        return self.stamped(delivery)

    def _special(self, request: Request) -> Answer | None:
        if request.target.startswith(CONTROL_PREFIX):
            return control(self, request)
        if request.target == "/openapi.json" and request.method == "GET":
            return json_answer(openapi.document())
        return None

    def _accepted_key(self, request: Request) -> str | None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        return key if scheme == "Bearer" and key in self.api_keys else None

    def _refusal(self, key: str | None) -> Answer | None:
        if key is None:
            message = "the header must be Authorization: Bearer, followed by a valid API key"
            return ApiError(401, message, {"www-authenticate": "Bearer"}).answer()
        if key not in self._windows:
            self._windows[key] = window(self.algorithm, self.limit, self.period_seconds, self.burst, self._origin)
        wait = self._windows[key].take(self.clock.monotonic())
        return self._rate_limited(wait) if wait > 0 else None

    def _rate_limited(self, wait: float) -> Answer:
        headers = {"retry-after": str(math.ceil(wait))}
        if self.retry_after == "date":
            # A date has no fractions, so the next full second is the first that is late enough.
            at = self.clock.now() + timedelta(seconds=wait + 1)
            headers = {"retry-after": format_datetime(at, usegmt=True)}
        message = f"more than {self.limit} requests in {self.period_seconds:g} seconds"
        return ApiError(429, message, headers if self.retry_after else None).answer()

    def _carry_out(self, request: Request, fault: Fault | None) -> Generator[Pause, None, Delivery]:
        if fault is None:
            return Delivery(self._act(request))
        if fault.kind != "hang":
            return fault.deliver(self._act(request) if fault.acts else Answer(200))
        if not fault.acts:
            yield Pause(fault.hang_seconds)
        answer = self._act(request)
        if fault.acts:
            yield Pause(fault.hang_seconds)
        return Delivery(answer)

    def _act(self, request: Request) -> Answer:
        with self._lock:
            return self._app.answer(request)

    def _settle(self, number: int, record: Record) -> None:
        with self._lock:
            self._ledger.settle(number, record)
        self.on_request(record)

    def stamped(self, delivery: Delivery) -> Delivery:
        """Return a delivery with the Date that every answer has."""
        if delivery.answer is None:
            return delivery
        headers = {**delivery.answer.headers, "date": format_datetime(self.clock.now(), usegmt=True)}
        return replace(delivery, answer=replace(delivery.answer, headers=headers))
