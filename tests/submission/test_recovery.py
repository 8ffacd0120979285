"""What a search concludes from the histories that servers show, and how often it polls them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from techflow_provider.client import (
    AmbiguousExecutionError,
    Client,
    ServerError,
    Settings,
    SupersededError,
    UnauthorizedError,
)
from techflow_provider.polling.searches import SharedHistory
from techflow_provider.sandbox import ManualClock
from techflow_provider.state.budget import LocalBudget
from techflow_provider.state.store import StoreError, Write, read_only
from techflow_provider.submission.matching import DOUBT, Match, NoMatch
from techflow_provider.submission.model import Attempt
from techflow_provider.submission.records import AttemptRecord, Claim
from techflow_provider.submission.recovery import LostStart, OtherAttemptError, own_record, search, take_over
from tests.submission.conftest import SITE, TASK, FailingStore, Starter

# What the request may take, how long the history may lag, and a process that was held up before it sent the request.
EFFECT_SECONDS = 30.0 + 120.0 + 5.0
LOST = LostStart(AttemptRecord("wf_1", "me#1", "1", "attempt", ManualClock().now(), 60.0), "The response is lost")


@dataclass
class Server:
    """A TechFlow whose history is what a test makes it.

    :param rows: the executions with the seconds after which they are listed, the newest last
    :param limit: how many it lists
    :param is_ascending: whether it lists the oldest first
    :param statuses: the status of each response; the last one is that of all that follow
    :param on_poll: called before each response
    """

    clock: ManualClock
    rows: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    limit: int | None = None
    is_ascending: bool = False
    statuses: list[int] = field(default_factory=lambda: [200])
    on_poll: Callable[[], None] = lambda: None
    polls: int = 0

    def handle(self, request: httpx.Request) -> httpx.Response:
        """Respond to a poll."""
        assert request.method == "GET"
        self.polls += 1
        self.on_poll()
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        shown = [row for at, row in self.rows if at <= self.clock.monotonic()]
        listed = (shown if self.is_ascending else shown[::-1])[: self.limit]
        headers = {"date": format_datetime(self.clock.now().replace(microsecond=0), usegmt=True)}
        return httpx.Response(status, headers=headers, json={"executions": listed})

    def add(self, name: str, began: float = 0.0, listed: float = 0.0, **more: Any) -> None:
        """Add an execution.

        :param began: when, in seconds after the search began
        :param listed: when the history lists it
        """
        at = (self.clock.now() + timedelta(seconds=began)).isoformat()
        row = {"id": name, "workflow_id": "wf_1", "status": "running", "started_at": at, **more}
        self.rows.append((listed + self.clock.monotonic(), row))

    def fill(self, count: int, began: float = 0.0) -> None:
        """Add executions of another workflow."""
        for index in range(count):
            self.add(f"other_{len(self.rows)}", began + index / 100, workflow_id="wf_2")


@pytest.fixture
def server(clock: ManualClock) -> Server:
    """The server."""
    clock.advance(10_000)
    return Server(clock)


@pytest.fixture
def starter(server: Server, clock: ManualClock, store: FailingStore) -> Iterator[Starter]:
    """Make attempts against it."""
    with Client(
        settings=Settings("key-of-the-recovery-tests", verify=False),
        budget=LocalBudget(100_000, 50_000, clock.monotonic),
        transport=httpx.MockTransport(server.handle),
        clock=clock.monotonic,
        sleep=clock.advance,
    ) as client:
        yield Starter(client, store, clock)


def lose(starter: Starter, **options: Any) -> tuple[Attempt, LostStart]:
    """Return an attempt whose request was sent just now, and is lost."""
    attempt = starter.attempt(**options)
    sent = attempt.new_record(attempt.context.now(), 60.0)
    attempt.attempts.update(lambda _: sent)
    return attempt, LostStart(starter.run(take_over(attempt, sent)), "The response is lost", 1)


def searched(starter: Starter, **options: Any) -> Match | NoMatch:
    found: Match | NoMatch = starter.run(search(*lose(starter, **options)))
    return found


def found(starter: Starter, **options: Any) -> str:
    match = searched(starter, **options)
    assert isinstance(match, Match)
    return match.execution.id


@pytest.mark.parametrize("start", [LOST, replace(LOST, sent=2, error=ServerError("POST /x", 502, "an object"))])
def test_a_lost_start_crosses_processes_as_json(start):
    read = LostStart.read(json.loads(json.dumps(start.to_dict())))
    assert read.sent == (2 if start.error else 0)
    assert replace(read, error=None) == replace(
        start, record=replace(start.record, sent_clock=read.record.sent_clock, is_clock_kept=False), error=None
    )
    assert (type(read.error), str(read.error)) == (type(start.error), str(start.error))


def test_what_is_found_says_where_the_search_has_looked(starter, server, clock):
    server.add("ex_1")
    match = searched(starter)
    assert isinstance(match, Match)
    assert list(match.times) == ["looked_from", "looked_until", "looked_at"]
    assert match.times["looked_from"] < clock.now().isoformat() < match.times["looked_until"]


def test_without_an_execution_the_history_is_polled_until_it_can_no_longer_lag(starter, server, clock, caplog):
    began = clock.monotonic()
    with caplog.at_level(logging.INFO):
        assert searched(starter) == NoMatch()
    assert EFFECT_SECONDS <= clock.monotonic() - began <= EFFECT_SECONDS + 15.0
    # At first often, later every 15 seconds.
    assert 10 <= server.polls <= 20
    assert sum("cannot be determined yet: the history may lag" in each for each in caplog.messages) == 1


def test_a_history_that_lags_by_seconds_is_polled_in_seconds(starter, server, clock):
    server.add("ex_1", listed=2.5)
    began = clock.monotonic()
    assert found(starter) == "ex_1"
    assert clock.monotonic() - began <= 5.0


def test_a_search_that_is_held_up_after_a_poll_polls_again(starter, server, store, clock, monkeypatch):
    server.add("ex_1")
    entries, held_up = store.entries, [6.0]

    def slow(namespace: str) -> Any:
        clock.advance(held_up.pop() if held_up else 0.0)
        return entries(namespace)

    monkeypatch.setattr(store, "entries", slow)
    assert found(starter) == "ex_1"
    assert server.polls == 2


def test_a_search_ends_as_soon_as_another_attempt_has_taken_its_record(starter, server):
    attempt, lost = lose(starter)
    later = starter.attempt()
    server.on_poll = lambda: starter.run(take_over(later, lost.record))
    with pytest.raises(SupersededError):
        starter.run(search(attempt, lost))
    assert server.polls == 1


def test_a_search_ends_as_soon_as_the_execution_is_known(starter):
    attempt, lost = lose(starter)
    known = replace(lost.record, execution_id="ex_1")
    attempt.attempts.keep(lost.record, known)
    with pytest.raises(OtherAttemptError) as caught:
        starter.run(search(attempt, lost))
    assert caught.value.record.execution_id == "ex_1"


def test_a_search_whose_record_is_lost_proves_nothing(starter):
    attempt, lost = lose(starter)
    attempt.attempts.update(lambda _: None)
    with pytest.raises(StoreError, match="lost the record"):
        starter.run(own_record(attempt, lost.record))


# Histories that may be cut off.


def ambiguous_after(starter: Starter, clock: ManualClock, **options: Any) -> float:
    began = clock.monotonic()
    with pytest.raises(AmbiguousExecutionError, match="may not show all"):
        searched(starter, **options)
    return clock.monotonic() - began


@pytest.mark.parametrize("count", [20, 25, 32, 50, 64, 70, 75, 100])
def test_a_history_whose_length_may_be_a_limit_proves_nothing_and_may_become_longer(starter, server, clock, count):
    server.fill(count)
    seconds = ambiguous_after(starter, clock)
    assert EFFECT_SECONDS + 120.0 < seconds <= EFFECT_SECONDS + 120.0 + 15.0


@pytest.mark.parametrize("count", [0, 1, 10, 16, 19, 21, 24, 33, 99])
def test_another_number_of_executions_is_all_there_are(starter, server, count):
    server.fill(count)
    assert searched(starter) == NoMatch()


def test_a_history_that_reaches_back_before_the_request_is_complete_if_it_lists_the_newest(starter, server, clock):
    server.fill(10, began=-60.0)
    server.fill(10, began=1.0)
    assert searched(starter) == NoMatch()
    server.is_ascending = True
    ambiguous_after(starter, clock, task="another")


def test_a_history_that_was_complete_stays_so_while_it_becomes_longer(starter, server, clock):
    server.fill(19)
    server.add("other_19", listed=30.0, workflow_id="wf_2")
    assert searched(starter) == NoMatch()


def test_a_history_that_leaves_out_what_it_has_shown_is_cut_off(starter, server, clock):
    server.fill(19)
    server.add("other_19", listed=30.0, workflow_id="wf_2")
    server.limit = 19
    ambiguous_after(starter, clock)


def test_a_history_that_leaves_out_what_it_has_shown_is_complete_from_its_oldest_on(starter, server):
    server.fill(30, began=-60.0)
    server.add("another", listed=30.0, workflow_id="wf_2")
    server.limit = 19
    assert searched(starter) == NoMatch()


def test_a_history_that_was_complete_and_reached_its_limit_is_cut_off(starter, server, clock):
    server.fill(19)
    for index in range(3):
        server.add(f"another_{index}", listed=30.0, workflow_id="wf_2")
    server.limit = 20
    ambiguous_after(starter, clock)


def test_what_only_earlier_polls_have_shown_does_not_make_a_history_reach_back(starter, server, clock):
    """Between two polls, the execution may have come and gone."""
    server.fill(20, began=-60.0)
    for second in range(300):
        server.add(f"second_{second}", began=second, listed=second, workflow_id="wf_2")
    server.limit = 20
    ambiguous_after(starter, clock)


def test_an_execution_without_a_time_says_nothing_about_a_history(starter, server, clock):
    server.fill(19)
    server.add("without", workflow_id="wf_2", started_at=None)
    ambiguous_after(starter, clock)


def test_what_earlier_polls_have_shown_counts(starter, server, clock):
    """The execution is listed at first, when another task may get it, and not any more when that one has another."""
    other = starter.attempt("other")
    pending = other.new_record(other.context.now(), 40.0)
    other.attempts.update(lambda _: pending)
    server.add("ex_1")
    server.add("ex_2", listed=20.0, workflow_id="wf_2")
    server.limit = 1
    began = clock.monotonic()
    assert found(starter) == "ex_1"
    assert clock.monotonic() - began >= 40.0


# Times.


def add_known(starter: Starter, server: Server, ahead: float, **claimed: Any) -> None:
    """Add executions whose starts were responded to a minute ago.

    :param ahead: how far the clock of the history is ahead of `Date`
    :param claimed: what their claims have in other ways
    """
    sent = server.clock.now().timestamp() - 60.0
    for index in range(3):
        server.add(f"known_{index}", ahead - 60.0, workflow_id="wf_2")
        claim = replace(Claim(f"other#{index}", True, (sent, sent + 1.0)), **claimed)
        starter.attempt().attempts.claim("wf_2", f"known_{index}", claim)


def test_an_execution_that_began_later_than_a_request_may_have_an_effect_is_not_adopted(starter, server):
    add_known(starter, server, 0.0)
    server.add("ex_1", began=163.0, listed=163.0)
    assert searched(starter) == NoMatch()


@pytest.mark.parametrize("is_ascending", [False, True])
def test_the_newest_executions_whose_starts_are_known_show_how_far_the_servers_clocks_are_apart(
    starter, server, is_ascending
):
    server.is_ascending = is_ascending
    server.fill(12, 3600.0 - 600.0)
    add_known(starter, server, 3600.0)
    server.add("ex_1", 3600.0)
    assert found(starter) == "ex_1"


def test_only_claims_by_a_response_show_that(starter, server):
    add_known(starter, server, 3600.0, requested=None)
    server.add("ex_1", 3600.0)
    assert searched(starter) == NoMatch()


# Payloads.


@pytest.mark.parametrize("echo", [{"day": 1}, '{"day": 1}'])
@pytest.mark.parametrize("name", ["input", "payload", "params"])
def test_where_the_history_shows_payloads_the_execution_with_the_payload_is_found(starter, server, echo, name):
    server.add("ex_1", **{name: {"day": 2}})
    server.add("ex_2", **{name: echo})
    server.add("ex_3", **{name: "not json"})
    assert found(starter, payload={"day": 1}) == "ex_2"


@pytest.mark.parametrize("nothing", [None, {}, ""])
def test_where_the_history_shows_that_there_is_no_payload_an_execution_without_one_is_found(starter, server, nothing):
    server.add("ex_1", input={"day": 2})
    server.add("ex_2", input=nothing)
    assert found(starter) == "ex_2"


def test_an_execution_of_which_the_history_shows_no_payload_may_have_one(starter, server):
    server.add("ex_1")
    server.add("ex_2", input={"day": 2})
    match = searched(starter)
    assert isinstance(match, Match)
    assert DOUBT in match.reason


def test_a_history_that_shows_nothing_where_payloads_might_be_shows_no_payloads(starter, server):
    other = starter.attempt("other", payload={"day": 2})
    other.attempts.update(lambda _: other.new_record(other.context.now(), 0.0))
    server.add("ex_1", input=None)
    with pytest.raises(AmbiguousExecutionError, match="may belong to another task with another payload"):
        searched(starter)


def test_a_history_that_shows_other_payloads_than_were_sent_shows_none_for_certain(starter, server):
    """A server may add to them, or show something else under that name."""
    server.add("ex_1", input={"day": 1, "added": True})
    server.add("ex_2", input=None)
    with pytest.raises(AmbiguousExecutionError, match=r"ex_1.*ex_2"):
        searched(starter, payload={"day": 1})


# Other tasks.


def test_an_id_may_be_unique_within_its_workflow_only(starter, server):
    server.add("1", workflow_id="wf_2")
    server.add("1")
    starter.attempt().attempts.claim("wf_2", "1", Claim("other#1", by_response=True))
    assert found(starter) == "1"
    starter.attempt().attempts.claim("wf_1", "1", Claim("other#1", by_response=True))
    assert searched(starter, task="third") == NoMatch()


def test_a_claim_counts_however_many_executions_began_later(starter, server):
    server.add("ex_1")
    starter.attempt().attempts.claim("wf_1", "ex_1", Claim("other#1", by_response=True))
    server.fill(15, began=1.0)
    assert searched(starter) == NoMatch()


def test_an_execution_without_a_workflow_is_claimed_as_one_of_the_own_workflow(starter, server):
    server.add("ex_1", workflow_id=None)
    starter.attempt().attempts.claim("wf_1", "ex_1", Claim("other#1", by_response=True))
    assert searched(starter) == NoMatch()


def test_searches_share_a_poll_and_each_reads_the_claims_of_its_own_workflow(starter, server, store):
    server.add("1", workflow_id=None)
    polls = SharedHistory(store, "account")
    first, second = (lose(starter, task=name, workflow_id=name) for name in ("wf_1", "wf_2"))
    first[0].attempts.claim("wf_1", "1", Claim("other#1", by_response=True))
    assert starter.run(search(replace(first[0], polls=polls), first[1])) == NoMatch()
    count = server.polls
    with pytest.raises(AmbiguousExecutionError, match="1 may have begun then"):
        starter.run(search(replace(second[0], polls=polls), second[1]))
    assert server.polls == count


def count_updates(store: FailingStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of the entries that are read or written from now on."""
    names, update = list[str](), store.update

    def counted(namespace: str, name: str, change: Any) -> Any:
        names.append(name)
        return update(namespace, name, change)

    monkeypatch.setattr(store, "update", counted)
    return names


