"""Intents and claims: of two who want the same, one gets it, and each can tell."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from techflow_provider.state.records import Intent, Records, put_entry
from techflow_provider.state.store import StoreError

NOW = datetime(2026, 1, 2, tzinfo=UTC)
INTENT = Intent("dag/run/task/-1", "ticket-1", "wf-1", "try-1", 60.0, payload_digest="abc")


@pytest.fixture
def records(store, key) -> Records:
    return Records(store, key)


def test_the_first_intent_of_a_task_stands(records):
    assert records.begin(INTENT) == INTENT
    assert records.begin(replace(INTENT, author="try-2")).author == "try-1"


def test_an_intent_is_read_as_it_was_written(records):
    for intent in (INTENT, INTENT.sending(NOW), INTENT.sending(NOW).looking("try-2")):
        records.begin(intent)
        assert records.intent(INTENT.task) == intent
        records.finish(intent)


def test_an_intent_is_in_flight_from_its_request_until_its_lease_is_over(records, clock):
    records.begin(INTENT)
    assert not records.intent(INTENT.task).in_flight
    assert records.replace(INTENT, INTENT.sending(NOW))
    clock.advance(59)
    assert records.intent(INTENT.task).in_flight
    clock.advance(1)
    assert not records.intent(INTENT.task).in_flight


def test_a_second_request_begins_the_lease_anew(records, clock):
    records.begin(INTENT.sending(NOW))
    clock.advance(59)
    standing = records.intent(INTENT.task)
    assert records.replace(standing, standing.sending(NOW + timedelta(seconds=59)))
    clock.advance(59)
    standing = records.intent(INTENT.task)
    assert standing.in_flight
    assert (standing.since_sent, standing.longest_since_sent(NOW)) == (59, 59)


def test_who_expects_no_answer_any_more_is_not_in_flight_and_knows_when_the_request_left(records, clock):
    records.begin(INTENT.sending(NOW))
    clock.advance(10)
    standing = records.intent(INTENT.task)
    assert records.replace(standing, standing.looking("try-2"))
    clock.advance(5)
    looking = records.intent(INTENT.task)
    assert (looking.in_flight, looking.author, looking.since_sent) == (False, "try-2", 15)


def test_a_clock_that_shows_more_time_since_the_request_counts(records, clock):
    records.begin(INTENT.sending(NOW))
    clock.advance(10)
    assert records.intent(INTENT.task).longest_since_sent(NOW) == 10
    assert records.intent(INTENT.task).longest_since_sent(NOW + timedelta(hours=1)) == 3600


def test_pollers_are_counted_for_two_minutes_after_their_last_heartbeat(records, clock):
    assert [records.heartbeat("a"), records.heartbeat("a"), records.heartbeat("b")] == [1, 1, 2]
    clock.advance(119)
    assert records.heartbeat("a") == 2
    clock.advance(2)
    assert records.heartbeat("a") == 1


def test_who_holds_an_old_version_changes_nothing(records):
    records.begin(INTENT)
    assert records.replace(INTENT, INTENT.sending(NOW))
    assert not records.replace(INTENT, INTENT.looking("try-2"))
    assert not records.finish(INTENT)
    assert records.finish(records.intent(INTENT.task))
    assert records.intent(INTENT.task) is None


def test_intents_are_listed_by_workflow(records):
    for task, workflow in (("a", "wf-1"), ("b", "wf-1"), ("c", "wf-10")):
        records.begin(replace(INTENT, task=task, workflow_id=workflow))
    assert [intent.task for intent in records.intents("wf-1")] == ["a", "b"]


def test_an_execution_belongs_to_the_first_that_claims_it(records):
    assert records.claim("ex-1", "a") == "a"
    assert records.claim("ex-1", "b") == "a"
    assert records.claim("ex-1", "a") == "a"
    assert (records.holder("ex-1"), records.holder("ex-2")) == ("a", None)
    assert records.claims() == {"ex-1": "a"}


def test_only_its_holder_can_release_a_claim(records):
    records.claim("ex-1", "a")
    assert not records.release("ex-1", "b")
    assert records.release("ex-1", "a")
    assert records.claim("ex-1", "b") == "b"


def test_a_delivery_is_new_once(records, clock):
    assert [records.see_delivery("d", 60.0) for _ in range(3)] == [True, False, False]
    clock.advance(60)
    assert records.see_delivery("d", 60.0)


def test_the_wake_up_counter_is_one_for_all_that_share_the_key(store, key, records):
    assert records.wakeups() == 0
    assert [Records(store, key).notify(), records.notify()] == [1, 2]
    assert (records.wakeups(), Records(store, f"{key}2").wakeups()) == (2, 0)


def test_a_wake_up_counter_that_can_not_be_read_begins_anew(store, key, records):
    put_entry(store, key, "wakeups", "many", 60.0)
    assert (records.wakeups(), records.notify()) == (0, 1)


def test_the_ages_of_deliveries_are_listed(records, clock):
    records.see_delivery("d")
    clock.advance(5)
    records.see_delivery("e")
    assert records.delivery_ages() == [5.0, 0.0]


def test_a_cursor_moves_only_from_where_it_was_read(records):
    assert records.cursor("trigger") is None
    assert records.replace_cursor("trigger", None, "1")
    assert not records.replace_cursor("trigger", None, "2")
    assert records.replace_cursor("trigger", "1", "2")
    assert records.cursor("trigger").value == "2"


def test_a_record_that_is_no_intent_is_quoted(store, key, records):
    put_entry(store, f"{key}/intents", "a", '{"workflow_id": 1}', 60.0)
    with pytest.raises(StoreError, match="expected an intent of task a, got"):
        records.intent("a")
