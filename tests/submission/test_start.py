"""Starting exactly one execution: lost responses, later attempts, other tasks and a state that can't be used."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import httpx
import pytest

from techflow_provider.client import (
    AmbiguousExecutionError,
    AmbiguousWorkflowError,
    BadRequestError,
    BudgetTimeoutError,
    ServerError,
    SharedExecutionError,
    StateUnavailableError,
    SupersededError,
    TechFlowError,
    TransportError,
)
from techflow_provider.sandbox import Fault, ManualClock, Sandbox
from techflow_provider.state.store import Write
from techflow_provider.submission.matching import Match, NoMatch
from techflow_provider.submission.model import Attempt, Origin, SubmissionPolicy
from techflow_provider.submission.records import Claim, payload_digest
from techflow_provider.submission.recovery import LostStartError, OtherAttemptError, take_over
from techflow_provider.submission.start import discard, finish_search, mark_done, resolve, send
from tests.submission.conftest import SITE, Starter, TaskState

START: dict[str, Any] = {"method": "POST", "path": "/workflows/*/execute"}
LOST = [
    Fault("lost_response", times=1, **START),
    Fault("reset", when="after", times=1, **START),
    Fault(status=502, when="after", times=1, **START),
    Fault("truncated", times=1, **START),
    Fault("html", when="after", times=1, **START),
]
WAITS = SubmissionPolicy(wait_for_completion=True)
FAILS = SubmissionPolicy("fail")


def test_a_response_names_the_execution(starter, sandbox):
    started = starter.start()
    assert (started.origin, started.execution.id) == (Origin.STARTED, sandbox.executions[0].id)
    assert sandbox.count() == 1


@pytest.mark.parametrize("fault", LOST, ids=lambda fault: f"{fault.kind}-{fault.status}")
def test_after_a_lost_response_the_execution_is_found_in_the_history(starter, sandbox, fault):
    sandbox.faults.add(fault)
    started = starter.start()
    assert started.execution.id == sandbox.executions[0].id
    assert len(sandbox.executions) == 1
    assert "can't be distinguished from it" in started.reason


def test_what_a_task_shows_about_its_start_names_the_execution_the_evidence_and_the_times(starter, sandbox):
    started, (execution,) = starter.start(), sandbox.executions
    assert started.to_dict() == {
        "decision": "started",
        "execution_id": execution.id,
        "workflow_id": "wf_1",
        "facts": "the response named it",
        "started_at": execution.started_at.isoformat(),
        "sent_at": started.times["sent_at"],
    }


def test_an_xcom_says_in_one_of_four_ways_how_a_task_got_its_execution():
    assert [str(each) for each in Origin] == ["started", "adopted after a lost answer", "re-attached", "joined"]


def in_time(starter: Starter, clock: ManualClock, **options: Any) -> Attempt:
    """Return an attempt for which a host's clock shows the sandbox's time."""
    attempt = starter.attempt(**options)
    return replace(attempt, context=replace(attempt.context, now=clock.now))


def test_a_request_is_recorded_as_sent_when_it_is_and_for_as_long_as_a_response_may_come(starter, clock):
    task_state = TaskState()
    attempt = in_time(starter, clock, task_state=task_state)
    starter.client.budget.cool_down(60.0, starter.client.budget.reserve("command", 0.0))
    seen: list[Any] = []
    interrupt(starter, lambda: seen.extend((attempt.attempts.read_shared(), task_state.value)))
    began = clock.now()
    starter.run(send(attempt))
    record, kept = seen
    assert (record.sent_at - began).total_seconds() >= 60.0
    settings = attempt.context.settings
    assert record.response_seconds == settings.response_seconds + 2 * settings.timeout_seconds
    assert kept["submission_id"] == record.submission_id


def test_a_claim_by_response_says_between_which_times_its_execution_was_requested(starter, sandbox, clock):
    started = starter.start()
    (claim,) = starter.attempt().attempts.claims([("wf_1", started.execution.id)]).values()
    now = clock.now().timestamp()
    assert (claim.by_response, claim.requested) == (True, (now, now + 1.0))


def test_an_execution_that_is_adopted_is_made_known_too(starter, sandbox):
    sandbox.faults.add(LOST[0])
    known: list[str] = []
    starter.run(send(replace(starter.attempt(), on_known=lambda each: known.append(each.id))))
    assert known == [sandbox.executions[0].id]


def test_an_execution_is_known_before_it_is_claimed(starter):
    attempt, claims = starter.attempt(), []
    known = replace(attempt, on_known=lambda each: claims.append(dict(attempt.attempts.claims([("wf_1", each.id)]))))
    starter.run(send(known))
    assert claims[0] == {}


@pytest.mark.parametrize(
    ("response", "reason"), [("id", "the response named it"), ("empty", "The response to the start named no execution")]
)
def test_a_response_may_name_only_the_execution_or_nothing(starter, sandbox, response, reason):
    sandbox.execute_response = response
    started = starter.start(payload={"day": 1})
    assert (started.origin, started.execution.id) == (Origin.STARTED, sandbox.executions[0].id)
    assert started.execution.workflow_id == "wf_1"
    assert started.reason.startswith(reason)
    (claim,) = starter.attempt().attempts.claims([("wf_1", started.execution.id)]).values()
    assert claim.payload_digest == payload_digest({"day": 1})


def test_a_task_whose_execution_another_one_has_adopted_takes_the_one_that_was_started_for_that(starter, sandbox):
    other = sandbox.start("wf_1")
    attempt = starter.attempt()

    def adopt() -> None:
        assert attempt.attempts.claim("wf_1", sandbox.executions[1].id, Claim("other#1")) == Claim("other#1")

    interrupt(starter, adopt)
    started = starter.run(send(attempt))
    assert (started.origin, started.execution.id) == (Origin.STARTED, other.id)
    assert "was adopted by other#1" in started.reason


def test_an_execution_that_was_claimed_before_the_attempt_was_lost_is_its_own(starter, sandbox):
    sandbox.faults.add(LOST[0])
    with pytest.raises(AmbiguousExecutionError):
        starter.start(policy=FAILS)
    attempts = starter.attempt().attempts
    attempts.claim("wf_1", sandbox.executions[0].id, Claim(attempts.read().submission_id))
    assert starter.start().origin is Origin.REATTACHED


def test_what_a_search_elsewhere_has_found_is_claimed_unless_another_task_was_faster(starter, sandbox):
    elsewhere = SubmissionPolicy(defers_search=True)
    for is_late in (False, True):
        name = f"late {is_late}"
        sandbox.faults.add(LOST[0])
        with pytest.raises(LostStartError) as lost:
            starter.start(name, policy=elsewhere)
        assert (lost.value.start.sent, lost.value.start.error) != (0, None)
        attempt, execution = starter.attempt(name), sandbox.executions[-1]
        found = Match(starter.client.executions.get(execution.id), "it was found", times={"looked_at": "then"})
        if is_late:
            attempt.attempts.claim("wf_1", execution.id, Claim("other#1", by_response=True))
            sandbox.start("wf_1")
        submission = starter.run(finish_search(attempt, lost.value.start, found))
        assert (submission.execution.id == execution.id) is not is_late
        assert submission.execution.id == sandbox.executions[-1].id
        assert submission.origin is Origin.ADOPTED


@pytest.mark.parametrize(("sent", "is_final"), [(2, False), (3, True)])
def test_after_the_third_request_without_effect_a_search_elsewhere_ends_in_its_error(starter, sandbox, sent, is_final):
    sandbox.faults.add(Fault(status=503, when="before", times=1, **START))
    with pytest.raises(LostStartError) as lost:
        starter.start(policy=SubmissionPolicy(defers_search=True))
    start = replace(lost.value.start, sent=sent)
    with pytest.raises(ServerError) if is_final else nullcontext():
        assert starter.run(finish_search(starter.attempt(), start, NoMatch())) is None
    assert starter.attempt().attempts.read().failed


def test_a_lagging_history_is_awaited(starter, sandbox, clock):
    sandbox.history_lag_seconds = 100
    sandbox.faults.add(LOST[0])
    assert starter.start().origin is Origin.ADOPTED
    assert 100 <= clock.monotonic() < 150
    assert len(sandbox.executions) == 1


def test_a_request_without_effect_is_sent_again_once_the_history_can_no_longer_lag(starter, sandbox, clock):
    sandbox.faults.add(Fault(status=502, when="before", times=1, **START))
    assert starter.start().origin is Origin.STARTED
    assert clock.monotonic() >= 150
    assert len(sandbox.executions) == 1


def test_a_start_that_never_has_an_effect_raises_its_error_and_leaves_no_intent(starter, sandbox):
    sandbox.faults.add(Fault(status=503, when="before", **START))
    with pytest.raises(ServerError):
        starter.start()
    assert sandbox.count(**START) == 3
    assert starter.attempt().attempts.read().failed
    assert starter.attempt().attempts.pending() == []


def test_an_accepted_start_that_never_appears_is_not_sent_again(starter, sandbox):
    sandbox.faults.add(Fault("html", when="before", **START))
    with pytest.raises(AmbiguousExecutionError, match="no unclaimed one appeared"):
        starter.start()
    assert sandbox.count(**START) == 1


def test_two_tasks_with_lost_responses_get_one_execution_each(starter, sandbox):
    sandbox.faults.add(Fault("lost_response", times=2, **START))
    ids = {starter.start(name).execution.id for name in ("a", "b")}
    assert ids == {each.id for each in sandbox.executions}
    assert len(ids) == 2


def test_an_execution_that_another_task_claims_is_not_adopted(starter, sandbox):
    other = sandbox.start("wf_1")
    starter.attempt().attempts.claim("wf_1", other.id, Claim("another task"))
    sandbox.faults.add(LOST[0])
    assert starter.start().execution.id == sandbox.executions[1].id


def test_fail_fails_in_every_attempt_until_the_task_is_cleared(starter, sandbox):
    sandbox.faults.add(LOST[0])
    for _ in range(2):
        with pytest.raises(AmbiguousExecutionError):
            starter.start(policy=FAILS)
    assert sandbox.count(**START) == 1
    assert starter.start(generation=2, policy=FAILS).origin is Origin.STARTED


def test_with_a_payload_the_only_candidate_is_adopted(starter, sandbox):
    sandbox.faults.add(LOST[0])
    started = starter.start(payload={"day": 1})
    assert (started.origin, sandbox.executions[0].payload) == (Origin.ADOPTED, {"day": 1})


def test_with_a_payload_the_error_names_all_candidates(starter, sandbox):
    sandbox.start("wf_1")
    sandbox.faults.add(LOST[0])
    with pytest.raises(AmbiguousExecutionError) as caught:
        starter.start(payload={"day": 1})
    assert all(each.id in str(caught.value) for each in sandbox.executions)


def test_a_later_attempt_joins_the_execution(starter, sandbox):
    first = starter.start(policy=WAITS)
    again = starter.start(policy=WAITS)
    assert (again.origin, again.execution.id) == (Origin.REATTACHED, first.execution.id)
    assert list(again.times) == ["sent_at"]
    assert len(sandbox.executions) == 1


def test_a_retry_that_waits_for_nothing_sends_no_request(starter, sandbox):
    first = starter.start()
    requests = sandbox.count()
    sandbox.faults.add(Fault(status=403, method="GET", path="/executions"))
    again = starter.start()
    assert (again.origin, again.execution.id) == (Origin.REATTACHED, first.execution.id)
    assert sandbox.count() == requests


def test_a_later_attempt_replaces_an_execution_that_failed(starter, sandbox):
    first = starter.start(policy=WAITS)
    sandbox.finish(first.execution.id, outcome="failed")
    assert starter.start(policy=WAITS).origin is Origin.STARTED


def test_after_its_execution_was_discarded_a_task_starts_another(starter, sandbox):
    first = starter.start(policy=WAITS)
    starter.run(discard(starter.client.context, starter.attempt().attempts, first.execution.id))
    starter.start(policy=WAITS)
    assert len(sandbox.executions) == 2
    assert starter.attempt().attempts.read().sequence == 2


def test_a_success_that_was_not_noticed_starts_no_other_execution(starter, sandbox):
    first = starter.start(policy=WAITS)
    report = starter.run(mark_done(starter.client.context, starter.attempt().attempts, first.execution.id))
    assert report["decision"] == "started"
    assert starter.start(policy=WAITS).execution.id == first.execution.id
    assert len(sandbox.executions) == 1


@pytest.mark.parametrize("policy", [SubmissionPolicy(), WAITS])
def test_a_finished_task_that_is_cleared_starts_another(starter, sandbox, policy):
    started = starter.start(policy=policy)
    if policy.wait_for_completion:
        starter.run(mark_done(starter.client.context, starter.attempt().attempts, started.execution.id))
    assert starter.start(generation=2, policy=policy).origin is Origin.STARTED
    assert len(sandbox.executions) == 2


def test_a_task_that_is_cleared_while_it_waits_joins_its_running_execution(starter):
    starter.start(policy=WAITS)
    assert starter.start(generation=2, policy=WAITS).origin is Origin.REATTACHED


def test_a_completion_that_cannot_be_recorded_changes_neither_a_retry_nor_a_clear(starter, sandbox, store, caplog):
    first = starter.start(policy=WAITS)
    sandbox.finish(first.execution.id)
    store.broken = True
    assert starter.run(mark_done(starter.client.context, starter.attempt().attempts, first.execution.id)) is None
    assert "a retry reads it again: the disk is full" in caplog.text
    store.broken = False
    assert starter.start(policy=WAITS).execution.id == first.execution.id
    assert starter.start(generation=2, policy=WAITS).origin is Origin.STARTED


def test_without_reattach_every_attempt_starts_its_own(starter):
    for _ in range(2):
        assert starter.start(policy=SubmissionPolicy(reattach=False)).origin is Origin.STARTED


@pytest.mark.parametrize("updates", range(2))
def test_without_the_shared_state_nothing_is_sent(starter, sandbox, store, updates):
    store.updates_left = updates
    with pytest.raises(StateUnavailableError, match="the disk is full"):
        starter.start()
    assert sandbox.count(**START) == 0


@pytest.mark.parametrize("updates", range(3, 7))
def test_when_the_shared_state_fails_after_the_request_a_retry_finds_the_execution(starter, sandbox, store, updates):
    attempt = replace(starter.attempt(), policy=WAITS)
    assert starter.run(resolve(attempt)) is None
    store.updates_left = updates - 1
    started = starter.run(send(attempt))
    store.updates_left = 10**6
    assert starter.start(policy=WAITS).execution.id == started.execution.id
    assert len(sandbox.executions) == 1


def test_nothing_is_recorded_while_a_request_waits_for_its_slot(starter, store):
    attempt = starter.attempt()
    starter.client.budget.cool_down(60.0, starter.client.budget.reserve("command", 0.0))
    with pytest.raises(BudgetTimeoutError):
        starter.run(send(attempt, within_seconds=1.0))
    assert attempt.attempts.read() is None


# Two attempts of one task that are alive at once.


def test_an_attempt_that_comes_second_joins_what_the_first_one_started(starter, sandbox):
    first, second = starter.attempt(policy=WAITS), starter.attempt(policy=WAITS)
    for attempt in (first, second):
        assert starter.run(resolve(attempt)) is None
    started = starter.run(send(first))
    joined = starter.run(send(second))
    assert (joined.origin, joined.execution.id) == (Origin.REATTACHED, started.execution.id)
    assert len(sandbox.executions) == 1


def test_an_attempt_that_wakes_up_after_its_task_is_done_starts_nothing(starter, sandbox, clock):
    zombie = starter.attempt()
    assert starter.run(resolve(zombie)) is None
    started = starter.start()
    clock.advance(600)
    assert starter.run(send(zombie)).execution.id == started.execution.id
    assert len(sandbox.executions) == 1
    assert zombie.attempts.pending() == []


def end_in_failure(starter: Starter, sandbox: Sandbox) -> None:
    found = starter.start(policy=WAITS)
    starter.run(discard(starter.client.context, starter.attempt().attempts, found.execution.id))


def be_refused(starter: Starter, sandbox: Sandbox) -> None:
    sandbox.faults.add(Fault(status=400, when="before", times=1, **START))
    with pytest.raises(BadRequestError):
        starter.start(policy=WAITS)
    assert starter.attempt().attempts.pending() == []


@pytest.mark.parametrize("earlier", [end_in_failure, be_refused])
def test_an_attempt_that_comes_second_starts_its_own_when_the_first_one_has_none_of_use(starter, sandbox, earlier):
    second = starter.attempt(policy=WAITS)
    assert starter.run(resolve(second)) is None
    earlier(starter, sandbox)
    started = starter.run(send(second))
    assert (started.origin, started.execution.id) == (Origin.STARTED, sandbox.executions[-1].id)


def test_a_record_of_another_workflow_is_of_no_use(starter, sandbox):
    sandbox.add_workflow("Another", id="wf_2")
    starter.start(policy=WAITS)
    assert starter.start(policy=WAITS, workflow_id="wf_2").execution.workflow_id == "wf_2"
    assert len(sandbox.executions) == 2


def interrupt(starter: Starter, act: Any, method: str = "POST") -> None:
    """Run something once, when the next response to a start has arrived, or to another request."""
    http: Any = starter.client._http.get()
    original = http.send

    def sending(request: Any, **options: Any) -> Any:
        response = original(request, **options)
        if request.method == method:
            http.send = original
            act()
        return response

    http.send = sending


def test_a_search_ends_with_what_another_attempt_has_learnt(starter, sandbox):
    sandbox.history_lag_seconds = 100
    sandbox.faults.add(LOST[0])
    with pytest.raises(AmbiguousExecutionError):
        starter.start(policy=FAILS)
    attempts, execution_id = starter.attempt().attempts, sandbox.executions[0].id
    lost = attempts.read()
    interrupt(starter, lambda: attempts.keep(lost, replace(lost, execution_id=execution_id)), "GET")
    found = starter.start()
    assert (found.origin, found.execution.id) == (Origin.REATTACHED, execution_id)
    assert len(sandbox.executions) == 1


def test_nothing_is_sent_again_when_the_shared_state_fails_during_a_search(starter, sandbox, store):
    sandbox.faults.add(LOST[0])
    interrupt(starter, lambda: setattr(store, "broken", True), "GET")
    with pytest.raises(AmbiguousExecutionError, match="the shared state can't be used: the disk is full"):
        starter.start()
    assert sandbox.count(**START) == 1


def test_an_attempt_that_joins_late_does_not_undo_what_another_one_has_completed(starter):
    started = starter.start(policy=WAITS)

    def complete() -> None:
        starter.start(policy=WAITS)
        starter.run(mark_done(starter.client.context, starter.attempt().attempts, started.execution.id))

    interrupt(starter, complete, "GET")
    assert starter.start(policy=WAITS).execution.id == started.execution.id
    assert starter.attempt().attempts.read().done


def test_a_response_that_arrives_after_a_retry_has_taken_over_serves_both(starter, sandbox):
    found: list[str] = []
    attempt = starter.attempt(policy=WAITS)
    interrupt(starter, lambda: found.append(starter.start(policy=WAITS).execution.id))
    assert [starter.run(send(attempt)).execution.id] == found
    assert len(sandbox.executions) == 1


def test_a_late_response_does_not_undo_what_a_later_attempt_has_completed(starter, sandbox):
    def later() -> None:
        started = starter.start(generation=2, policy=WAITS)
        sandbox.finish(started.execution.id)
        starter.run(mark_done(starter.client.context, starter.attempt().attempts, started.execution.id))

    interrupt(starter, later)
    starter.run(send(starter.attempt(policy=WAITS)))
    assert starter.start(generation=2, policy=WAITS).origin is Origin.REATTACHED
    assert len(sandbox.executions) == 1


@pytest.mark.parametrize("decide", [lambda _: None, lambda present: present.taken_over("another attempt")])
def test_a_refused_request_is_not_repeated_once_a_later_attempt_has_taken_over(starter, sandbox, decide):
    sandbox.faults.add(Fault(status=429, when="before", retry_after="1", times=1, **START))
    interrupt(starter, lambda: starter.attempt().attempts.update(decide))
    with pytest.raises(SupersededError):
        starter.run(send(starter.attempt()))
    assert not sandbox.executions


def test_a_request_that_is_held_up_after_it_was_recorded_is_recorded_again(starter, store, clock, monkeypatch):
    update, held_up, ages = store.update, [6.0, 6.0], []

    def slow_update(namespace: str, name: str, change: Any) -> Any:
        result = update(namespace, name, change)
        clock.advance(held_up.pop() if held_up else 0.0)
        return result

    attempt = starter.attempt()
    interrupt(starter, lambda: ages.append(attempt.attempts.read().since_sent))
    monkeypatch.setattr(store, "update", slow_update)
    starter.run(send(attempt))
    assert ages == [pytest.approx(0.0, abs=1.0)]


def test_a_record_that_changed_meanwhile_is_not_taken_over(starter):
    attempt = starter.attempt(policy=WAITS)
    starter.start(policy=WAITS)
    known = attempt.attempts.read()
    pending = replace(known, execution_id=None)
    other = replace(pending, submission_id="another")
    with pytest.raises(OtherAttemptError) as caught:
        starter.run(take_over(attempt, pending))
    assert caught.value.record == known
    with pytest.raises(SupersededError):
        starter.run(take_over(attempt, other))
    assert starter.run(take_over(attempt, replace(other, is_restored=True))).submission_id == "another"


# A task's own state, which Airflow keeps since 3.3.


def forget(starter: Starter) -> None:
    """Lose what the shared state keeps about attempts."""
    for namespace in (f"{SITE}/attempts", f"{SITE}/pending", f"{SITE}/claims"):
        for entry in starter.store.entries(namespace):
            starter.store.update(namespace, entry.name, lambda *_: (Write(None), None))


@pytest.mark.parametrize("policy", [SubmissionPolicy(), WAITS])
def test_a_record_in_the_tasks_own_state_survives_the_loss_of_the_shared_state(starter, sandbox, policy):
    task_state = TaskState()
    started = starter.start(task_state=task_state, policy=policy)
    forget(starter)
    assert starter.start(task_state=task_state, policy=policy).execution.id == started.execution.id
    assert len(sandbox.executions) == 1


def test_a_lost_start_that_only_the_tasks_own_state_knows_is_not_guessed_at(starter, sandbox):
    task_state = TaskState()
    sandbox.faults.add(LOST[0])
    with pytest.raises(AmbiguousExecutionError):
        starter.start(task_state=task_state, policy=FAILS)
    forget(starter)
    with pytest.raises(AmbiguousExecutionError, match="may have lost a claim of exec_"):
        starter.start(task_state=task_state)
    assert len(sandbox.executions) == 1
    assert starter.start(task_state=task_state, generation=2).origin is Origin.STARTED


def test_the_tasks_own_state_wins_over_a_shared_state_of_another_submission(starter, sandbox):
    task_state = TaskState()
    starter.start(policy=WAITS)
    sandbox.finish(sandbox.executions[0].id, outcome="failed")
    shared = starter.attempt().attempts.read()
    second = starter.start(task_state=task_state, policy=WAITS)
    starter.attempt().attempts.update(lambda _: shared)
    assert starter.start(task_state=task_state, policy=WAITS).execution.id == second.execution.id
    assert len(sandbox.executions) == 2


def test_discarding_and_completing_reach_the_tasks_own_state(starter):
    task_state = TaskState()
    first = starter.start(task_state=task_state, policy=WAITS)
    attempts = starter.attempt(task_state=task_state).attempts
    starter.run(mark_done(starter.client.context, attempts, first.execution.id))
    assert task_state.value["done"]
    starter.run(discard(starter.client.context, attempts, first.execution.id))
    assert task_state.value["failed"]


def test_without_the_tasks_own_state_nothing_is_sent_and_no_record_is_left(starter, sandbox):
    task_state = TaskState()
    attempt = starter.attempt(task_state=task_state)
    assert starter.run(resolve(attempt)) is None
    task_state.broken = True
    with pytest.raises(StateUnavailableError, match="no supervisor"):
        starter.run(send(attempt))
    assert not sandbox.executions
    assert starter.attempt().attempts.pending() == []


def create(client: Any) -> Any:
    return client.workflows.create("Report", known=["wf_1"])


@pytest.mark.parametrize("kind", ["lost_response", "truncated", "wrong_length"])
def test_after_a_lost_response_to_a_creation_the_workflow_is_found_by_its_name(starter, sandbox, kind):
    sandbox.faults.add(Fault(kind, method="POST", times=1))
    assert create(starter.client).id == sandbox.workflows[1]["id"]
    assert sandbox.count("POST") == 1


def test_a_creation_without_effect_raises_its_error(starter, sandbox):
    sandbox.faults.add(Fault("reset", method="POST"))
    with pytest.raises(TransportError):
        create(starter.client)
    assert sandbox.count("POST") == 1


def test_an_ambiguous_creation_names_the_workflows(starter, sandbox):
    sandbox.faults.add(Fault("lost_response", method="POST"))
    with pytest.raises(AmbiguousWorkflowError) as caught:
        starter.client.workflows.create("Report")
    assert sandbox.workflows[1]["id"] in str(caught.value)


# Ways out, and servers that differ from the model.


def test_a_cleared_task_with_another_payload_starts_another_execution_while_a_retry_joins(starter, sandbox, caplog):
    first = starter.start(policy=WAITS, payload={"day": 1})
    assert starter.start(policy=WAITS, payload={"day": 2}).execution.id == first.execution.id
    assert "with another payload, which may keep running: a retry joins it" in caplog.text
    assert starter.start(generation=2, policy=WAITS, payload={"day": 2}).origin is Origin.STARTED
    assert [each.payload for each in sandbox.executions] == [{"day": 1}, {"day": 2}]


def test_a_task_that_was_cleared_while_it_was_running_starts_another_execution_for_another_payload(starter, sandbox):
    starter.start(policy=WAITS, payload={"day": 1})
    attempt = starter.attempt(policy=WAITS, payload={"day": 2})
    cleared = replace(attempt, submitter=replace(attempt.submitter, clears=1))
    assert starter.run(resolve(cleared)) is None
    assert starter.run(send(cleared)).origin is Origin.STARTED
    assert [each.payload for each in sandbox.executions] == [{"day": 1}, {"day": 2}]


def test_what_cannot_be_determined_stays_so_in_every_retry_until_the_task_is_cleared(starter, sandbox):
    sandbox.start("wf_1")
    sandbox.faults.add(LOST[0])
    for _ in range(2):
        with pytest.raises(AmbiguousExecutionError, match="a task that is cleared starts a new one"):
            starter.start(payload={"day": 1})
    assert sandbox.count(**START) == 1
    assert starter.start(generation=2, payload={"day": 1}).origin is Origin.STARTED
    assert sandbox.count(**START) == 2


def respond_with_the_first(starter: Starter) -> None:
    """Let the server respond to each start with the execution that is running already."""
    http: Any = starter.client._http.get()
    original = http.send
    first: list[bytes] = []

    def sending(request: Any, **options: Any) -> Any:
        if request.method != "POST":
            return original(request, **options)
        if not first:
            first.append(original(request, **options).read())
        return httpx.Response(200, content=first[0], request=request)

    http.send = sending


def test_a_server_that_responds_with_a_running_execution_gets_one_request_of_the_second_task(starter, sandbox):
    respond_with_the_first(starter)
    first = starter.start("a")
    with pytest.raises(SharedExecutionError, match=f"execution {first.execution.id}, which it had started for a"):
        starter.start("b")
    assert starter.attempt("b").attempts.pending() == []
    joined = starter.start("c", policy=SubmissionPolicy(on_shared="join"))
    assert (joined.origin, joined.execution.id) == (Origin.JOINED, first.execution.id)
    assert len(sandbox.executions) == 1


def test_a_cleared_task_that_searches_elsewhere_starts_another_execution_all_the_same(starter, sandbox):
    sandbox.start("wf_1")
    sandbox.faults.add(LOST[0])
    with pytest.raises(AmbiguousExecutionError):
        starter.start(payload={"day": 1})
    elsewhere = SubmissionPolicy(defers_search=True)
    with pytest.raises(LostStartError):
        starter.start(payload={"day": 1}, policy=elsewhere)
    assert starter.start(generation=2, payload={"day": 1}, policy=elsewhere).origin is Origin.STARTED


@pytest.mark.parametrize("fault", [Fault("html", when="after", times=1, **START)])
def test_that_a_start_was_accepted_is_remembered_by_later_attempts(starter, sandbox, fault):
    sandbox.history_lag_seconds = 1000
    sandbox.faults.add(fault)
    for _ in range(2):
        with pytest.raises(AmbiguousExecutionError, match="no unclaimed one appeared"):
            starter.start()
    assert sandbox.count(**START) == 1


def test_an_accepted_start_is_sent_again_when_another_task_without_an_execution_has_adopted_what_it_started(
    starter, sandbox
):
    sandbox.history_lag_seconds = 1000
    sandbox.faults.add(Fault("html", when="after", times=1, **START))
    with pytest.raises(AmbiguousExecutionError):
        starter.start()
    sandbox.history_lag_seconds = 0
    starter.attempt().attempts.claim("wf_1", sandbox.executions[0].id, Claim("another task#1"))
    assert starter.start().execution.id == sandbox.executions[1].id
    assert len(sandbox.executions) == 2


def test_an_execution_that_began_before_the_request_is_not_adopted(starter, sandbox, clock):
    starter.start("earlier")
    sandbox.start("wf_1")
    clock.advance(4)
    sandbox.faults.add(LOST[0])
    assert starter.start().execution.id == sandbox.executions[-1].id


def test_the_two_of_a_lost_and_emptied_state_and_a_first_attempt_long_ago_are_ambiguous(starter, sandbox, clock):
    began = clock.now()
    clock.advance(60)
    sandbox.start("wf_1")
    attempt = starter.attempt()
    attempt = replace(attempt, submitter=replace(attempt.submitter, began=began))
    attempt = replace(attempt, context=replace(attempt.context, now=clock.now))
    with pytest.raises(AmbiguousExecutionError, match="may have lost a claim"):
        starter.run(resolve(attempt))
    assert sandbox.count(**START) == 0


@pytest.mark.parametrize("kept_since", [0.0, 20.0])
def test_a_state_that_is_younger_than_the_first_attempt_may_have_lost_what_that_has_started(
    starter, sandbox, clock, kept_since
):
    began = clock.now()
    clock.advance(kept_since)
    starter.start("another task")
    clock.advance(30)
    sandbox.start("wf_1")
    clock.advance(600)
    attempt = in_time(starter, clock)
    attempt = replace(attempt, submitter=replace(attempt.submitter, began=began))
    if not kept_since:
        assert starter.run(resolve(attempt)) is None
        return
    with pytest.raises(AmbiguousExecutionError, match="may have lost a claim"):
        starter.run(resolve(attempt))


# What the history shows of an earlier attempt's execution.


def start_more(sandbox: Sandbox) -> None:
    """Start executions of another workflow, so that the history has several pages."""
    sandbox.add_workflow("Another", id="wf_2")
    for _ in range(3):
        sandbox.start("wf_2")
    sandbox.page_size = 1


def lose_later_pages(starter: Starter) -> None:
    """Let the server show the first page of its history alone."""
    http: Any = starter.client._http.get()
    original = http.send

    def sending(request: Any, **options: Any) -> Any:
        return httpx.Response(403, request=request) if request.url.query else original(request, **options)

    http.send = sending


@pytest.mark.parametrize(
    ("generation", "seconds", "is_whole", "is_joined"),
    [(1, 200.0, True, True), (2, 100.0, True, True), (2, 200.0, False, True), (2, 200.0, True, False)],
    ids=["a retry", "it may lag", "a page is missing", "cleared"],
)
def test_only_a_cleared_task_starts_another_execution_when_the_whole_history_does_not_show_its_own(
    starter, sandbox, clock, *, generation, seconds, is_whole, is_joined
):
    started = starter.run(send(in_time(starter, clock, policy=WAITS)))
    clock.advance(seconds)
    sandbox.history_lag_seconds = 10_000
    if not is_whole:
        sandbox.history_lag_seconds = 0
        start_more(sandbox)
        lose_later_pages(starter)
    found = starter.run(resolve(in_time(starter, clock, policy=WAITS, generation=generation)))
    assert (found is not None and found.execution.id == started.execution.id) is is_joined


def test_an_execution_on_a_later_page_of_the_history_is_found(starter, sandbox):
    started = starter.start(policy=WAITS)
    sandbox.finish(started.execution.id, outcome="failed")
    start_more(sandbox)
    assert starter.run(resolve(starter.attempt(policy=WAITS))) is None


def test_a_search_reads_all_pages_of_the_history(starter, sandbox):
    sandbox.faults.add(LOST[0])
    interrupt(starter, lambda: start_more(sandbox), "GET")
    sandbox.history_lag_seconds = 2.0
    assert starter.start().execution.id == sandbox.executions[0].id


def test_a_task_that_has_joined_its_execution_after_a_clear_joins_it_in_retries_with_another_payload(starter):
    def attempt(day: int, clears: int) -> Attempt:
        made: Attempt = starter.attempt(policy=WAITS, payload={"day": day})
        return replace(made, submitter=replace(made.submitter, clears=clears))

    first = starter.run(send(attempt(1, clears=0)))
    for day in (1, 2):
        assert starter.run(resolve(attempt(day, clears=1))).execution.id == first.execution.id


# Executions that are running already.


RUNNING = SubmissionPolicy(reuse_running=True)


def test_the_latest_execution_of_the_workflow_that_is_running_is_joined_on_whichever_page_it_is(starter, sandbox):
    running = sandbox.start("wf_1")
    start_more(sandbox)
    joined = starter.start(policy=RUNNING)
    assert (joined.origin, joined.execution.id) == (Origin.JOINED, running.id)
    assert starter.attempt().attempts.read().execution_id == running.id
    sandbox.finish(running.id)
    assert starter.start("another task", policy=RUNNING).origin is Origin.STARTED


def test_nothing_is_started_while_the_history_may_have_a_running_execution_that_cannot_be_read(starter, sandbox):
    sandbox.start("wf_1")
    start_more(sandbox)
    lose_later_pages(starter)
    with pytest.raises(TechFlowError, match="403"):
        starter.start(policy=RUNNING)
    assert sandbox.count(**START) == 0


def test_an_unreadable_intent_of_another_task_blocks_nobody(starter, sandbox, store):
    store.update(f"{SITE}/pending", "other", lambda *_: (Write('{"new": "format"}', 60.0), None))
    sandbox.faults.add(LOST[0])
    assert starter.start().origin is Origin.ADOPTED
