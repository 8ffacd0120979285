"""The hook: from an Airflow connection to a client with its authentication, base URL and rate budget."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import httpx
from airflow.providers.common.compat.sdk import AirflowException

from techflow_provider.client import (
    AsyncClient,
    Client,
    Execution,
    InvalidParameterError,
    RetryPolicy,
    TechFlowError,
    Workflow,
)
from techflow_provider.client.calls import Trigger
from techflow_provider.client.flow import Method
from techflow_provider.client.history import ExecutionSelector, select_workflows
from techflow_provider.client.parsing import Json, counted
from techflow_provider.client.values import Id, Payload, as_id
from techflow_provider.compat import connection_and_extra
from techflow_provider.hooks.budget import open_budget, open_resources
from techflow_provider.hooks.connection import CONNECTION_TYPE, TechFlowConnection
from techflow_provider.hooks.diagnosis import diagnose, uses_proxy
from techflow_provider.hooks.form import FORM_BEHAVIOUR, form_widgets
from techflow_provider.hooks.requests import apply_options, raw_call

if TYPE_CHECKING:
    from airflow.sdk import BaseHook
else:
    # Type checkers don't know the class under this name.
    from airflow.providers.common.compat.sdk import BaseHook

# A person waits for the result of a connection's test.
TEST_SECONDS = 15.0


class TechFlowHook(BaseHook):
    """Call TechFlow with the key, the base URL and the rate budget of an Airflow connection.

    Every method raises a `TechFlowError`; none of them shows the API key. ::

        execution = TechFlowHook().trigger_workflow("wf_123", {"day": "2026-01-01"})

    >>> hook = TechFlowHook("techflow_default")
    >>> execution = hook.trigger_workflow("wf_123")
    >>> hook.wait_for_execution(execution.id, timeout=3600)

    :param techflow_conn_id: connection of the type `techflow`: the password is the API key (Authentication), the host
        the base URL (Base URL)
    :param method: the HTTP method of `run`
    """

    conn_name_attr = "techflow_conn_id"
    default_conn_name = "techflow_default"
    conn_type = CONNECTION_TYPE
    hook_name = "TechFlow"

    def __init__(self, techflow_conn_id: str = default_conn_name, method: Method = "POST", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.techflow_conn_id = techflow_conn_id
        self.method = method

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the form's additional fields, for Airflow before 3.2."""
        return form_widgets()

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the labels and placeholders of the standard fields, for Airflow before 3.2."""
        return FORM_BEHAVIOUR

    @cached_property
    def connection(self) -> TechFlowConnection:
        """The connection's content, read once."""
        # In no variable of this frame, which an error would show to crash reporters with the key.
        return TechFlowConnection.read(self.get_connection(self.techflow_conn_id))

    async def aget_techflow_connection(self) -> TechFlowConnection:
        """Read the connection without blocking the event loop."""
        return TechFlowConnection.read(*await connection_and_extra(self.techflow_conn_id, self))

    @cached_property
    def _client(self) -> Client:
        return Client(**open_resources(self.connection))

    def get_conn(self) -> Client:
        """Return the client, created once per hook."""
        return self._client

    async def aget_conn(self) -> AsyncClient:
        """Return a new client for the running event loop; close it with `await client.aclose()` or `async with`."""
        return AsyncClient(**open_resources(await self.aget_techflow_connection()))

    def list_workflows(self, status: str | None = None, name: Id | None = None) -> list[Workflow]:
        """Return all workflows, or those with a given status or name (List Workflows)."""
        return select_workflows(self.get_conn().workflows.list(), status, name)

    def get_workflow(self, workflow_id: Id) -> Workflow:
        """Return one workflow (Get Workflow)."""
        return self.get_conn().workflows.get(workflow_id)

    def create_workflow(
        self,
        name: Id,
        description: Id | None = None,
        triggers: Sequence[Trigger] = (),
        known: Collection[str] | None = None,
    ) -> Workflow:
        """Create a workflow (Create Workflow); each call creates another. If the response is lost, the list is read.

        :param known: the ids of the workflows that already had the name; without them, a new workflow cannot be
            identified after a lost response
        """
        return self.get_conn().workflows.create(name, description, triggers, known)

    def update_workflow(
        self,
        workflow_id: Id,
        name: Id | None = None,
        description: Id | None = None,
        triggers: Sequence[Trigger] | None = None,
    ) -> Workflow:
        """Read a workflow, change the given fields, and write all of it (Get Workflow, Update Workflow)."""
        return self.get_conn().workflows.update(workflow_id, name, description, triggers)

    def delete_workflow(self, workflow_id: Id) -> None:
        """Delete a workflow permanently (Delete Workflow)."""
        self.get_conn().workflows.delete(workflow_id)

    def trigger_workflow(
        self, workflow_id: Id, payload: Payload | None = None, within_seconds: float = math.inf
    ) -> Execution:
        """Start an execution (Trigger Execution); each call starts another.

        :param within_seconds: how long to wait for a slot in the rate budget
        :raises BudgetTimeoutError: no slot was free in time; nothing was started
        :raises RateLimitError: TechFlow responded with 429, and the time was too short to retry; nothing was started
        """
        return self.get_conn().workflows.execute(workflow_id, payload, within_seconds)

    def list_executions(self, workflow_id: Id | None = None, status: str | None = None) -> list[Execution]:
        """Return the execution history, or the part with a given workflow or status (List Executions)."""
        return self.get_conn().executions.list(workflow_id, status)

    def get_execution(self, execution_id: Id) -> Execution:
        """Return one execution, found in the history (List Executions)."""
        return self.get_conn().executions.get(execution_id)

    def wait_for_execution(
        self, execution_id: Id, poll_interval: float = 5.0, timeout: float | None = None
    ) -> Execution:
        """Wait until an execution has completed or failed, and return it (List Executions).

        :param poll_interval: seconds between two polls
        :param timeout: seconds to wait at most; None waits for ever
        """
        return self.get_conn().executions.wait(
            ExecutionSelector(as_id("execution_id", execution_id)), poll_interval, timeout
        )

    async def await_execution(
        self,
        execution_id: Id,
        poll_interval: float = 5.0,
        timeout: float | None = None,  # noqa: ASYNC109  # its error says more than a cancellation
    ) -> Execution:
        """Wait in the event loop until an execution has completed or failed (List Executions)."""
        async with await self.aget_conn() as client:
            return await client.executions.wait(
                ExecutionSelector(as_id("execution_id", execution_id)), poll_interval, timeout
            )

    def run(
        self,
        endpoint: str | None = None,
        data: Mapping[str, Any] | str | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        extra_options: Mapping[str, Any] | None = None,
        json: Json = None,
    ) -> httpx.Response:
        """Send any request below the base URL, as `HttpHook.run` does, with the connection's key and budget.

        :param endpoint: path below the base URL
        :param data: the query of a GET, otherwise the body: a dict is sent as a form
        :param headers: additional headers
        :param extra_options: `timeout` in seconds, `verify` as in the connection, `check_response=False` to return a
            response other than 2xx instead of raising an error
        :param json: a body to send as JSON
        :raises InvalidParameterError: an option isn't supported
        :raises TechFlowError: the response isn't a 2xx, or there is none
        """
        settings, check_response = apply_options(extra_options or {}, self.connection.settings)
        call = raw_call(self.method, endpoint or "/", data, headers, json, any_status=not check_response)
        if settings == self.connection.settings:
            return self.get_conn().send(call)
        with Client(settings=settings, budget=self.get_conn().budget) as client:
            return client.send(call)

    def test_connection(self) -> tuple[bool, str]:
        """List the workflows once, and return a human-readable result with a remedy."""
        try:
            settings = replace(self.connection.settings, deadline_seconds=TEST_SECONDS)
        except InvalidParameterError as error:
            # Airflow tests a connection under a temporary id, which would confuse the user.
            field = error.parameter.removeprefix(f"connection {self.techflow_conn_id!r}, ")
            return False, str(diagnose(replace(error, parameter=field)))
        except AirflowException as error:
            return False, str(error)
        try:
            budget, once = open_budget(self.connection), RetryPolicy(max_attempts=1)
            with Client(settings=settings, budget=budget, retry=once) as client:
                count = len(client.workflows.list())
        except TechFlowError as error:
            return False, str(diagnose(error, through_proxy=uses_proxy(settings)))
        connected = f"Connected to {settings.base_url}: the API key can access {counted(count, 'workflow')}"
        return True, "; ".join((connected, *self.connection.problems))
