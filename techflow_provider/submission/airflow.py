"""Start exactly one execution for a task or a callback of Airflow.

`ExecutionStarter` combines a hook's client with the records of attempts: they are in the state that all processes share
and, on Airflow 3.3 and later, also in the task's own state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote as percent_encode

from airflow.providers.common.compat.sdk import conf

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.history import DEFAULT_APPEAR_SECONDS
from techflow_provider.client.parsing import Json, quote
from techflow_provider.compat import state_errors, task_state_store
from techflow_provider.hooks.state import open_state
from techflow_provider.state.store import StoreError
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.model import Attempt, Submission, SubmissionPolicy, Submitter
from techflow_provider.submission.reuse import discard, mark_done, resolve
from techflow_provider.submission.start import send

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from techflow_provider.client import AsyncClient
    from techflow_provider.hooks.connection import TechFlowConnection
    from techflow_provider.hooks.techflow import TechFlowHook

# The key of a task's record in its own state, and of the XCom that shows how it got its execution.
START_KEY = "techflow_start"


@dataclass(frozen=True, slots=True)
class Identity:
    """The starter of an execution: the same text in every attempt of one task.

    :param dag_id: the DAG
    :param run_id: its run
    :param task_id: the task; empty for a callback of a DAG
    :param map_index: the index of a mapped task
    :param part: distinguishes several starts of one task, such as a callback's name
    :param generation: names the attempts among which one execution is enough. In another generation an execution that
        is still running is joined if its task was waiting for it, and one that is over is not
    :param is_retry: whether an earlier attempt may have been made
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    part: str = ""
    generation: str = ""
    is_retry: bool = True

    @classmethod
    def of(cls, context: Context) -> Identity:
        """Return the identity of the running task.

        Airflow raises `max_tries` when a finished task is cleared, and not when it is retried.
        """
        ti: Any = context["ti"]
        start_date = getattr(context["dag_run"], "start_date", None)
        generation = f"{start_date.isoformat() if start_date else ''}/{ti.max_tries}"
        ids = (ti.dag_id, ti.run_id, ti.task_id, ti.map_index)
        return cls(*ids, generation=generation, is_retry=ti.try_number > 1)

    def __str__(self) -> str:
        parts = [self.dag_id, self.run_id, self.task_id, str(self.map_index), *([self.part] if self.part else [])]
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


class ExecutionStarter:
    """Start one execution for one task or callback. Each method may raise `TechFlowError`.

    :param hook: sends the requests
    :param identity: who wants the execution
    :param policy: what it wants when something is lost
    :param context: the context of a running task, for its own state in Airflow; a callback has none
    :param connection: the hook's connection where it can't be looked up here, as in an event loop
    :raises InvalidParameterError: the policy or a setting has an unusable value
    """

    xcom_key = START_KEY

    def __init__(
        self,
        hook: TechFlowHook,
        identity: Identity,
        policy: SubmissionPolicy | None = None,
        context: Context | None = None,
        connection: TechFlowConnection | None = None,
    ) -> None:
        connection = connection or hook.connection
        account, name = connection.settings.account, str(identity)
        state = None if context is None else task_state_store(context)
        attempts = AttemptStore(
            open_state(connection)[0], account, name, None if state is None else AirflowTaskState(state)
        )
        self._hook = hook
        self.policy: SubmissionPolicy = check_policy(policy or SubmissionPolicy(history_lag_seconds=history_lag()))
        self.submitter: Submitter = Submitter(name, identity.generation, account, attempts, identity.is_retry)

    def start(self, workflow_id: str, payload: Mapping[str, Json] | None = None) -> Submission:
        """Return the execution of an earlier attempt, or start one; once per generation when nobody waits for it."""
        return self.resolve(workflow_id, payload) or self.send(workflow_id, payload)

    async def astart(
        self, client: AsyncClient, workflow_id: str, payload: Mapping[str, Json] | None = None
    ) -> Submission:
        """Like `start`, in an event loop, where a task's own state in Airflow can't be used.

        :param client: what `TechFlowHook.aget_conn` returns
        """
        attempt = Attempt(client.context, self.submitter, self.policy, workflow_id, payload)
        known = await client.run(resolve(attempt))
        return known if known is not None else await client.run(send(attempt))

    def resolve(self, workflow_id: str, payload: Mapping[str, Json] | None = None) -> Submission | None:
        """Return the execution that an earlier attempt has started, or None when a new one is needed."""
        client = self._hook.get_conn()
        return client.run(resolve(Attempt(client.context, self.submitter, self.policy, workflow_id, payload)))

    def send(
        self, workflow_id: str, payload: Mapping[str, Json] | None = None, within_seconds: float = math.inf
    ) -> Submission:
        """Start an execution, after `resolve` has returned None.

        :param within_seconds: how long to wait for a slot in the rate budget; without one nothing was started
        """
        client = self._hook.get_conn()
        attempt = Attempt(client.context, self.submitter, self.policy, workflow_id, payload)
        return client.run(send(attempt, within_seconds=within_seconds))

    def mark_done(self, execution_id: str) -> Mapping[str, Any] | None:
        """Record that the task has got what it wanted, and return how it got its execution (`Submission.to_dict`)."""
        client = self._hook.get_conn()
        return client.run(mark_done(client.context, self.submitter, execution_id))

    def discard(self, execution_id: str) -> None:
        """Let the next attempt start a new execution, because this one failed."""
        client = self._hook.get_conn()
        client.run(discard(client.context, self.submitter, execution_id))


def history_lag() -> float:
    """Return `[techflow] history_lag` in seconds.

    :raises InvalidParameterError: it isn't a number from 0
    """
    value = float(conf.getfloat("techflow", "history_lag", fallback=DEFAULT_APPEAR_SECONDS))
    if not 0 <= value < math.inf:
        raise InvalidParameterError("[techflow] history_lag", quote(value), "seconds, from 0")
    return value


def check_policy(policy: SubmissionPolicy) -> SubmissionPolicy:
    """Return a usable policy.

    :raises InvalidParameterError: it isn't usable
    """
    if policy.on_ambiguous not in ("adopt", "fail"):
        raise InvalidParameterError("on_ambiguous", quote(policy.on_ambiguous), "adopt or fail")
    return policy
