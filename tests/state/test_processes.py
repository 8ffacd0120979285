"""Real processes on real stores: what one does, or fails to do, harms no other."""

from __future__ import annotations

import json
import signal
import threading
from itertools import chain, pairwise
from typing import Any

import pytest

from techflow_provider.state.budget import RequestClass, SharedBudget
from techflow_provider.state.gcra import interval_within
from techflow_provider.state.sqlite import SqliteStore
from techflow_provider.state.store import Store, StoreError, read_only
from tests.state.conftest import in_fork, in_threads
from tests.state.worker import BUSY_TIMEOUT_SECONDS, store_with_long_timeout

COMMAND = RequestClass.COMMAND


def results(processes) -> list[Any]:
    """Let processes run at once, and return their results."""
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    return [json.loads(process.communicate()[0]) for process in processes]


@pytest.fixture
def shared(state_url) -> Store:
    """A store that waits as long for others as a busy machine may need."""
    return store_with_long_timeout(state_url)


def test_slots_taken_by_many_processes_lie_an_interval_apart(state_url, key, worker):
    slots = sorted(chain.from_iterable(results([worker("reserve", state_url, key, "20") for _ in range(4)])))
    interval = interval_within(100, 1)
    assert len(slots) == 80
    assert min(later - earlier for earlier, later in pairwise(slots)) > interval - 0.01


def test_no_update_of_many_processes_is_lost(state_url, key, worker):
    found = results([worker("count", state_url, key, "25") for _ in range(4)])
    assert sorted(chain.from_iterable(found)) == list(range(100))


def test_a_forked_child_shares_the_budget(shared, key):
    budget = SharedBudget(shared, key)
    first = budget.reserve(COMMAND, 1e9).due
    in_child = in_fork(lambda: budget.reserve(COMMAND, 1e9).due)
    assert first < in_child < budget.reserve(COMMAND, 1e9).due


def test_a_fork_during_operations_leaves_the_child_able_to_use_the_store(shared, key):
    budget, stop = SharedBudget(shared, key), threading.Event()

    def keep_asking():
        while not stop.is_set():
            budget.reserve(COMMAND, 1e9)

    threads = [threading.Thread(target=keep_asking) for _ in range(4)]
    for thread in threads:
        thread.start()
    forks = [in_fork(lambda: budget.reserve(COMMAND, 1e9).granted and budget.snapshot().shared) for _ in range(5)]
    stop.set()
    for thread in threads:
        thread.join()
    assert forks == [True] * 5


def test_threads_share_a_store(shared, key):
    budget = SharedBudget(shared, key)
    slots: list[float] = []
    in_threads(lambda: slots.extend(budget.reserve(COMMAND, 1e9).due for _ in range(20)), 8)
    assert len(set(slots)) == 160


class TestAProcessInsideATransaction:
    """A lock that another process holds is waited for a short time, and a killed one holds none."""

    @pytest.fixture
    def holder(self, sqlite_path, worker):
        process = worker("hold", str(sqlite_path))
        assert process.stdout.readline() == "ready\n"
        return process

    def test_a_killed_one_blocks_no_other_and_leaves_nothing_half_done(self, holder, sqlite_path, key):
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        store = SqliteStore(sqlite_path, BUSY_TIMEOUT_SECONDS)
        budget = SharedBudget(store, key)
        assert budget.reserve(COMMAND, 1e9).granted
        assert budget.snapshot().shared
        assert store.entries("half done") == []

    def test_a_stopped_one_leaves_others_a_share_of_the_limit_until_it_ends(self, holder, sqlite_path, key, clock):
        holder.send_signal(signal.SIGSTOP)
        store = SqliteStore(sqlite_path, timeout_seconds=0.05)
        with pytest.raises(StoreError, match="locked"):
            store.update(key, "a", lambda *_: (None, None))
        budget = SharedBudget(store, key, clock=clock)
        assert budget.reserve(COMMAND, 1e9).granted
        assert budget.snapshot().requests_per_minute == 25
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        store.close()
        clock.advance(2)
        patient = SharedBudget(SqliteStore(sqlite_path, BUSY_TIMEOUT_SECONDS), key, clock=clock)
        assert patient.reserve(COMMAND, 1e9).granted
        assert patient.snapshot().shared

    def test_reading_needs_no_lock(self, sqlite_path, worker, key):
        store = SqliteStore(sqlite_path, timeout_seconds=0.05)
        assert store.entries(key) == []
        holder = worker("hold", str(sqlite_path))
        assert holder.stdout.readline() == "ready\n"
        assert store.entries(key) == []
        assert store.update(key, "a", read_only)[0] is None
