"""Who starts an execution, where its note is kept, and what each step of a start does, in Airflow's terms."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from techflow_provider.client import BudgetTimeoutError, InvalidParameterError, StateUnavailableError
from techflow_provider.client.history import DEFAULT_APPEAR_SECONDS
from techflow_provider.sandbox import Fault, Sandbox
from techflow_provider.state.store import StoreError
from techflow_provider.submission.model import Origin, SubmissionPolicy

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
def submission(served: Sandbox) -> Iterator[Callable[..., Any]]:
    """Make what starts an execution in one try of a task."""
    from techflow_provider.hooks.techflow import TechFlowHook
    from techflow_provider.submission.airflow import ExecutionStarter, Identity

    hook = TechFlowHook()

    def make(state: TaskState | None = None, rules: SubmissionPolicy | None = None, **identity: Any) -> Any:
        kept: Any = None if state is None else {"task_state_store": state}
        return ExecutionStarter(hook, Identity("d", "r", "t", **{"round": "1", **identity}), rules, kept)

    yield make
    hook.get_conn().close()


def context(max_tries: int = 2, began: datetime | None = BEGAN) -> Any:
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=3, max_tries=max_tries, try_number=1)
    return {"ti": ti, "dag_run": SimpleNamespace(start_date=began)}


def test_a_task_is_known_by_dag_run_task_and_map_index_and_its_rounds_by_runs_start_and_clears():
    from techflow_provider.submission.airflow import Identity

    known = Identity.of(context())
    assert known == Identity("d", "r", "t", 3, round="2026-01-01T00:00:00+00:00/2")
    assert Identity.of(context(max_tries=5)).round != known.round
    assert Identity.of(context(began=None)).round == "/2"
    without_start = context()
    del without_start["dag_run"].start_date
    assert Identity.of(without_start).round == "/2"


def test_no_two_identities_have_one_text():
    from techflow_provider.submission.airflow import Identity

    assert str(Identity("a/b", "c d", "t")) == "a%2Fb/c%20d/t/-1"
    assert str(Identity("a", "b/c", "t", 4)) == "a/b%2Fc/t/4"
    assert str(Identity("a", "b", "", part="x/y")) == "a/b//-1/x%2Fy"
    assert str(Identity("a", "b", "t", round="1")) == str(Identity("a", "b", "t", round="2"))
    assert Identity("a", "b", "t") == Identity("a", "b", "t", -1, "", "")


def test_the_note_is_kept_in_the_tasks_own_state_where_airflow_has_one(served, submission):
    state = TaskState()
    started = submission(state).start("wf_1")
    (note,) = map(json.loads, state.kept.values())
    assert list(state.kept) == ["techflow_start"]
    assert (note["execution_id"], note["workflow_id"]) == (started.execution.id, "wf_1")
    again = submission(state).start("wf_1")
    assert (again.execution.id, again.decision) == (started.execution.id, Origin.REATTACHED)
    assert submission().resolve("wf_1") is None


def test_the_note_is_kept_in_the_shared_state_elsewhere_for_this_task_alone(served, submission):
    started = submission().start("wf_1")
    assert submission().resolve("wf_1").execution.id == started.execution.id
    assert submission(map_index=1).resolve("wf_1") is None
    assert submission(part="callback").resolve("wf_1") is None
    assert served.count(path="/workflows/*/execute") == 1


def test_resolving_starts_nothing(served, submission):
    assert submission().resolve("wf_1") is None
    assert not served.executions


def test_a_failed_execution_is_given_up_and_the_next_try_starts_another(served, submission):
    state = TaskState()
    first = submission(state).start("wf_1", {"a": 1})
    submission(state).discard(first.execution.id)
    assert not state.kept
    assert submission(state).start("wf_1", {"a": 1}).execution.id != first.execution.id
    assert [each.payload for each in served.executions] == [{"a": 1}, {"a": 1}]


def test_concluding_tells_what_was_told_of_the_start(served, submission):
    started = submission().start("wf_1")
    assert submission().mark_done(started.execution.id) == started.to_dict()


def test_firing_again_in_one_round_starts_nothing_and_in_another_it_does(served, submission):
    fired = submission().fire("wf_1", {"a": 1})
    assert fired.execution.id == submission().fire("wf_1", {"a": 1}).execution.id
    served.finish(fired.execution.id)
    assert submission().fire("wf_1", {"a": 1}).execution.id == fired.execution.id
    assert submission(round="2").fire("wf_1", {"a": 1}).execution.id != fired.execution.id
    assert [each.payload for each in served.executions] == [{"a": 1}, {"a": 1}]


def test_what_was_fired_is_done_with_and_is_not_joined_by_another_round_while_it_goes_on(served, submission):
    first = submission().fire("wf_1")
    assert submission(round="2").fire("wf_1").execution.id != first.execution.id


def test_an_execution_is_claimed_where_all_processes_look(served, submission):
    from techflow_provider.hooks.budget import open_records
    from techflow_provider.hooks.techflow import TechFlowHook

    started = submission().start("wf_1")
    assert started.execution.id in open_records(TechFlowHook().connection).claims()


async def test_in_an_event_loop_it_starts_once_too(served, submission):
    from techflow_provider.hooks.techflow import TechFlowHook

    async with await TechFlowHook().aget_conn() as client:
        first = await submission().astart(client, "wf_1", {"a": 1})
        second = await submission().astart(client, "wf_1", {"a": 1})
    assert first.execution.id == second.execution.id
    assert [each.payload for each in served.executions] == [{"a": 1}]


def test_a_state_of_airflows_that_can_not_be_used_is_said_and_nothing_is_sent(served, submission):
    state = TaskState()
    state.broken = OSError("no supervisor")
    with pytest.raises(StateUnavailableError, match="the state that Airflow keeps for the task: no supervisor"):
        submission(state).start("wf_1")
    with pytest.raises(StoreError, match="no supervisor"):
        submission(state).task.attempts.drop()
    assert not served.executions


def test_without_a_slot_in_time_nothing_is_started(served, submission, monkeypatch):
    connect(monkeypatch, served.base_url, requests_per_minute=1)
    with pytest.raises(BudgetTimeoutError):
        submission().send("wf_1", None, 0.0)
    assert not served.executions


def test_the_rules_of_a_start_are_the_tasks_own_or_those_of_the_configuration(submission, monkeypatch):
    assert submission().rules == SubmissionPolicy(history_lag_seconds=DEFAULT_APPEAR_SECONDS)
    monkeypatch.setenv(LAG, "7.5")
    assert submission().rules == SubmissionPolicy(history_lag_seconds=7.5)
    assert submission(rules=SubmissionPolicy("fail")).rules == SubmissionPolicy("fail")


def test_the_rules_decide_what_a_lost_answer_leads_to(served, submission):
    served.faults.add(Fault("lost_response", path="/workflows/*/execute", times=1))
    submission(rules=SubmissionPolicy("resubmit")).start("wf_1")
    assert len(served.executions) == 2


@pytest.mark.parametrize("lag", ["0", "0.5", "3600"])
def test_a_history_may_lag_by_any_number_of_seconds_from_0(monkeypatch, lag):
    from techflow_provider.submission.airflow import history_lag

    monkeypatch.setenv(LAG, lag)
    assert history_lag() == float(lag)


@pytest.mark.parametrize("lag", ["-1", "-0.1", "inf", "nan"])
def test_a_lag_that_is_no_time_is_refused(monkeypatch, lag):
    from techflow_provider.submission.airflow import history_lag

    monkeypatch.setenv(LAG, lag)
    with pytest.raises(InvalidParameterError, match="history_lag"):
        history_lag()


@pytest.mark.parametrize("word", ["adopt", "fail", "resubmit"])
def test_each_word_for_what_is_ambiguous_can_be_used(submission, word):
    assert submission(rules=SubmissionPolicy(word)).rules.on_ambiguous == word


def test_another_word_for_what_is_ambiguous_is_refused(submission):
    with pytest.raises(InvalidParameterError, match="on_ambiguous"):
        submission(rules=SubmissionPolicy("perhaps"))  # type: ignore[arg-type]  # as an author may mistype it
