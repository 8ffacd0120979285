"""The identity of a start, where its record is kept, and what each step of a start does, in Airflow's terms."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from techflow_provider.client import (
    AmbiguousExecutionError,
    BudgetTimeoutError,
    InvalidParameterError,
    StateUnavailableError,
)
from techflow_provider.client.history import DEFAULT_APPEAR_SECONDS
from techflow_provider.client.models import Execution
from techflow_provider.compat import has_api_server
from techflow_provider.sandbox import Fault, Sandbox
from techflow_provider.state.store import Write
from techflow_provider.submission.matching import Match
from techflow_provider.submission.model import Origin, SubmissionPolicy, Submitter
from techflow_provider.submission.recovery import LostStartError
from tests.submission.test_attempts import NOTE

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:::techflow_provider"),
]
KEY = "key-of-the-submission-tests"
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
LAG = "AIRFLOW__TECHFLOW__HISTORY_LAG"


class TaskState:
    """A task's own state, as Airflow 3.3 hands it over; what is kept in it is JSON."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.broken: Exception | None = None

    def get(self, key: str) -> Any:
        self._fail()
        return json.loads(self.kept[key]) if key in self.kept else None

    def set(self, key: str, value: Any) -> None:
        self._fail()
        self.kept[key] = json.dumps(value)

    def delete(self, key: str) -> None:
        self._fail()
        self.kept.pop(key, None)

    def _fail(self) -> None:
        if self.broken is not None:
            raise self.broken


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox with one workflow, the default connection pointing to it, and an empty shared state."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    sandbox = Sandbox(api_keys=(KEY,), workflows_at_start={"wf_1": "one"}, limit=60_000, execution_seconds=3600)
    with sandbox.serve() as url:
        connect(monkeypatch, url, requests_per_minute=60_000)
        yield sandbox


def connect(monkeypatch: pytest.MonkeyPatch, url: str, **extra: int) -> None:
    connection = {"conn_type": "techflow", "host": url, "password": KEY, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps(connection))


@pytest.fixture
def starter(served: Sandbox) -> Iterator[Callable[..., Any]]:
    """Make what starts an execution in one attempt of a task."""
    from techflow_provider.hooks.techflow import TechFlowHook
    from techflow_provider.submission.airflow import ExecutionStarter, name_of

    hook = TechFlowHook()

    def make(
        state: TaskState | None = None, policy: SubmissionPolicy | None = None, generation: str = "1", **names: Any
    ) -> Any:
        kept: Any = None if state is None else {"task_state_store": state}
        return ExecutionStarter(hook, Submitter(name_of("d", "r", "t", **names), generation), policy, kept)

    yield make
    hook.get_conn().close()


def context(max_tries: int = 2, began: datetime | None = BEGAN) -> Any:
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=3, max_tries=max_tries, try_number=1)
    return {"ti": ti, "dag_run": SimpleNamespace(start_date=began)}


def test_a_submitter_has_a_tasks_dag_run_and_map_index_and_its_generation_the_runs_start_and_clears():
    from techflow_provider.submission.airflow import submitter_of

    known = submitter_of(context())
    expected = Submitter("d/r/t/3", "2026-01-01T00:00:00+00:00/2", is_retry=False, began=BEGAN)
    assert replace(known, attempt_id="") == replace(expected, attempt_id="")
    assert submitter_of(context(max_tries=5)).generation != known.generation
    assert submitter_of(context(began=None)).generation == "/2"
    without_start = context()
    del without_start["dag_run"].start_date
    assert submitter_of(without_start).generation == "/2"


@pytest.mark.parametrize(("try_number", "clear_number", "expected"), [(1, None, (False, 0)), (2, 3, (True, 3))])
def test_a_submitter_may_be_a_retry_in_a_run_that_was_cleared(try_number, clear_number, expected):
    from techflow_provider.submission.airflow import submitter_of

    of = context()
    of["ti"].try_number, of["dag_run"].clear_number = try_number, clear_number
    assert (submitter_of(of).is_retry, submitter_of(of).clears) == expected


def test_operators_inside_another_task_are_numbered_in_each_attempt():
    from techflow_provider.submission.airflow import part_of

    for _ in range(2):
        attempt = context()
        assert [part_of(attempt, name) for name in ("a", "b", "a")] == ["a 1", "b 1", "a 2"]