@pytest.mark.parametrize("seconds", [0.0, 5.0])
def test_a_claim_is_read_once_by_the_searches_of_a_process(starter, server, store, monkeypatch, seconds):
    server.add("ex_1")
    polls = SharedHistory(store, "account")
    first, second = (lose(starter, task=name) for name in ("first", "second"))
    first[0].attempts.claim("wf_1", "ex_1", Claim("other#1", by_response=True))
    assert starter.run(search(replace(first[0], polls=polls), first[1])) == NoMatch()
    server.clock.advance(seconds)
    names = count_updates(store, monkeypatch)
    assert starter.run(search(replace(second[0], polls=polls), second[1])) == NoMatch()
    assert "second" in names
    assert "wf_1/ex_1" not in names


def test_only_the_claims_of_the_newest_executions_and_of_those_that_may_fit_are_read(
    starter, server, store, monkeypatch
):
    for index in range(30):
        server.add(f"ex_{index}", began=-7200.0)
    names = count_updates(store, monkeypatch)
    assert searched(starter) == NoMatch()
    assert len({each for each in names if each.startswith("wf_1/")}) == 10


def test_a_search_begins_by_the_hosts_clock_where_the_stores_clock_has_had_a_break(starter, server, store):
    attempt, lost = lose(starter)
    earlier = replace(lost.record, sent_at=attempt.context.now() - timedelta(seconds=300), sent_clock=None)
    text = json.dumps(earlier.to_dict(store.update("any", "name", read_only)[1] + 1000.0))
    store.update(f"{SITE}/pending", TASK, lambda *_: (Write(text, 600.0), None))
    server.add("ex_1", began=-250.0)
    match = starter.run(search(attempt, lost))
    assert isinstance(match, Match)


