"""Start exactly one execution for a task or a callback of Airflow.

`ExecutionStarter` combines a hook's client with the records of attempts: they are in the state that all processes share
and, on Airflow 3.3 and later, also in the task's own state.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote as percent_encode

from airflow.providers.common.compat.sdk import AirflowFailException, conf

from techflow_provider.client.errors import AmbiguousExecutionError, InvalidParameterError
from techflow_provider.client.flow import Flow
from techflow_provider.client.history import DEFAULT_APPEAR_SECONDS
from techflow_provider.client.parsing import Json, quote
from techflow_provider.compat import deployment_address, state_errors, task_state_store
from techflow_provider.hooks.state import FILE, METADATA, open_state, state_url
from techflow_provider.polling.searches import SharedHistory
from techflow_provider.state.store import StoreError
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.legacy import LegacyState
from techflow_provider.submission.matching import Match, NoMatch
from techflow_provider.submission.model import Attempt, Submission, SubmissionPolicy, Submitter
from techflow_provider.submission.recovery import LostStart
from techflow_provider.submission.start import discard, finish_search, mark_done, resolve, send

if TYPE_CHECKING:
    from airflow.sdk import Context

    from techflow_provider.client import AsyncClient, Client
    from techflow_provider.client.models import Execution
    from techflow_provider.hooks.connection import TechFlowConnection
    from techflow_provider.hooks.techflow import TechFlowHook

T = TypeVar("T")

# Where Airflow reads the fernet key from when it isn't in its configuration file, which a component may have made up.
FERNET_KEYS = tuple(f"AIRFLOW__CORE__FERNET_KEY{suffix}" for suffix in ("", "_CMD", "_SECRET"))
# A state that belongs to one deployment alone.
OWN_STATE_URLS = ("", FILE, METADATA)
# The key of a task's record in its own state, and of the XCom that shows how it got its execution.
START_KEY = "techflow_start"


def submitter_of(context: Context, part: str = "") -> Submitter:
    """Return the running task.

    Airflow raises `max_tries` when a finished task is cleared, and not when it is retried.

    :param part: distinguishes several starts of one task
    """
    ti: Any = context["ti"]
    began = getattr(context["dag_run"], "start_date", None)
    clears = getattr(context["dag_run"], "clear_number", None) or 0
    name = name_of(ti.dag_id, ti.run_id, ti.task_id, ti.map_index, part)
    return Submitter(name, f"{began.isoformat() if began else ''}/{ti.max_tries}", ti.try_number > 1, clears, began)


def name_of(dag_id: str, run_id: str, task_id: str, map_index: int = -1, part: str = "") -> str:
    """Return a submitter's name: the same text in every attempt of one task.

    :param task_id: empty for a callback of a DAG
    :param part: distinguishes several starts of one task, such as a callback's name
    """
    parts = [dag_id, run_id, task_id, str(map_index), *([part] if part else [])]
    return "/".join(map(partial(percent_encode, safe=""), parts))


class AirflowTaskState:
    """A task's record in the state that Airflow 3.3 and later keep for it; it outlives retries, success and clearing.

    :param state: the context's `task_state_store`
    """

    def __init__(self, state: Any) -> None:
        self._state = state

    def read(self) -> Any:
        """Return the value, or None when there is none."""
        return self._call("get", START_KEY)

    def write(self, value: dict[str, Any]) -> None:
        """Write a value in place of the present one."""
        self._call("set", START_KEY, value)

    def drop(self) -> None:
        """Delete the value, if there is one."""
        self._call("delete", START_KEY)

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._state, method)(*arguments)
        except state_errors() as error:
            raise StoreError(f"the state that Airflow keeps for the task: {error}") from error


class FinalAmbiguousExecutionError(AmbiguousExecutionError, AirflowFailException):
    """It cannot be determined what was started, and the task fails without retries (`on_ambiguous="fail"`)."""


class ExecutionStarter:
    """Start one execution for one task or callback. Each method may raise `TechFlowError`.

    :param hook: sends the requests
    :param submitter: who wants the execution, by its name within the deployment
    :param policy: what it wants when something is lost
    :param context: the context of a running task, for its own state in Airflow; a callback has none
    :param connection: the hook's connection where it can't be looked up here, as in an event loop
    :param on_known: called as soon as the execution is known, before that is recorded
    :raises InvalidParameterError: a setting has an unusable value
    """

    xcom_key = START_KEY

    def __init__(
        self,
        hook: TechFlowHook,
        submitter: Submitter,
        policy: SubmissionPolicy | None = None,
        context: Context | None = None,
        connection: TechFlowConnection | None = None,
        *,
        on_known: Callable[[Execution], None] = lambda _: None,
    ) -> None:
        connection = connection or hook.connection
        settings, store = connection.settings, open_state(connection).store
        name, *former = [f"{deployment}/{submitter.name}".removeprefix("/") for deployment in deployments()]
        state = None if context is None else task_state_store(context)
        own_state = None if state is None else AirflowTaskState(state)
        legacy = LegacyState(store, settings.account, submitter.name)
        self._hook = hook
        self._on_known = on_known
        self._polls = SharedHistory(store, settings.account)
        self.policy: SubmissionPolicy = policy or SubmissionPolicy(history_lag_seconds=history_lag())
        self.submitter: Submitter = replace(submitter, name=name)
        self.attempts: AttemptStore = AttemptStore(store, settings.site, name, own_state, former=former, legacy=legacy)

    def start(self, workflow_id: str, payload: Mapping[str, Json] | None = None) -> Submission:
        """Return the execution of an earlier attempt, or start one; once per generation when nobody waits for it."""
        return self.resolve(workflow_id, payload) or self.send(workflow_id, payload)

    async def astart(
        self, client: AsyncClient, workflow_id: str, payload: Mapping[str, Json] | None = None
    ) -> Submission:
        """Like `start`, in an event loop, where a task's own state in Airflow can't be used.

        :param client: what `TechFlowHook.aget_conn` returns
        """
        attempt = self._attempt(client, workflow_id, payload)
        known = await client.run(resolve(attempt))
        return known if known is not None else await client.run(send(attempt))

    def resolve(self, workflow_id: str, payload: Mapping[str, Json] | None = None) -> Submission | None:
        """Return the execution that an earlier attempt has started, or None when a new one is needed."""
        if not self.submitter.is_retry:
            # `send` reads the record right before its request.
            return None
        return self._run(resolve(self._attempt(self._hook.get_conn(), workflow_id, payload)))

    def send(
        self,
        workflow_id: str,
        payload: Mapping[str, Json] | None = None,
        within_seconds: float = math.inf,
        sent: int = 0,
    ) -> Submission:
        """Start an execution, after `resolve` has returned None.

        :param within_seconds: how long to wait for a slot in the rate budget; without one nothing was started
        :param sent: how many requests without effect were sent before
        """
        return self._run(
            send(self._attempt(self._hook.get_conn(), workflow_id, payload), within_seconds=within_seconds, sent=sent)
        )

    def finish_search(
        self, workflow_id: str, payload: Mapping[str, Json] | None, start: LostStart, found: Match | NoMatch
    ) -> Submission | None:
        """Claim what a search has found; None when the request had no effect."""
        return self._run(finish_search(self._attempt(self._hook.get_conn(), workflow_id, payload), start, found))

    def _attempt(self, client: Client | AsyncClient, workflow_id: str, payload: Mapping[str, Json] | None) -> Attempt:
        return Attempt(
            *(client.context, self.submitter, self.attempts, self.policy),
            *(workflow_id, payload, self._polls, self._on_known),
        )

    def _run(self, flow: Flow[T]) -> T:
        """Run a flow; what is ambiguous fails the task without retries where the policy says so."""
        try:
            return self._hook.get_conn().run(flow)
        except AmbiguousExecutionError as error:
            if self.policy.on_ambiguous == "fail":
                raise FinalAmbiguousExecutionError(*error.args) from error
            raise

    def mark_done(self, execution_id: str) -> Mapping[str, Any] | None:
        """Record that the task has got what it wanted, and return how it got its execution (`Submission.to_dict`)."""
        client = self._hook.get_conn()
        return client.run(mark_done(client.context, self.attempts, execution_id))

    def discard(self, execution_id: str) -> None:
        """Let the next attempt start a new execution, because this one failed."""
        client = self._hook.get_conn()
        client.run(discard(client.context, self.attempts, execution_id))


def part_of(context: Context, task_id: str) -> str:
    """Return what distinguishes an operator that runs inside another task from others there."""
    # Kept with the attempt: each one runs the same operators in the same order.
    kept: Any = context
    counts: dict[str, int] = kept.setdefault("techflow_starts", {})
    counts[task_id] = counts.get(task_id, 0) + 1
    return f"{task_id} {counts[task_id]}"


def deployments() -> list[str]:
    """Return the deployment's name (`[techflow] deployment`), then those that it may have had.

    Where nothing distinguishes deployments, or their state isn't shared, it is empty.
    """
    name = conf.get("techflow", "deployment", fallback="").strip()
    if name:
        return [percent_encode(name, safe="")]
    if state_url().lower() in OWN_STATE_URLS:
        return [""]
    # A fernet key is rotated by adding a new one before the old one.
    keys = conf.get("core", "fernet_key", fallback="").split(",") if any(map(os.environ.get, FERNET_KEYS)) else [""]
    texts = [f"{deployment_address()}\n{key.strip()}" for key in keys]
    return [hashlib.blake2b(text.encode(), digest_size=6, person=b"techflow").hexdigest() for text in texts]


def history_lag() -> float:
    """Return `[techflow] history_lag` in seconds.

    :raises InvalidParameterError: it isn't a number from 0
    """
    value = float(conf.getfloat("techflow", "history_lag", fallback=DEFAULT_APPEAR_SECONDS))
    if not 0 <= value < math.inf:
        raise InvalidParameterError("[techflow] history_lag", quote(value), "seconds, from 0")
    return value