def test_no_two_submitters_have_the_same_name():
    from techflow_provider.submission.airflow import name_of

    assert name_of("a/b", "c d", "t") == "a%2Fb/c%20d/t/-1"
    assert name_of("a", "b/c", "t", 4) == "a/b%2Fc/t/4"
    assert name_of("a", "b", "", part="x/y") == "a/b//-1/x%2Fy"


def test_the_record_is_also_kept_in_the_tasks_own_state_where_airflow_has_one(served, starter):
    state = TaskState()
    started = starter(state).start("wf_1")
    (record,) = map(json.loads, state.kept.values())
    assert list(state.kept) == ["techflow_start"]
    assert (record["execution_id"], record["workflow_id"]) == (started.execution.id, "wf_1")
    starter().attempts.update(lambda _: None)
    again = starter(state).start("wf_1")
    assert (again.execution.id, again.origin) == (started.execution.id, Origin.REATTACHED)
    assert len(served.executions) == 1


def test_the_record_is_kept_in_the_shared_state_for_this_task_alone(served, starter):
    started = starter().start("wf_1")
    assert starter().resolve("wf_1").execution.id == started.execution.id
    assert starter(map_index=1).resolve("wf_1") is None
    assert starter(part="callback").resolve("wf_1") is None
    assert served.count(path="/workflows/*/execute") == 1


def test_what_is_kept_in_the_tasks_own_state_is_deleted_there():
    from techflow_provider.submission.airflow import AirflowTaskState

    state = TaskState()
    own = AirflowTaskState(state)
    own.write({"a": 1})
    assert own.read() == {"a": 1}
    own.drop()
    assert (own.read(), state.kept) == (None, {})


@pytest.mark.parametrize(("deployment", "name"), [("", "d/r/t/-1"), ("blue", "blue/d/r/t/-1")])
def test_a_submitters_name_begins_with_that_of_its_deployment(starter, monkeypatch, deployment, name):
    monkeypatch.setenv("AIRFLOW__TECHFLOW__DEPLOYMENT", deployment)
    assert starter().submitter.name == name


def test_a_retry_finds_what_version_0_1_0_has_started(served, starter):
    from techflow_provider.hooks.state import open_state
    from techflow_provider.hooks.techflow import TechFlowHook

    execution, connection = served.start("wf_1"), TechFlowHook().connection
    text = json.dumps({**NOTE, "execution_id": execution.id})
    namespace = f"{connection.settings.account}/notes"
    open_state(connection).store.update(namespace, "d/r/t/-1", lambda *_: (Write(text, 60.0), None))
    assert starter().start("wf_1").execution.id == execution.id
    assert len(served.executions) == 1


@pytest.mark.parametrize(("sent", "expected"), [({}, 1), ({"sent": 2}, 3)])
def test_a_search_elsewhere_knows_how_many_requests_were_sent_and_what_it_finds_is_claimed(
    served, starter, sent, expected
):
    served.faults.add(Fault("lost_response", path="/workflows/*/execute", times=1))
    task = starter(policy=SubmissionPolicy(defers_search=True))
    with pytest.raises(LostStartError) as lost:
        task.send("wf_1", **sent)
    assert lost.value.start.sent == expected
    execution = Execution(served.executions[0].id, "wf_1", "running", None, None, None, {})
    found = task.finish_search("wf_1", None, lost.value.start, Match(execution, "it was found"))
    assert (found.execution.id, found.origin) == (execution.id, Origin.ADOPTED)


def test_resolving_starts_nothing(served, starter):
    assert starter().resolve("wf_1") is None
    assert not served.executions


def test_a_failed_execution_is_discarded_and_the_next_attempt_starts_another(served, starter):
    state = TaskState()
    first = starter(state).start("wf_1", {"a": 1})
    starter(state).discard(first.execution.id)
    assert [json.loads(each)["failed"] for each in state.kept.values()] == [True]
    assert starter(state).start("wf_1", {"a": 1}).execution.id != first.execution.id
    assert [each.payload for each in served.executions] == [{"a": 1}, {"a": 1}]


def test_marking_a_start_as_done_returns_how_the_execution_was_started(served, starter):
    started = starter().start("wf_1")
    assert starter().mark_done(started.execution.id) == started.to_dict()


