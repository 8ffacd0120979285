"""What tasks know about a start that a hook, a client or the command line makes."""

from __future__ import annotations

import logging

import pytest

from techflow_provider.client import Settings
from techflow_provider.client.models import Execution
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.direct import DirectStarts
from techflow_provider.submission.records import Claim, payload_digest

SETTINGS = Settings("key-of-the-direct-starts")
PAYLOAD = {"day": 1}
EXECUTION = Execution("ex_1", None, "running", None, None, None, {})


@pytest.fixture
def direct(store) -> DirectStarts:
    return DirectStarts(store, SETTINGS)


@pytest.fixture
def seen(store) -> AttemptStore:
    """What a task sees."""
    return AttemptStore(store, SETTINGS.site, "a task")


def test_a_start_is_announced_with_its_payload_for_as_long_as_a_response_may_come(direct, seen, clock):
    intents = [direct.announce("wf_1", PAYLOAD) for _ in range(2)]
    assert {each.submission_id for each in seen.pending()} == {each.submission_id for each in intents}
    assert len({each.submitter for each in intents}) == 2
    (first, _) = seen.pending()
    assert (first.payload_digest, first.in_flight) == (payload_digest(PAYLOAD), True)
    clock.advance(SETTINGS.deadline_seconds + SETTINGS.response_seconds - 1.0)
    assert all(each.in_flight for each in seen.pending())
    clock.advance(1.0)
    assert not any(each.in_flight for each in seen.pending())


def test_what_was_started_is_claimed_beyond_doubt_and_no_longer_expected(direct, seen):
    intent = direct.announce("wf_1", PAYLOAD)
    direct.claim(intent, EXECUTION)
    claim = Claim(intent.submission_id, by_response=True, payload_digest=payload_digest(PAYLOAD))
    assert seen.claims([("wf_1", "ex_1")]) == {("wf_1", "ex_1"): claim}
    assert seen.pending() == []


@pytest.mark.parametrize("had_effect", [False, True])
def test_a_start_without_a_response_may_have_an_execution_only_if_it_had_an_effect(direct, seen, had_effect):
    direct.withdraw(direct.announce("wf_1", PAYLOAD), had_effect=had_effect)
    assert [(each.lost, each.in_flight) for each in seen.pending()] == [(True, False)] * had_effect


def test_a_withdrawal_announces_nothing_that_was_not_announced(direct, seen, store):
    store.broken = True
    intent = direct.announce("wf_1", PAYLOAD)
    store.broken = False
    direct.withdraw(intent, had_effect=True)
    assert seen.pending() == []


def test_without_the_shared_state_a_start_is_made_with_a_warning(direct, store, caplog):
    store.broken = True
    with caplog.at_level(logging.WARNING):
        direct.claim(direct.announce("wf_1", PAYLOAD), EXECUTION)
    assert len(caplog.messages) == 3
    assert all("the disk is full" in each for each in caplog.messages)
