"""Real processes on real stores: what one does, or fails to do, harms no other."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from itertools import chain, pairwise
from typing import Any

import pytest

from techflow_provider.state.budget import RequestClass, SharedBudget
from techflow_provider.state.files import StateFile
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.sqlite import SqliteStore
from techflow_provider.state.store import StoreError, open_store

COMMAND = RequestClass.COMMAND


def answers(processes) -> list[Any]:
    """Let processes go at once, and return what they say."""
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    return [json.loads(process.communicate()[0]) for process in processes]


def in_fork(act: Callable[[], object]) -> Any:
    """Return what an act gives in a forked child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, json.dumps(act()).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        return json.loads(pipe.read())


def test_slots_taken_by_many_processes_lie_an_interval_apart(state_url, key, worker):
    slots = sorted(chain.from_iterable(answers([worker("reserve", state_url, key, "20") for _ in range(8)])))
    interval = SharedBudget(MemoryStore(), key)._active.policy.rate.interval_seconds
    assert len(slots) == 160
    assert min(later - earlier for earlier, later in pairwise(slots)) > interval - 0.01


def test_each_execution_is_claimed_by_one_process(state_url, key, worker):
    got = answers([worker("claim", state_url, key, f"task-{index}", "50") for index in range(6)])
    assert sorted(chain.from_iterable(got), key=int) == [str(index) for index in range(50)]


def test_a_forked_child_shares_the_budget(state_url, key):
    budget = SharedBudget(open_store(state_url), key)
    first = budget.reserve(COMMAND, 1e9).due
    in_child = in_fork(lambda: budget.reserve(COMMAND, 1e9).due)
    assert first < in_child < budget.reserve(COMMAND, 1e9).due


def test_a_fork_in_the_midst_of_operations_leaves_the_child_able(state_url, key):
    budget, end = SharedBudget(open_store(state_url), key), threading.Event()

    def keep_asking():
        while not end.is_set():
            budget.reserve(COMMAND, 1e9)

    threads = [threading.Thread(target=keep_asking) for _ in range(4)]
    for thread in threads:
        thread.start()
    forks = [in_fork(lambda: budget.reserve(COMMAND, 1e9).granted and budget.snapshot().shared) for _ in range(10)]
    end.set()
    for thread in threads:
        thread.join()
    assert forks == [True] * 10


def test_threads_share_a_store(state_url, key):
    budget = SharedBudget(open_store(state_url), key)
    slots: list[float] = []

    def take():
        slots.extend(budget.reserve(COMMAND, 1e9).due for _ in range(20))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(slots)) == 160


class TestAProcessInsideATransaction:
    """A lock that another process holds is waited for a short time, and a killed one holds none."""

    @pytest.fixture
    def holder(self, sqlite_path, worker):
        process = worker("hold", str(sqlite_path))
        assert process.stdout.readline() == "ready\n"
        return process

    @pytest.fixture
    def short(self, sqlite_path) -> SqliteStore:
        return SqliteStore(StateFile(sqlite_path, timeout_seconds=0.1))

    def test_a_killed_one_blocks_nobody_and_leaves_nothing_half_done(self, holder, short, key):
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        budget = SharedBudget(short, key)
        assert budget.reserve(COMMAND, 1e9).granted
        assert budget.snapshot().shared
        assert short.bell("half done") == 0

    def test_a_stopped_one_makes_others_go_on_with_a_share_until_it_ends(self, holder, short, key, clock):
        holder.send_signal(signal.SIGSTOP)
        with pytest.raises(StoreError, match="locked"):
            short.ring(key)
        budget = SharedBudget(short, key, clock=clock)
        assert budget.reserve(COMMAND, 1e9).granted
        assert budget.snapshot().requests_per_minute == 25
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        clock.advance(2)
        assert budget.reserve(COMMAND, 1e9).granted
        assert budget.snapshot().shared