def test_starting_again_in_one_generation_starts_nothing_and_in_another_it_does(served, starter):
    started = starter().start("wf_1", {"a": 1})
    assert started.execution.id == starter().start("wf_1", {"a": 1}).execution.id
    served.finish(started.execution.id)
    assert starter().start("wf_1", {"a": 1}).execution.id == started.execution.id
    assert starter(generation="2").start("wf_1", {"a": 1}).execution.id != started.execution.id
    assert [each.payload for each in served.executions] == [{"a": 1}, {"a": 1}]


def test_an_execution_that_nobody_waits_for_is_not_joined_by_another_generation_while_it_runs(served, starter):
    first = starter().start("wf_1")
    assert starter(generation="2").start("wf_1").execution.id != first.execution.id


def test_an_execution_is_claimed_where_all_tasks_see_it(served, starter):
    execution_id = starter().start("wf_1").execution.id
    claims = starter(map_index=1).attempts.claims([("wf_1", execution_id), ("wf_1", "ex_0")])
    assert list(claims) == [("wf_1", execution_id)]


async def test_in_an_event_loop_it_starts_once_too(served, starter):
    from techflow_provider.hooks.techflow import TechFlowHook

    async with await TechFlowHook().aget_conn() as client:
        first = await starter().astart(client, "wf_1", {"a": 1})
        second = await starter().astart(client, "wf_1", {"a": 1})
    assert first.execution.id == second.execution.id
    assert [each.payload for each in served.executions] == [{"a": 1}]


def test_an_unusable_task_state_of_airflow_is_reported_and_nothing_is_sent(served, starter):
    state = TaskState()
    state.broken = OSError("no supervisor")
    with pytest.raises(StateUnavailableError, match="the state that Airflow keeps for the task: no supervisor"):
        starter(state).start("wf_1")
    assert not served.executions


def test_without_a_slot_in_time_nothing_is_started(served, starter, monkeypatch):
    connect(monkeypatch, served.base_url, requests_per_minute=1)
    with pytest.raises(BudgetTimeoutError):
        starter().send("wf_1", None, 0.0)
    assert not served.executions


def test_the_policy_of_a_start_is_the_tasks_own_or_that_of_the_configuration(starter, monkeypatch):
    assert starter().policy == SubmissionPolicy(history_lag_seconds=DEFAULT_APPEAR_SECONDS)
    monkeypatch.setenv(LAG, "7.5")
    assert starter().policy == SubmissionPolicy(history_lag_seconds=7.5)
    assert starter(policy=SubmissionPolicy("fail")).policy == SubmissionPolicy("fail")


def test_the_policy_decides_what_a_lost_response_leads_to(served, starter):
    served.faults.add(Fault("lost_response", path="/workflows/*/execute", times=1))
    with pytest.raises(AmbiguousExecutionError):
        starter(policy=SubmissionPolicy("fail")).start("wf_1")
    assert len(served.executions) == 1


def test_what_cannot_be_determined_is_an_error_and_nothing_is_sent_again(served, starter, monkeypatch):
    monkeypatch.setattr("techflow_provider.submission.recovery.HELD_UP_SECONDS", 1.0)
    monkeypatch.setenv(LAG, "0")
    connect(monkeypatch, served.base_url, requests_per_minute=60_000, timeout=1)
    served.start("wf_1")
    served.faults.add(Fault("lost_response", path="/workflows/*/execute", times=1))
    with pytest.raises(AmbiguousExecutionError, match="any of"):
        starter().start("wf_1", {"a": 1})
    assert len(served.executions) == 2


@pytest.mark.parametrize("lag", ["0", "0.5", "3600"])
def test_a_history_may_lag_by_any_number_of_seconds_from_0(monkeypatch, lag):
    from techflow_provider.submission.airflow import history_lag

    monkeypatch.setenv(LAG, lag)
    assert history_lag() == float(lag)


@pytest.mark.parametrize("lag", ["-1", "-0.1", "inf", "nan"])
def test_a_lag_that_is_not_a_time_is_refused(monkeypatch, lag):
    from techflow_provider.submission.airflow import history_lag

    monkeypatch.setenv(LAG, lag)
    with pytest.raises(InvalidParameterError, match="history_lag"):
        history_lag()


