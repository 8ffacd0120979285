"""Starting exactly one execution: lost answers, later tries, other tasks and a state that can't be used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from techflow_provider.client import (
    AmbiguousExecutionError,
    AmbiguousWorkflowError,
    ServerError,
    StateUnavailableError,
    TransportError,
)
from techflow_provider.client.flow import FlowContext
from techflow_provider.sandbox import Fault
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.records import Records
from techflow_provider.state.store import StoreError
from techflow_provider.submission.attempts import SharedAttemptStore
from techflow_provider.submission.model import Origin, Submission, SubmissionPolicy, Submitter
from techflow_provider.submission.start import discard, mark_done, resolve, send

START: dict[str, Any] = {"method": "POST", "path": "/workflows/*/execute"}
LOST = [
    Fault("lost_response", times=1, **START),
    Fault("reset", when="after", times=1, **START),
    Fault(status=502, when="after", times=1, **START),
    Fault("truncated", times=1, **START),
    Fault("html", when="after", times=1, **START),
]
Make = Callable[..., Submitter]


class BrokenStore(MemoryStore):
    """A store that can't be used while it is broken."""

    broken = False

    def update(self, namespace: str, name: str, change: Any) -> Any:
        if self.broken:
            raise StoreError("the disk is full")
        return super().update(namespace, name, change)


@pytest.fixture
def store(clock) -> BrokenStore:
    return BrokenStore(clock.monotonic)


@pytest.fixture
def make(store) -> Make:
    """Make the next try of a task."""

    def task(name: str = "dag/run/task/-1", number: int = 1) -> Submitter:
        return Submitter(
            name, str(number), "account", Records(store, "account"), SharedAttemptStore(store, "account", name)
        )

    return task


def begin(task: Submitter, rules: SubmissionPolicy | None = None, payload: Any = None) -> Callable[[Any], Any]:
    """Return what starts an execution as a task's try does."""

    async def steps(context: FlowContext) -> Submission:
        arguments = (context, task, rules or SubmissionPolicy(), "wf_1", payload)
        return (await resolve(*arguments)) or (await send(*arguments))

    return lambda client: client.run(steps(client.context))


def end(task: Submitter, started: Submission) -> Callable[[Any], Any]:
    return lambda client: client.run(mark_done(client.context, task, started.execution.id))


def test_an_answer_names_the_execution(ask, sandbox, workflow_id, make):
    started = ask(begin(make()))
    assert (started.decision, started.execution.id) == (Origin.STARTED, sandbox.executions[0].id)
    assert sandbox.count() == 1


@pytest.mark.parametrize("fault", LOST, ids=lambda fault: f"{fault.kind}-{fault.status}")
def test_a_lost_answer_is_made_good_from_the_history(ask, sandbox, workflow_id, make, fault):
    sandbox.faults.add(fault)
    started = ask(begin(make()))
    assert started.execution.id == sandbox.executions[0].id
    assert len(sandbox.executions) == 1
    assert "can't be told from it" in started.facts


def test_a_history_that_lags_is_waited_for(ask, sandbox, workflow_id, make, clock):
    sandbox.history_lag_seconds = 100
    sandbox.faults.add(LOST[0])
    assert ask(begin(make())).decision is Origin.ADOPTED
    assert 100 <= clock.monotonic() < 150
    assert len(sandbox.executions) == 1


def test_a_request_without_effect_is_sent_again_when_the_history_can_not_lag_any_more(
    ask, sandbox, workflow_id, make, clock
):
    sandbox.faults.add(Fault(status=502, when="before", times=1, **START))
    assert ask(begin(make())).decision is Origin.STARTED
    assert clock.monotonic() >= 150
    assert len(sandbox.executions) == 1


def test_a_start_that_never_has_an_effect_ends_with_its_error_and_leaves_nothing(ask, sandbox, workflow_id, make):
    sandbox.faults.add(Fault(status=503, when="before", **START))
    with pytest.raises(ServerError):
        ask(begin(make()))
    assert sandbox.count(**START) == 3
    assert make().attempts.read() is None


def test_an_accepted_start_that_never_shows_is_not_sent_again(ask, sandbox, workflow_id, make):
    sandbox.faults.add(Fault("html", when="before", **START))
    with pytest.raises(AmbiguousExecutionError, match="none that nobody claims appeared"):
        ask(begin(make()))
    assert sandbox.count(**START) == 1


def test_two_tasks_with_lost_answers_get_one_execution_each(ask, sandbox, workflow_id, make):
    sandbox.faults.add(Fault("lost_response", times=2, **START))
    ids = {ask(begin(make(name))).execution.id for name in ("a", "b")}
    assert ids == {each.id for each in sandbox.executions}
    assert len(ids) == 2


def test_an_execution_that_somebody_claims_is_not_adopted(ask, sandbox, workflow_id, make, store):
    other = sandbox.start(workflow_id)
    Records(store, "account").claim(other.id, "another task")
    sandbox.faults.add(LOST[0])
    assert ask(begin(make())).execution.id == sandbox.executions[1].id


