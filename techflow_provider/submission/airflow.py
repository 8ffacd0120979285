"""Start an execution exactly once, for a task or a callback of Airflow.

`ExecutionStarter` joins a hook's client with what a start writes down: intents and claims in the state that all
processes share, and the task's own note where Airflow keeps a task's state (3.3 and later), else in the shared state, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote as percent_encode

from airflow.providers.common.compat.sdk import conf

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.history import DEFAULT_APPEAR_SECONDS
from techflow_provider.client.parsing import Json, quote
from techflow_provider.compat import state_errors, task_state_store
from techflow_provider.hooks.budget import open_state
from techflow_provider.state.records import Records
from techflow_provider.state.store import StoreError
from techflow_provider.submission.attempts import AttemptRecord, AttemptStore, SharedAttemptStore
from techflow_provider.submission.model import Submission, SubmissionPolicy, Submitter
from techflow_provider.submission.start import discard, mark_done, resolve, send

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from techflow_provider.client import AsyncClient
    from techflow_provider.hooks.connection import TechFlowConnection
    from techflow_provider.hooks.techflow import TechFlowHook

# The name under which a task's state and its XCom tell of its start.
START_KEY = "techflow_start"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who starts an execution: the same text in every try of one task.

    :param dag_id: the DAG
    :param run_id: its run
    :param task_id: the task; empty for a callback of a DAG
    :param map_index: the index of a mapped task
    :param part: tells several starts of one task apart, such as a callback's name
    :param round: names the tries among which one execution is enough. In another round an execution that goes on is
        joined still, and one that is over is not. For a callback this is the try that it tells of
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    part: str = ""
    round: str = ""

    @classmethod
    def of(cls, context: Context) -> Identity:
        """Return the identity of the task that runs.

        Airflow raises `max_tries` when a finished task is cleared, and not when it is retried.
        """
        ti: Any = context["ti"]
        began = getattr(context["dag_run"], "start_date", None)
        number = f"{began.isoformat() if began else ''}/{ti.max_tries}"
        return cls(ti.dag_id, ti.run_id, ti.task_id, ti.map_index, round=number)

    def __str__(self) -> str:
        parts = [self.dag_id, self.run_id, self.task_id, str(self.map_index), *([self.part] if self.part else [])]
        return "/".join(percent_encode(part, safe="") for part in parts)


class AirflowAttemptStore:
    """A task's note in the state that Airflow 3.3 and later keep for it; it outlives retries, success and clearing.

    :param state: the context's `task_state_store`
    """

    def __init__(self, state: Any) -> None:
        self._state = state

    def read(self) -> AttemptRecord | None:
        """Return the note, or None when there is none."""
        value = self._ask("get", START_KEY)
        return None if value is None else AttemptRecord.read(value)

    def write(self, note: AttemptRecord) -> None:
        """Write the note, whatever was there."""
        self._ask("set", START_KEY, note.to_dict())

    def drop(self) -> None:
        """Delete the note, if there is one."""
        self._ask("delete", START_KEY)

    def _ask(self, verb: str, *arguments: Any) -> Any:
        try:
            return getattr(self._state, verb)(*arguments)
        except state_errors() as error:
            raise StoreError(f"the state that Airflow keeps for the task: {error}") from error


class ExecutionStarter:
    """The start of one execution for one task or callback; each method may raise `TechFlowError`.

    :param hook: talks to TechFlow
    :param identity: who wants the execution
    :param rules: what it wants when something is lost
    :param context: the context of a running task, for its state in Airflow; a callback has none
    :param connection: the hook's connection where it can't be looked up here, as in an event loop
    :raises InvalidParameterError: a rule or a setting can't be used
    """

    def __init__(
        self,
        hook: TechFlowHook,
        identity: Identity,
        rules: SubmissionPolicy | None = None,
        context: Context | None = None,
        connection: TechFlowConnection | None = None,
    ) -> None:
        account, store = (connection or hook.connection).settings.account, open_state()[0]
        state = None if context is None else task_state_store(context)
        attempts: AttemptStore = (
            AirflowAttemptStore(state) if state is not None else SharedAttemptStore(store, account, str(identity))
        )
        self._hook = hook
        self.rules = check_rules(rules or SubmissionPolicy(history_lag_seconds=history_lag()))
        self.task = Submitter(str(identity), identity.round, account, Records(store, account), attempts)

    def start(self, workflow_id: str, payload: Mapping[str, Json] | None = None) -> Submission:
        """Return the execution of an earlier try, or start one."""
        return self.resolve(workflow_id, payload) or self.send(workflow_id, payload)

    async def astart(
        self, client: AsyncClient, workflow_id: str, payload: Mapping[str, Json] | None = None
    ) -> Submission:
        """Like `start`, in an event loop, where a task's own state in Airflow can't be asked.

        :param client: what `TechFlowHook.aget_conn` returns
        """
        arguments = (client.context, self.task, self.rules, workflow_id, payload)
        known = await client.run(resolve(*arguments))
        return known if known is not None else await client.run(send(*arguments))

    def fire(self, workflow_id: str, payload: Mapping[str, Json] | None = None) -> Submission:
        """Start an execution and don't wait for its end; once per round, however often this is called."""
        started = self.start(workflow_id, payload)
        self.mark_done(started.execution.id)
        return started

    def resolve(self, workflow_id: str, payload: Mapping[str, Json] | None = None) -> Submission | None:
        """Return the execution that an earlier try has started, or None when a new one is needed; starts nothing."""
        client = self._hook.get_conn()
        return client.run(resolve(client.context, self.task, self.rules, workflow_id, payload))

    def send(
        self, workflow_id: str, payload: Mapping[str, Json] | None = None, within_seconds: float = math.inf
    ) -> Submission:
        """Start an execution, after `resolve` has returned None.

        :param within_seconds: how long to wait for a slot in the rate budget; without one nothing was started
        """
        client = self._hook.get_conn()
        arguments = (client.context, self.task, self.rules, workflow_id, payload)
        return client.run(send(*arguments, within_seconds=within_seconds))

    def mark_done(self, execution_id: str) -> Mapping[str, Any] | None:
        """Note that the task has got what it wanted, and return what was told of its start (see `Submission.to_dict`)."""
        client = self._hook.get_conn()
        return client.run(mark_done(client.context, self.task, execution_id))

    def discard(self, execution_id: str) -> None:
        """Let the next try start a new execution, because this one's failed."""
        client = self._hook.get_conn()
        client.run(discard(client.context, self.task, execution_id))


def history_lag() -> float:
    """Return `[techflow] history_lag` in seconds.

    :raises InvalidParameterError: it is no number from 0
    """
    value = float(conf.getfloat("techflow", "history_lag", fallback=DEFAULT_APPEAR_SECONDS))
    if not 0 <= value < math.inf:
        raise InvalidParameterError("[techflow] history_lag", quote(value), "seconds, from 0")
    return value


def check_rules(rules: SubmissionPolicy) -> SubmissionPolicy:
    """Return rules that can be used.

    :raises InvalidParameterError: they can't
    """
    if rules.on_ambiguous not in ("adopt", "fail", "resubmit"):
        raise InvalidParameterError("on_ambiguous", quote(rules.on_ambiguous), "adopt, fail or resubmit")
    return rules
