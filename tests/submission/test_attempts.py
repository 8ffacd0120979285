"""The records of attempts, claims, and what version 0.1.0 has written in their place."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from techflow_provider.client import StateUnavailableError
from techflow_provider.state.identity import store_entry
from techflow_provider.state.optimistic import UnreachableError
from techflow_provider.state.store import StoreError, Write
from techflow_provider.submission.attempts import CLAIMS, KNOWN, PENDING, AttemptStore, use_state
from techflow_provider.submission.legacy import LegacyState
from techflow_provider.submission.model import Origin, SubmissionPolicy
from techflow_provider.submission.records import AttemptRecord, Claim
from techflow_provider.submission.start import discard, mark_done, resolve, send
from tests.submission.conftest import ACCOUNT, SITE, TASK, FailingStore, TaskState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RECORD = AttemptRecord("wf_1", f"{TASK}#1", "1", "attempt-1", NOW, 60.0, "abc")
WAITS = SubmissionPolicy(wait_for_completion=True)
DAY_SECONDS = 86400.0


@pytest.fixture
def attempts(store) -> AttemptStore:
    return AttemptStore(store, SITE, TASK, legacy=LegacyState(store, ACCOUNT, TASK))


def put(store: Any, kind: str, value: Any, name: str = TASK, site: str = ACCOUNT) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    store.update(f"{site}/{kind}", name, lambda *_: (Write(text, 60.0), None))


@pytest.mark.parametrize(
    "record", [RECORD, RECORD.taken_over("attempt-2"), replace(RECORD, execution_id="ex_1", report={"a": 1}, done=True)]
)
def test_a_record_is_read_as_it_was_written(attempts, clock, record):
    clock.advance(7)
    for kind in (PENDING, KNOWN):
        assert attempts.update(lambda _: record, kind) is record
        assert attempts.read() == replace(record, sent_clock=clock.monotonic())
        assert attempts.update(lambda _: None, kind) is None
        assert attempts.read() is None


def test_a_submission_is_in_flight_until_no_response_may_come_any_more(attempts, clock):
    attempts.update(lambda _: RECORD)
    clock.advance(59)
    assert attempts.read().in_flight
    clock.advance(1)
    assert not attempts.read().in_flight


def test_a_record_that_was_taken_over_is_not_in_flight_and_knows_when_the_request_was_sent(attempts, clock):
    attempts.update(lambda _: RECORD)
    clock.advance(10)
    attempts.update(lambda present: present.taken_over("attempt-2"))
    clock.advance(5)
    present = attempts.read()
    assert (present.in_flight, present.attempt_id, present.since_sent) == (False, "attempt-2", 15)
    assert not present.accepted


def test_a_record_that_the_shared_state_has_lost_may_have_lost_claims_and_its_time_with_it():
    read = AttemptRecord.read(replace(RECORD, sent_clock=5.0, since_sent=2.0).to_dict(7.0))
    assert read == replace(RECORD, lost=True, is_restored=True, is_clock_kept=False)


@pytest.mark.parametrize(("seconds", "is_kept"), [(-5.5, False), (-5.0, True), (5.0, True), (5.5, False)])
def test_the_stores_clock_has_had_a_break_when_it_differs_by_more_than_five_seconds(seconds, is_kept):
    assert AttemptRecord.read(RECORD.to_dict(100.0), 10.0, 110.0 + seconds).is_clock_kept is is_kept


@pytest.mark.parametrize(("sent_seconds", "since_sent"), [({}, 10.0), ({"sent_seconds": 2.5}, 12.5)])
@pytest.mark.parametrize("left_out", ["written_clock", "sent_clock"])
def test_a_record_of_an_earlier_version_lacks_what_was_added_since(sent_seconds, since_sent, left_out):
    names = ("workflow_id", "submission_id", "generation", "attempt_id", "response_seconds", "payload_digest")
    kept = {name: getattr(RECORD, name) for name in names} | {"sent_at": NOW.isoformat(), "written_clock": 1.0}
    value = {**kept, "sent_clock": 1.0, **sent_seconds}
    del value[left_out]
    read = AttemptRecord.read(json.dumps(value), 10.0, 100.0)
    expected = replace(RECORD, sent_clock=100.0 - since_sent, is_clock_kept=False, since_sent=since_sent)
    assert read == expected
    assert (read.sequence, read.clears, read.lost, read.accepted, read.done, read.failed) == (1, 0, *(False,) * 4)


def test_the_hosts_clock_counts_where_the_stores_clock_has_had_a_break_or_the_two_disagree(attempts, clock):
    attempts.update(lambda _: RECORD)
    clock.advance(10)
    present = attempts.read()
    assert present.since_sent_between(NOW + timedelta(seconds=40)) == (10, 10)
    assert present.since_sent_between(NOW + timedelta(seconds=40.5)) == (10, 40.5)
    assert present.since_sent_between(NOW + timedelta(hours=1)) == (10, 3600)
    assert present.since_sent_between(NOW - timedelta(hours=1)) == (-3600, 10)
    broken = AttemptRecord.read(present.to_dict(1000.0), 2.0, 12.0)
    assert (broken.since_sent, broken.is_clock_kept) == (1002.0, False)
    assert broken.since_sent_between(NOW + timedelta(hours=1)) == (1002, 3600)


@pytest.mark.parametrize(
    ("changes", "days"), [({}, 30), ({"execution_id": "ex_1"}, 30), ({"done": True}, 2), ({"failed": True}, 2)]
)
def test_a_record_is_kept_for_a_month_and_once_nothing_is_wanted_from_it_for_two_days(attempts, clock, changes, days):
    attempts.update(lambda _: replace(RECORD, **changes), KNOWN)
    clock.advance(days * DAY_SECONDS - 1.0)
    assert attempts.read() is not None
    clock.advance(2.0)
    assert attempts.read() is None


def test_a_claim_is_kept_for_a_month(attempts, clock):
    attempts.claim("wf_1", "1", Claim("a"))
    clock.advance(30 * DAY_SECONDS - 1.0)
    assert attempts.claims([("wf_1", "1")])
    clock.advance(2.0)
    assert not attempts.claims([("wf_1", "1")])


def test_other_versions_of_this_package_find_records_and_claims_under_the_same_names(attempts, store):
    attempts.update(lambda _: RECORD)
    attempts.update(lambda _: RECORD, KNOWN)
    attempts.claim("wf/1", "1", Claim("a"))
    for kind, name in (("pending", TASK), ("attempts", TASK), ("claims", "wf%2F1/1")):
        assert [each.name for each in store.entries(f"{SITE}/{kind}")] == [name]


@pytest.mark.parametrize("kind", [PENDING, KNOWN])
def test_a_record_under_a_former_name_of_the_submitter_is_moved(store, clock, kind):
    record = RECORD if kind == PENDING else replace(RECORD, execution_id="ex_1")
    former = AttemptStore(store, SITE, "former")
    former.update(lambda _: record, kind)
    attempts = AttemptStore(store, SITE, TASK, former=("former", "older"))
    clock.advance(7)
    for _ in range(2):
        assert attempts.read() == replace(record, sent_clock=0.0, since_sent=7.0)
        assert former.read() is None


@pytest.mark.parametrize(
    ("own", "shared"),
    [
        ({"sequence": 2}, {"sequence": 1, "execution_id": "ex_1", "done": True}),
        ({"execution_id": "ex_1"}, {}),
        ({"execution_id": "ex_1", "done": True}, {"execution_id": "ex_1"}),
        ({"execution_id": "ex_1", "failed": True}, {"execution_id": "ex_1"}),
    ],
)
def test_of_the_tasks_own_state_and_the_shared_one_the_one_that_knows_more_counts(store, own, shared):
    task_state = TaskState()
    attempts = AttemptStore(store, SITE, TASK, task_state)
    for first, second in ((own, shared), (shared, own)):
        task_state.value = replace(RECORD, **first).to_dict()
        put(store, KNOWN, replace(RECORD, **second).to_dict(0.0), site=SITE)
        read = attempts.read()
        assert read is not None
        assert {name: getattr(read, name) for name in own} == own
        assert read.is_restored is (first is own)
    # Of two that know the same, the shared one has its time.
    task_state.value = replace(RECORD, **own).to_dict()
    read = attempts.read()
    assert read is not None
    assert not read.is_restored


def test_what_the_tasks_own_state_alone_has_kept_is_amended_there(store):
    task_state = TaskState()
    task_state.value = replace(RECORD, execution_id="ex_1", report={"a": 1}).to_dict()
    amended = AttemptStore(store, SITE, TASK, task_state).amend("ex_1", done=True)
    assert amended is not None
    assert (amended.report, amended.done, task_state.value["done"]) == ({"a": 1}, False, True)


def test_the_shared_state_is_as_old_as_the_oldest_that_it_has_kept(attempts, store, clock):
    assert attempts.oldest_seconds() == 0.0
    attempts.claim("wf_1", "1", Claim("a"))
    clock.advance(5)
    attempts.update(lambda _: RECORD, KNOWN)
    clock.advance(2)
    assert attempts.oldest_seconds() == 7.0
    # The state's own name is written first of all.
    fresh = FailingStore(clock.monotonic)
    store_entry(fresh)
    clock.advance(3)
    assert AttemptStore(fresh, SITE, TASK).oldest_seconds() == 3.0


class Failing:
    """An operation that fails some times first.

    :param times: how often
    :param error: how
    """

    def __init__(self, times: int, error: StoreError) -> None:
        self.tries, self._times, self._error = 0, times, error

    def __call__(self) -> str:
        self.tries += 1
        if self.tries <= self._times:
            raise self._error
        return "done"


@pytest.mark.parametrize(("random", "seconds"), [(0.0, 3.0), (0.5, 6.0), (1.0, 9.0)])
def test_an_operation_on_the_state_is_retried_four_times_within_seconds(starter, clock, random, seconds):
    context = replace(starter.client.context, random=lambda: random)
    assert starter.run(use_state(context, Failing(4, StoreError("locked")))) == "done"
    assert clock.monotonic() == pytest.approx(seconds)
    with pytest.raises(StoreError, match="locked"):
        starter.run(use_state(context, Failing(5, StoreError("locked"))))
    assert clock.monotonic() == pytest.approx(2 * seconds)


def test_a_state_that_restarts_is_awaited_for_one_and_a_half_minutes(starter, clock):
    context, operation = replace(starter.client.context, random=lambda: 0.5), Failing(1000, UnreachableError("redis"))
    with pytest.raises(UnreachableError):
        starter.run(use_state(context, operation))
    assert clock.monotonic() == pytest.approx(90.0)
    assert operation.tries == 26


def test_no_state_is_awaited_for_longer_than_a_request(starter, clock):
    context = replace(starter.client.context, random=lambda: 0.5)
    context = replace(context, settings=replace(context.settings, deadline_seconds=3.0))
    with pytest.raises(UnreachableError):
        starter.run(use_state(context, Failing(1000, UnreachableError("redis"))))
    assert clock.monotonic() == pytest.approx(2.0)


def test_an_intent_is_deleted_by_its_attempt_or_whoever_knows_what_came_of_it(attempts):
    attempts.update(lambda _: RECORD)
    attempts.drop("another submission")
    attempts.drop(RECORD.submission_id, "attempt-2")
    assert attempts.read_kind(PENDING).submission_id == RECORD.submission_id
    attempts.drop(RECORD.submission_id, RECORD.attempt_id)
    assert attempts.read() is None


def test_of_two_records_the_later_request_counts_and_of_one_request_what_came_of_it(attempts):
    known = replace(RECORD, execution_id="ex_1")
    attempts.keep(RECORD, known)
    attempts.update(lambda _: RECORD)
    assert attempts.read().execution_id == "ex_1"
    attempts.update(
        lambda _: replace(RECORD, submission_id="of an attempt that was stopped before it read what is known")
    )
    assert attempts.read().execution_id == "ex_1"
    attempts.update(lambda _: replace(RECORD, submission_id="later", sequence=2))
    assert attempts.read().submission_id == "later"


def test_what_another_attempt_or_a_later_request_has_recorded_is_kept(attempts):
    for other in (replace(RECORD, attempt_id="attempt-2", execution_id="ex_2"), replace(RECORD, submission_id="later")):
        attempts.update(lambda _, other=other: other, KNOWN)
        attempts.keep(RECORD, replace(RECORD, execution_id="ex_1"))
        assert replace(attempts.read_kind(KNOWN), sent_clock=None) == other


def test_pending_submissions_are_listed_until_they_name_an_execution(store):
    records = {"a": RECORD, "b": replace(RECORD, lost=True)}
    for task, record in records.items():
        put(store, PENDING, replace(record, submission_id=task).to_dict(1.0), task, SITE)
    attempts = AttemptStore(store, SITE, "a")
    assert [each.submission_id for each in attempts.pending()] == ["a", "b"]
    requested = replace(RECORD, submission_id="a")
    attempts.keep(requested, replace(requested, execution_id="ex_1"))
    assert [each.submission_id for each in attempts.pending()] == ["b"]


def test_an_execution_belongs_to_the_first_submission_that_claims_it(attempts):
    assert [attempts.claim("wf_1", "1", Claim(each)).submission_id for each in ("a", "b", "a")] == ["a", "a", "a"]
    assert attempts.claim("wf_2", "1", Claim("b")).submission_id == "b"
    assert attempts.claims([("wf_1", "1"), ("wf_2", "1"), ("wf_2", "2")]) == {
        ("wf_1", "1"): Claim("a"),
        ("wf_2", "1"): Claim("b"),
    }


def test_claims_are_listed_with_their_submitter_and_age(attempts, clock):
    attempts.claim("a/b", "c/1", Claim(f"{TASK}#1"))
    clock.advance(7)
    attempts.claim("wf_1", "2", Claim("without a number"))
    assert set(attempts.claimed()) == {("a/b", "c/1", TASK, 7.0), ("wf_1", "2", "without a number", 0.0)}


def test_what_is_known_of_all_submitters_is_listed(store):
    records = {"a": replace(RECORD, execution_id="ex_1"), "b": replace(RECORD, failed=True), "c": {"new": "format"}}
    for task, record in records.items():
        put(store, KNOWN, record.to_dict(1.0) if isinstance(record, AttemptRecord) else record, task, SITE)
    assert [each.execution_id for each in AttemptStore(store, SITE, "a").known()] == ["ex_1"]


def test_a_claim_is_read_as_it_was_written_and_one_of_an_earlier_version_as_a_submission(attempts, store):
    claim = Claim("a", True, (1.5, 2.5), "abc")
    attempts.claim("wf_1", "1", claim)
    put(store, CLAIMS, f"{TASK}#1", "ex_2")
    assert attempts.claims([("wf_1", "1"), ("wf_1", "ex_2")]) == {
        ("wf_1", "1"): claim,
        ("wf_1", "ex_2"): Claim(f"{TASK}#1"),
    }


@pytest.mark.parametrize(
    "value",
    [
        *("not json", "[]", "{}", '{"sent_at": "2026-01-01T00:00:00+00:00", "new": 1}'),
        json.dumps({**RECORD.to_dict(), "sent_at": "2026-01-01T00:00:00"}),
        json.dumps({**RECORD.to_dict(), "sent_seconds": None}),
        json.dumps({**RECORD.to_dict(), "response_seconds": "soon"}),
    ],
)
def test_an_unreadable_record_of_another_task_is_skipped_with_one_warning(store, attempts, caplog, value):
    put(store, PENDING, value, "other", SITE)
    attempts.update(lambda _: RECORD)
    with caplog.at_level(logging.WARNING):
        assert [len(attempts.pending()) for _ in range(3)] == [1, 1, 1]
    assert [record.getMessage()[:28] for record in caplog.records] == ["The record of other is ignor"]


@pytest.mark.parametrize(("kind", "site"), [(KNOWN, SITE), ("notes", ACCOUNT)])
def test_an_unreadable_record_of_the_task_itself_is_an_error_and_nothing_is_sent(starter, sandbox, store, kind, site):
    put(store, kind, '{"ticket": "of version 9"}', site=site)
    with pytest.raises(StateUnavailableError, match=r"of version 9|written by version"):
        starter.start()
    assert not sandbox.executions


def test_an_unreadable_record_in_the_tasks_own_state_is_an_error(store):
    task_state = TaskState()
    task_state.value = {"submission_id": "of version 9"}
    with pytest.raises(StoreError, match="of version 9"):
        AttemptStore(store, ACCOUNT, TASK, task_state).read()


# What version 0.1.0 has written.

NOTE = {
    "account": ACCOUNT,
    "workflow_id": "wf_1",
    "ticket": f"{TASK}#abc",
    "round": "1",
    "noted_at": "2026-01-01T00:00:00+00:00",
    "payload_digest": None,
    "execution_id": None,
    "told": None,
    "ended": False,
}
INTENT = {
    "author": "0123456789ab",
    "lease_seconds": 60.0,
    "lost": False,
    "payload_digest": None,
    "sent_at": "2026-01-01T00:00:00+00:00",
    "sent_seconds": 0.0,
    "ticket": f"{TASK}#abc",
    "workflow_id": "wf_1",
}


def legacy(store: Any) -> list[str]:
    return [entry.name for kind in ("notes", "intents") for entry in store.entries(f"{ACCOUNT}/{kind}")]


def test_a_note_of_version_0_1_0_is_a_record_whose_response_nobody_awaits(store):
    put(store, "notes", {**NOTE, "execution_id": "ex_1", "told": {"a": 1}, "ended": True})
    read = LegacyState(store, ACCOUNT, TASK).read(None)
    expected = AttemptRecord("wf_1", f"{TASK}#abc", "1", "of version 0.1.0", NOW, 0.0, lost=True, execution_id="ex_1")
    assert read == replace(expected, report={"a": 1}, done=True, is_clock_kept=False, sent_clock=0.0)


@pytest.mark.parametrize(("note", "intent"), [("not json", INTENT), ("[]", INTENT), (NOTE, "not json"), (NOTE, {})])
def test_a_note_of_version_0_1_0_that_cannot_be_read_is_an_error(store, note, intent):
    put(store, "notes", note)
    put(store, "intents", intent)
    with pytest.raises(StoreError, match=f"the note of {TASK} written by version 0.1.0"):
        LegacyState(store, ACCOUNT, TASK).read(None)


def test_a_retry_joins_what_version_0_1_0_has_started(starter, sandbox, store):
    execution = sandbox.start("wf_1")
    put(store, "notes", {**NOTE, "execution_id": execution.id, "told": {"decision": "started"}})
    assert starter.start(policy=WAITS).execution.id == execution.id
    assert not legacy(store)
    assert len(sandbox.executions) == 1


def test_a_retry_adopts_what_version_0_1_0_may_have_started(starter, sandbox, store, clock):
    put(store, "notes", NOTE)
    put(store, "intents", INTENT)
    execution = sandbox.start("wf_1")
    clock.advance(30)
    adopted = starter.start()
    assert (adopted.origin, adopted.execution.id) == (Origin.ADOPTED, execution.id)
    assert not legacy(store)


def test_a_retry_starts_an_execution_when_version_0_1_0_had_not_sent_its_request(starter, sandbox, store, clock):
    put(store, "notes", NOTE)
    put(store, "intents", {**INTENT, "sent_at": None})
    assert starter.start().origin is Origin.STARTED
    assert clock.monotonic() < 10
    assert not legacy(store)


def test_a_task_that_version_0_1_0_has_deferred_completes_and_fails(starter, store):
    context, attempts = starter.client.context, starter.attempt().attempts
    put(store, "notes", {**NOTE, "execution_id": "ex_1", "told": {"decision": "started"}})
    assert starter.run(mark_done(context, attempts, "ex_1")) == {"decision": "started"}
    assert starter.run(resolve(starter.attempt(policy=WAITS))).execution.id == "ex_1"
    starter.run(discard(context, attempts, "ex_1"))
    assert starter.attempt().attempts.read().failed
    put(store, "notes", {**NOTE, "execution_id": "ex_1"})
    starter.run(discard(context, attempts, "ex_1"))
    assert starter.run(resolve(starter.attempt())) is None


@pytest.mark.parametrize("execution_id", ["ex_1", None])
def test_a_note_of_version_0_1_0_in_the_tasks_own_state_is_understood(starter, sandbox, execution_id):
    execution = sandbox.start("wf_1")
    task_state = TaskState()
    task_state.value = {**NOTE, "execution_id": execution_id and execution.id}
    assert starter.start(task_state=task_state).execution.id == execution.id
    assert task_state.value["submission_id"] == NOTE["ticket"]
    assert len(sandbox.executions) == 1


def test_a_note_in_the_tasks_own_state_is_read_with_the_intent_in_the_shared_state(starter, sandbox, store, clock):
    task_state = TaskState()
    task_state.value = NOTE
    put(store, "intents", {**INTENT, "sent_at": None})
    policy = SubmissionPolicy(on_ambiguous="fail", wait_for_completion=True)
    found = starter.start(task_state=task_state, policy=policy)
    assert found.origin is Origin.STARTED
    assert clock.monotonic() < 10
    assert task_state.value["execution_id"] == found.execution.id
    assert not legacy(store)


def test_a_note_in_the_tasks_own_state_of_a_request_that_was_not_sent_is_deleted_with_its_intent(starter, store):
    task_state = TaskState()
    task_state.value = NOTE
    put(store, "intents", {**INTENT, "sent_at": None})
    for _ in range(2):
        assert starter.attempt(task_state=task_state).attempts.read() is None
    assert task_state.value is None


def test_a_request_of_a_note_in_the_tasks_own_state_is_as_old_as_its_intent(starter, sandbox, store, clock):
    task_state = TaskState()
    task_state.value = NOTE
    put(store, "intents", INTENT)
    clock.advance(50)
    assert starter.start(task_state=task_state).origin is Origin.STARTED
    assert clock.monotonic() < 180
    assert not legacy(store)


@pytest.mark.parametrize("end", [mark_done, discard])
def test_a_task_with_a_note_in_its_own_state_completes_and_fails(starter, store, end):
    task_state = TaskState()
    task_state.value = {**NOTE, "execution_id": "ex_1", "told": {"decision": "started"}}
    attempts = starter.attempt(task_state=task_state).attempts
    starter.run(end(starter.client.context, attempts, "ex_1"))
    record = attempts.read()
    assert (record.done, record.failed) == (end is mark_done, end is discard)
    assert (task_state.value["done"], task_state.value["failed"]) == (end is mark_done, end is discard)


def test_an_execution_that_a_task_of_version_0_1_0_may_get_is_left_to_it(starter, sandbox, store):
    sandbox.start("wf_1")
    put(store, "intents", {**INTENT, "ticket": "other#1"}, "other")
    attempt = starter.attempt()
    assert [each.submission_id for each in attempt.attempts.pending()] == ["other#1"]
    assert starter.run(send(attempt)).origin is Origin.STARTED
