"""Webhooks wake waits and run DAGs in a real Airflow: how fast, and what loss, repetition and a kill -9 do to them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from techflow_provider.compat import has_api_server
from tests.deployment.webhook_deployment import Airflow, Latency, airflow, end_one_by_one, start_waits
from tests.servers import Redis, until

# Tasks that wait at the same time, twice.
COUNT = 26
SPACING_SECONDS = 4.0


def report(what: str, run: Airflow, began: float, *figures: object) -> None:
    """Print what came of a run."""
    minutes = (time.time() - began) / 60
    polls = run.sandbox.count(path="/executions") + run.sandbox.count(path="/workflows")
    refused = run.sandbox.count(status=429)
    print(f"\n{what}: {'; '.join(map(str, figures))}; requests={polls} in {minutes:.1f} min, 429={refused}")  # noqa: T201


def measure(what: str, run: Airflow, **webhooks: float) -> tuple[Latency, Latency]:
    """End executions while tasks wait for them, in two rounds, and print how long it took."""
    ids = start_waits(run, "one", COUNT)
    if run.webhooks:
        run.send(**webhooks)
    began = time.time()
    event, success = end_one_by_one(run, "one", ids, SPACING_SECONDS)
    report(f"{what}, first round", run, began, event, success)
    ids = start_waits(run, "two", COUNT)
    began = time.time()
    more = end_one_by_one(run, "two", ids, SPACING_SECONDS)
    event, success = event + more[0], success + more[1]
    fates = [f"{each.kind} {each.status}" for each in run.sandbox.deliveries]
    report(what, run, began, event, success, {fate: fates.count(fate) for fate in sorted(set(fates))})
    return event, success


def test_webhooks_wake_waits_within_a_second_at_the_median() -> None:
    with airflow(["webhook_waits"]) as run:
        event, _ = measure("webhooks", run)
    assert event.median <= 1.0


def test_webhooks_wake_waits_over_hosts_that_share_a_redis_alone(tmp_path: Path) -> None:
    with Redis.running(tmp_path) as redis, airflow(["webhook_waits"], redis_url=redis.url(0)) as run:
        event, _ = measure("webhooks, Redis", run)
        assert not list(run.running.home.rglob("state.db"))
    assert event.median <= 1.0


def test_polling_at_the_default_interval_for_comparison() -> None:
    with airflow(["webhook_waits"], webhooks=False) as run:
        measure("polling", run)


def test_every_wait_ends_right_when_webhooks_are_lost_late_repeated_and_in_another_order() -> None:
    with airflow(["webhook_waits"]) as run:
        event, _ = measure("lossy", run, loss=0.3, delay_seconds=0.5, jitter_seconds=5.0, duplicates=0.3, forged=0.3)
    assert len(event.seconds) == 2 * COUNT


@pytest.mark.skipif(not has_api_server(), reason="Airflow 2 schedules no DAG by events")
def test_each_event_runs_its_dag_once_through_a_kill_of_the_triggerer() -> None:
    with airflow(["webhook_events"]) as run:
        run.running.await_dags("on_completed", "on_created")
        until(lambda: run.sandbox.count(path="/executions") >= 1, 600, "the first poll")
        time.sleep(20)
        idle = run.sandbox.count()
        time.sleep(60)
        print(f"\nrequests in a minute in which nothing happens: {run.sandbox.count() - idle}")  # noqa: T201
        run.send()
        for number in range(50):
            run.sandbox.finish(run.sandbox.start("wf_1").id, outcome="completed")
            run.sandbox.add_workflow(f"w{number}")
            if number == 25:
                run.running.programs["triggerer"].kill()
                time.sleep(5)
                run.running.programs["triggerer"].start()
            time.sleep(4)
        until(lambda: all(len(ids) == 50 for ids in _subjects(run).values()) or None, 600, "all events")
        # Long enough for more, if there were any.
        time.sleep(30)
        subjects, updates, runs = _subjects(run), _updates(run), _runs(run)
    # An event that was emitted right before the kill is emitted again, since Airflow may have lost it; and Airflow
    # makes one run of all updates that its scheduler finds at once.
    print(f"events: 50 and 50; updates: {updates}; runs: {runs}")  # noqa: T201
    assert {name: len(ids) for name, ids in subjects.items()} == {"execution.completed": 50, "workflow.created": 50}
    assert max(updates.values()) <= 51
    assert min(runs.values()) >= 45


def _subjects(run: Airflow) -> dict[str, set[str]]:
    """Return what the updates that DAG runs got are about, by event."""
    rows = run.running.query("SELECT e.extra FROM asset_event e JOIN dagrun_asset_event d ON d.event_id = e.id")
    found: dict[str, set[str]] = {"execution.completed": set(), "workflow.created": set()}
    for (extra,) in rows:
        payload = json.loads(extra)["payload"]
        found[payload["event"]].add((payload.get("execution") or payload["workflow"])["id"])
    return found


def _updates(run: Airflow) -> dict[str, int]:
    rows = run.running.query("SELECT a.name, count(*) FROM asset_event e JOIN asset a ON a.id = e.asset_id GROUP BY 1")
    return {name: int(count) for name, count in rows}


def _runs(run: Airflow) -> dict[str, int]:
    return {
        dag_id: int(count) for dag_id, count in run.running.query("SELECT dag_id, count(*) FROM dag_run GROUP BY 1")
    }