def test_a_task_that_has_claimed_an_execution_takes_no_other(starter, server):
    other = starter.attempt("other", payload={"day": 2})
    record = other.new_record(other.context.now(), 60.0)
    other.attempts.update(lambda _: record)
    other.attempts.claim("wf_1", "ex_1", Claim(record.submission_id, by_response=True))
    server.add("ex_1")
    server.add("ex_2")
    assert found(starter, payload={"day": 1}) == "ex_2"


def test_a_task_of_another_workflow_takes_none(starter, server):
    other = starter.attempt("other", payload={"day": 2}, workflow_id="wf_2")
    other.attempts.update(lambda _: other.new_record(other.context.now(), 60.0))
    server.add("ex_1")
    assert found(starter, payload={"day": 1}) == "ex_1"


# Histories that can't be read.


def test_a_poll_that_fails_is_retried(starter, server, caplog):
    server.add("ex_1")
    server.statuses = [500, 503, 200]
    with caplog.at_level(logging.WARNING):
        assert found(starter) == "ex_1"


def test_a_history_that_cannot_be_read_for_ten_minutes_proves_nothing(starter, server, clock):
    server.statuses = [503]
    began = clock.monotonic()
    with pytest.raises(AmbiguousExecutionError, match=r"the history can't be read: .*503"):
        searched(starter)
    assert 600.0 < clock.monotonic() - began < 900.0
    assert server.polls < 100


def test_a_history_that_will_never_be_readable_is_an_error_at_once(starter, server):
    server.statuses = [401]
    with pytest.raises(UnauthorizedError):
        searched(starter)
    assert server.polls == 1


def test_a_history_with_a_row_that_cannot_be_read_is_not_complete(starter, server, clock):
    server.rows.append((0.0, {"id": None}))
    server.fill(1)
    ambiguous_after(starter, clock)