def test_fail_fails_in_every_try_until_the_task_is_cleared(ask, sandbox, workflow_id, make):
    sandbox.faults.add(LOST[0])
    for _ in range(2):
        with pytest.raises(AmbiguousExecutionError):
            ask(begin(make(), SubmissionPolicy("fail")))
    assert sandbox.count(**START) == 1
    assert ask(begin(make(number=2), SubmissionPolicy("fail"))).decision is Origin.STARTED


def test_resubmit_sends_again_at_once(ask, sandbox, workflow_id, make, clock):
    sandbox.faults.add(LOST[0])
    assert ask(begin(make(), SubmissionPolicy("resubmit"))).decision is Origin.STARTED
    assert len(sandbox.executions) == 2
    assert clock.monotonic() < 5


def test_with_a_payload_only_one_candidate_is_adopted(ask, sandbox, workflow_id, make):
    sandbox.faults.add(LOST[0])
    started = ask(begin(make(), payload={"day": 1}))
    assert (started.decision, sandbox.executions[0].payload) == (Origin.ADOPTED, {"day": 1})


def test_with_a_payload_several_candidates_are_named_in_the_error(ask, sandbox, workflow_id, make):
    sandbox.start(workflow_id)
    sandbox.faults.add(LOST[0])
    with pytest.raises(AmbiguousExecutionError) as caught:
        ask(begin(make(), payload={"day": 1}))
    assert all(each.id in str(caught.value) for each in sandbox.executions)


def test_a_later_try_joins_the_execution(ask, sandbox, workflow_id, make):
    first = ask(begin(make()))
    again = ask(begin(make(), SubmissionPolicy(until_end=True)))
    assert (again.decision, again.execution.id) == (Origin.REATTACHED, first.execution.id)
    assert len(sandbox.executions) == 1


def test_a_later_try_replaces_an_execution_that_failed(ask, sandbox, workflow_id, make):
    rules = SubmissionPolicy(until_end=True)
    first = ask(begin(make(), rules))
    sandbox.finish(first.execution.id, outcome="failed")
    assert ask(begin(make(), rules)).decision is Origin.STARTED


def test_a_task_that_has_given_up_an_execution_starts_another(ask, sandbox, workflow_id, make):
    first = ask(begin(make()))
    ask(lambda client: client.run(discard(client.context, make(), first.execution.id)))
    ask(begin(make()))
    assert len(sandbox.executions) == 2


def test_a_success_that_was_not_noticed_starts_no_other(ask, sandbox, workflow_id, make):
    first = ask(begin(make()))
    assert ask(end(make(), first))["decision"] == "started"
    assert ask(begin(make())).execution.id == first.execution.id
    assert len(sandbox.executions) == 1


def test_a_finished_task_that_is_cleared_starts_another(ask, sandbox, workflow_id, make):
    ask(end(make(), ask(begin(make()))))
    assert ask(begin(make(number=2))).decision is Origin.STARTED
    assert len(sandbox.executions) == 2


def test_a_task_that_is_cleared_joins_what_still_runs(ask, sandbox, workflow_id, make):
    ask(begin(make()))
    assert ask(begin(make(number=2))).decision is Origin.REATTACHED


def test_without_reattach_every_try_starts_its_own(ask, sandbox, workflow_id, make):
    for _ in range(2):
        assert ask(begin(make(), SubmissionPolicy(reattach=False))).decision is Origin.STARTED


def test_without_the_shared_state_nothing_is_sent(ask, sandbox, workflow_id, make, store):
    store.broken = True
    with pytest.raises(StateUnavailableError, match="the disk is full"):
        ask(begin(make()))
    assert sandbox.count() == 0


def test_resubmit_goes_on_without_the_shared_state(ask, sandbox, workflow_id, make, store):
    store.broken = True
    assert ask(begin(make(), SubmissionPolicy("resubmit"))).decision is Origin.STARTED


def create(client: Any) -> Any:
    return client.workflows.create("Report", known=["wf_1"])


@pytest.mark.parametrize("kind", ["lost_response", "truncated", "wrong_length"])
def test_a_lost_answer_to_a_creation_is_made_good_by_the_name(ask, sandbox, kind):
    sandbox.add_workflow("Report", id="wf_1")
    sandbox.faults.add(Fault(kind, method="POST", times=1))
    assert ask(create).id == sandbox.workflows[1]["id"]
    assert sandbox.count("POST") == 1


def test_a_creation_without_effect_ends_with_its_error(ask, sandbox):
    sandbox.faults.add(Fault("reset", method="POST"))
    with pytest.raises(TransportError):
        ask(create)
    assert sandbox.count("POST") == 1


def test_a_creation_that_can_not_be_told_names_the_workflows(ask, sandbox):
    sandbox.faults.add(Fault("lost_response", method="POST"))
    with pytest.raises(AmbiguousWorkflowError) as caught:
        ask(lambda client: client.workflows.create("Report"))
    assert sandbox.workflows[0]["id"] in str(caught.value)