def test_deployments_that_share_a_state_start_an_execution_each(served, starter, monkeypatch, tmp_path):
    monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_URL", str(tmp_path / "shared.db"))
    address = "AIRFLOW__CORE__EXECUTION_API_SERVER_URL"
    found = []
    for url in (
        "http://staging:8080/execution/",
        "http://production:8080/execution/",
        "http://staging:8080/execution/",
    ):
        monkeypatch.setenv(address, url)
        found.append(starter().start("wf_1").execution.id)
    assert found[0] == found[2] != found[1]
    for name in ("a", "b"):
        monkeypatch.setenv("AIRFLOW__TECHFLOW__DEPLOYMENT", name)
        found.append(starter().start("wf_1").execution.id)
    assert len(set(found)) == 4


def test_a_deployments_name_survives_the_rotation_of_its_fernet_key(served, starter, monkeypatch, tmp_path):
    monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_URL", str(tmp_path / "shared.db"))
    started = set()
    for keys in ("old", "new,old", "new"):
        monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", keys)
        started.add(starter().start("wf_1").execution.id)
    assert len(started) == 1


@pytest.mark.skipif(not has_api_server(), reason="in Airflow 2, the name depends on the database instead")
@pytest.mark.parametrize(
    ("keys", "names"), [("a", ["36ac10f14f09"]), ("b, a", ["9e47eb5a9b7a", "36ac10f14f09"]), (None, ["06af5ea00631"])]
)
def test_all_versions_of_this_package_give_a_deployment_the_same_name(monkeypatch, tmp_path, keys, names):
    from techflow_provider.submission.airflow import deployments

    monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_URL", str(tmp_path / "shared.db"))
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "http://production:8080/execution/")
    if keys is None:
        monkeypatch.delenv("AIRFLOW__CORE__FERNET_KEY", raising=False)
    else:
        monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", keys)
    assert deployments() == names


@pytest.mark.parametrize("name", ["", "_CMD", "_SECRET"])
def test_a_fernet_key_counts_wherever_the_environment_says_that_it_is(monkeypatch, tmp_path, name):
    from techflow_provider.submission.airflow import deployments

    monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_URL", str(tmp_path / "shared.db"))
    monkeypatch.delenv("AIRFLOW__CORE__FERNET_KEY", raising=False)
    without = deployments()
    monkeypatch.setenv(f"AIRFLOW__CORE__FERNET_KEY{name}", "echo key")
    assert deployments() != without


def test_a_state_that_belongs_to_one_deployment_needs_no_name(monkeypatch):
    from techflow_provider.submission.airflow import deployments

    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "a")
    assert deployments() == [""]
    monkeypatch.setenv("AIRFLOW__TECHFLOW__DEPLOYMENT", "blue/green")
    assert deployments() == ["blue%2Fgreen"]


def test_operators_that_are_called_inside_another_task_start_an_execution_each_once(served):
    from techflow_provider.operators.techflow import TechFlowTriggerWorkflowOperator

    def attempt(try_number: int) -> list[str]:
        of: Any = {**context(), "task": SimpleNamespace(do_xcom_push=True)}
        of["ti"].try_number, of["ti"].xcom_push = try_number, lambda **_: None
        names = ("first", "second", "second")
        return [TechFlowTriggerWorkflowOperator(task_id=name, workflow_id="wf_1").execute(of) for name in names]

    first = attempt(1)
    assert len(set(first)) == 3
    assert attempt(2) == first
    assert len(served.executions) == 3


def test_what_the_hook_starts_is_claimed_and_adopted_by_no_task(served, starter):
    from techflow_provider.hooks.techflow import TechFlowHook

    execution = TechFlowHook().trigger_workflow("wf_1")
    attempts = starter().attempts
    assert list(attempts.claims([("wf_1", execution.id)])) == [("wf_1", execution.id)]
    assert attempts.pending() == []


def test_fail_fails_a_task_without_retries(served, starter):
    from airflow.providers.common.compat.sdk import AirflowFailException

    served.faults.add(Fault("lost_response", path="/workflows/*/execute", times=1))
    with pytest.raises(AirflowFailException, match="may have been started"):
        starter(policy=SubmissionPolicy("fail")).start("wf_1")
